"""Exports of runs on texts and on vectors: tokens or raw features in, checked against the run, and read back."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import made_bert
import numpy as np
import pytest
import tensorflow as tf

from engine import build_model, load_weights
from engine.data.tokens import Tokenizer, TokenizerFiles
from engine.errors import InputError
from engine.export import inputs as given_inputs
from engine.export.checking import ExportError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.export.update import push_delta
from engine.models.spec import ModelSpecError
from engine.porting.errors import PortError
from engine.recipes.reopen import open_run
from engine.selection.variables import name_variables

tokenizers = pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")
Train = Callable[..., pathlib.Path]
TEXTS = ["The film was very good .", "dull", "a [SEP] of Great fun " * 9, ""]
MLP = """
import keras
import tensorflow as tf

class Layer(tf.Module):
    def __init__(self, size, outputs):
        self.kernel = tf.Variable(tf.random.stateless_normal([size, outputs], [1, 2]))
        self.bias = tf.Variable(tf.zeros([outputs]))
    def __call__(self, x):
        return x @ self.kernel + self.bias

class Mlp(tf.Module):
    def __init__(self, shape, outputs):
        self.body, self.head = Layer(shape[0], 3), Layer(3, outputs)
    def __call__(self, x, training=False):
        return self.head(tf.nn.relu(self.body(x)))

def dense(shape, outputs):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(3, "tanh"), keras.layers.Dense(outputs)])
"""


def export(run: pathlib.Path, out: pathlib.Path, form: str, **fields: Any) -> Any:
    return export_run(ExportConfig(run=str(run), out=str(out), format=form, **fields))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Encoders in tiny/ and distilled/, reviews in reviews/, pairs in pairs.tsv, a table, and a module of MLPs."""
    place = tmp_path_factory.mktemp("texts")
    made_bert.make_folder(place / "tiny")
    made_bert.make_folder(place / "distilled", kind=made_bert.DISTILBERT)
    made_bert.write_reviews(place / "reviews/train.tsv", 48)
    made_bert.write_reviews(place / "reviews/val.tsv", 12, seed=1)
    rows = [f"{text}\tgood film {n}\t{label}" for n, (text, label) in enumerate(made_bert.make_reviews(40))]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]))
    table = np.random.default_rng(0).normal(size=(40, 3)) * [1, 10, 0.01] + [0, 1000, 5]
    lines = [
        f"{a:.4f},{'' if n == 5 else f'{b:.4f}'},{c:.6f},{'yes' if a > 0 else 'no'},{'val' if n % 4 == 3 else 'train'}"
        for n, (a, b, c) in enumerate(table)
    ]
    (place / "table.csv").write_text("\n".join(["width,mass,depth,label,split", *lines]))
    (place / "export_mlp.py").write_text(MLP)
    return place


@pytest.fixture(scope="module")
def text_run(train: Train, place: pathlib.Path) -> pathlib.Path:
    """BERT with tanh, which TFLite has, and its pooler."""
    model = f"bert:{place}/tiny,pool=pooler,gelu=tanh"
    return train(model=model, weights="auto", data=f"text:{place}/reviews", max_tokens=16)


@pytest.fixture(scope="module")
def pair_run(train: Train, place: pathlib.Path) -> pathlib.Path:
    return train(model=f"bert:{place}/tiny", weights="auto", data=f"text:{place}/pairs.tsv", max_tokens=17)


@pytest.fixture(scope="module")
def vector_run(train: Train, place: pathlib.Path) -> pathlib.Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        return train(model="py:export_mlp:Mlp", data=TABLE.format(place), nan="zero")


TABLE = "csv:{}/table.csv,features=width,features=mass,features=depth,standardise"


@pytest.fixture
def importable(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))


def test_a_savedmodel_of_texts_is_used_with_the_tokenizers_package(
    text_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = export(text_run, tmp_path / "exported", "savedmodel")
    record = json.loads((tmp_path / "exported/export.json").read_text())
    assert record["tokens"] == {"shape": [16], "dtype": "int32"}
    assert record["max_tokens"] == 16
    assert record["tokenizer"]["do_lower_case"] is True
    assert "images" not in record
    assert found.comparison.model_accuracy == found.comparison.accuracy
    kept = json.loads((tmp_path / "exported/tokenizer_config.json").read_text())
    assert (kept["do_lower_case"], kept["model_max_length"]) == (True, 16)
    page = pathlib.Path(__file__).resolve().parents[2] / "docs/export.md"
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (snippet,) = (each for each in snippets if "Tokenizer" in each)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert capsys.readouterr().out.split()[0] in ("good", "bad")
    opened = open_run(text_run)
    own = Tokenizer(TokenizerFiles(folder=tmp_path / "exported", max_tokens=16), say=lambda line: None)
    rows = np.array([(ids := own.encode(text).ids) + [0] * (16 - len(ids)) for text in TEXTS], np.int32)
    whole = tokenizers.Tokenizer.from_file("exported/tokenizer.json")
    assert [each.ids for each in whole.encode_batch(TEXTS)] == rows.tolist()
    loaded = tf.saved_model.load("exported")
    outputs = loaded.signatures["serving_default"](tokens=tf.constant(rows))
    np.testing.assert_allclose(outputs["logits"], opened.network(tf.constant(rows)), atol=1e-6)
    features = loaded.signatures["features"](tokens=tf.constant(rows))["features"]
    head = opened.variables.by_path()
    logits = features @ head["head/kernel"].variable + head["head/bias"].variable
    np.testing.assert_allclose(logits, outputs["logits"], atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="tokens: expected whole numbers from 0 to 25"):
        loaded.signatures["serving_default"](tokens=tf.fill([1, 16], 26))


def test_an_update_of_an_export_keeps_its_tokenizer(text_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export(text_run, tmp_path / "exported", "savedmodel")
    push_delta(tmp_path / "exported", text_run / "trained.npz", tmp_path / "updated")
    for name in Tokenizer.FILES:
        assert (tmp_path / "updated" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()


def test_pairs_have_types_and_are_tokenised_alike(pair_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export(pair_run, tmp_path / "exported", "savedmodel")
    own = Tokenizer(TokenizerFiles(folder=tmp_path / "exported", max_tokens=17), say=lambda line: None)
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "exported/tokenizer.json"))
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = (" ".join(rng.choice(made_bert.WORDS[5:], rng.integers(0, 20))) for _ in range(2))
        one, other = own.encode(first, second), whole.encode(first, second)
        padding = [0] * (17 - len(one.ids))
        assert (other.ids, other.type_ids) == (one.ids + padding, one.types + padding)
    serve = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    given = {"tokens": np.array([other.ids], np.int32), "types": np.array([other.type_ids], np.int32)}
    logits = serve(**{name: tf.constant(value) for name, value in given.items()})["logits"]
    np.testing.assert_allclose(logits, open_run(pair_run).network(given), atol=1e-6)


@pytest.mark.parametrize("kind", ["pooler", "mean", "distilled"])
def test_safetensors_come_back_bit_for_bit_with_their_head(
    kind: str, text_run: pathlib.Path, pair_run: pathlib.Path, train: Train, place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = {"pooler": text_run, "mean": pair_run}.get(kind) or train(
        model=f"bert:{place}/distilled,pool=cls", weights="auto", data=f"text:{place}/reviews", max_tokens=16
    )
    out = tmp_path / "exported"
    export(run, out, "safetensors")
    assert (out / "head.safetensors").exists() == (kind != "pooler")
    from safetensors.numpy import load_file

    names = load_file(out / "model.safetensors").keys()
    assert ("classifier.weight" in names) == (kind == "pooler")
    assert all(name.startswith(("distilbert." if kind == "distilled" else "bert.", "classifier.")) for name in names)
    model = build_model(f"bert:{out},head=own", image_shape=(16,), outputs=2)
    said = load_weights(model, image_shape=(16,), classes=("bad", "good")).text
    assert "the head is that of" in said
    wanted = {entry.path: entry.variable.numpy() for entry in open_run(run).variables}
    found = {entry.path: entry.variable.numpy() for entry in name_variables(model.network)}
    assert found.keys() == wanted.keys()
    assert all(found[path].tobytes() == value.tobytes() for path, value in wanted.items())
    assert model.network.config == open_run(run).network.config
    with pytest.raises(
        PortError, match=r"its head is for bad and good, the data have good and bad; without head=own it starts anew"
    ):
        load_weights(model, image_shape=(16,), classes=("good", "bad"))
    anew = build_model(f"bert:{out}", image_shape=(16,), outputs=3)  # as from any folder, the head starts anew
    load_weights(anew)


def test_a_head_that_is_not_there_or_reads_something_else_is_refused(
    place: pathlib.Path, pair_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given: dict[str, Any] = {"image_shape": (16,), "outputs": 2}
    with pytest.raises(ModelSpecError, match=r"head=own: .*tiny has no head that can be taken"):
        build_model(f"bert:{place}/tiny,head=own", **given)
    export(pair_run, tmp_path / "exported", "safetensors")
    with pytest.raises(ModelSpecError, match=r"head.safetensors was trained on pool=mean; leave out pool, or head=own"):
        build_model(f"bert:{tmp_path}/exported,head=own,pool=cls", **given)
    model = build_model(f"bert:{tmp_path}/exported,head=own", image_shape=(16,), outputs=3)
    with pytest.raises(PortError, match=r"without head=own it starts anew"):
        load_weights(model)
    with pytest.raises(InputError, match=r"rules=vit_hf: .* has other names; expected encoder_hf"):
        export(pair_run, tmp_path / "other", "safetensors", rules="vit_hf")


def test_the_names_of_an_encoder_are_chosen_by_the_run(pair_run: pathlib.Path) -> None:
    found = export_run(ExportConfig(run=str(pair_run), format="safetensors"))
    assert found.out == pair_run / "export/safetensors-hf"
    assert found.record["names"] == "bert_encoder_hf.rules"
    assert ExportConfig(run="a", format="safetensors").place == pathlib.Path("a/export/safetensors-timm")


def test_other_formats_of_texts_hold_the_model_or_name_those_that_do(
    text_run: pathlib.Path, pair_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    export(text_run, tmp_path / "lite", "tflite")
    runner = litert.Interpreter(str(tmp_path / "lite/model.tflite")).get_signature_runner("serving_default")
    row = np.array([[2, 15, 5, 3] + [0] * 12], np.int32)
    found = runner(tokens=row)["logits"]
    np.testing.assert_allclose(found, open_run(text_run).network(tf.constant(row)), atol=1e-5)
    with pytest.raises(
        InputError, match=r"did not come from Keras; savedmodel and tflite take any model, and safetensors"
    ):
        export(text_run, tmp_path / "keras", "keras")
    export(pair_run, tmp_path / "exact", "tflite")  # with the exact GELU
    runner = litert.Interpreter(str(tmp_path / "exact/model.tflite")).get_signature_runner("serving_default")
    length = open_run(pair_run).image_shape[0]
    row, types = (
        np.array([first + [0] * (length - 6)], np.int32) for first in ([2, 15, 3, 5, 6, 3], [0, 0, 0, 1, 1, 1])
    )
    given = {"tokens": tf.constant(row), "types": tf.constant(types)}
    found = runner(tokens=row, types=types)["logits"]
    np.testing.assert_allclose(found, open_run(pair_run).network(given), atol=1e-5)


def test_onnx_takes_the_tokens_and_types_of_pairs(pair_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tf2onnx", reason="the package tf2onnx is missing")
    pytest.importorskip("onnxruntime")
    assert export(pair_run, tmp_path / "onnx", "onnx").comparison.largest_difference < 1e-4


@pytest.mark.usefixtures("importable")
def test_a_savedmodel_of_vectors_standardises_them_and_fills_what_is_missing(
    vector_run: pathlib.Path, place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    export(vector_run, tmp_path / "exported", "savedmodel")
    features = json.loads((tmp_path / "exported/export.json").read_text())["features"]
    assert features["columns"] == ["width", "mass", "depth"]
    assert features["missing"] == "zero"
    mean, deviation = (np.array(features["standardised"][name]) for name in ("mean", "deviation"))
    raw = np.array([[0.5, 1003.0, 5.01], [-1.0, np.nan, 4.99]], np.float32)
    scaled = np.nan_to_num((raw - mean) / deviation).astype(np.float32)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    serve = loaded.signatures["serving_default"]
    expected = open_run(vector_run).network(tf.constant(scaled))
    np.testing.assert_allclose(serve(features=tf.constant(raw))["logits"], expected, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected finite numbers, or NaN for a missing one"):
        serve(features=tf.constant(raw * np.float32(np.inf)))
    other = place / "other.csv"
    other.write_text((place / "table.csv").read_text().replace("5.0", "5.1"))
    data = TABLE.format(place).replace("table.csv", "other.csv").replace(",standardise", "")
    again = export(vector_run, tmp_path / "second", "savedmodel", data=data).record["features"]["standardised"]
    assert again == features["standardised"], "those of the run, whatever it is checked on"


@pytest.mark.usefixtures("importable")
def test_vectors_go_into_tflite_and_keras(
    vector_run: pathlib.Path, train: Train, place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("ai_edge_litert")
    assert export(vector_run, tmp_path / "lite", "tflite").comparison.largest_difference < 1e-4
    with pytest.raises(
        InputError, match=r"format=safetensors: py:export_mlp:Mlp is not one of the built-in ViTs or bert:"
    ):
        export(vector_run, tmp_path / "torch", "safetensors")
    run = train(
        model="py:export_mlp:dense", data=TABLE.format(place).replace(",standardise", ""), nan="zero", train="@all"
    )
    with pytest.raises(InputError, match="the model was trained on features as they are"):
        export(run, tmp_path / "keras", "keras", data=TABLE.format(place) + f"={place}/table.csv")
    prepare = export(run, tmp_path / "keras", "keras").record["prepare"]
    assert prepare == {"of": "features: nothing; then 0 in place of NaN, a missing number"}


@pytest.mark.usefixtures("importable")
def test_missing_numbers_that_the_run_refused_are_refused(train: Train, tmp_path: pathlib.Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64), val_x=x[:8], val_y=np.arange(8) % 2)
    run = train(model="py:export_mlp:Mlp", data=f"table:{tmp_path}/data.npz")
    record = export(run, tmp_path / "exported", "savedmodel").record
    assert (record["features"]["columns"], record["features"]["standardised"]) == (None, None)
    serve = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="since the run read no missing ones"):
        serve(features=tf.fill([1, 3], float("nan")))


@pytest.mark.usefixtures("importable")
def test_a_wrong_preparation_in_the_export_is_found(
    vector_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_inputs.Vectors, "prepare", lambda self, given: given["features"] / 100)
    with pytest.raises(ExportError, match="an output differs from the model's"):
        export(vector_run, tmp_path / "exported", "savedmodel")
    assert not (tmp_path / "exported").exists()
