"""Manifests, tables and sources of a user's own, trained from, evaluated and predicted with."""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import FinetuneConfig, finetune
from engine.errors import InputError
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import OpenedRun, open_run
from engine.recipes.run_result import RunResult
from engine.runs import picture, records

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    yield
    config.disable_op_determinism()


def trained(out: pathlib.Path, **fields: Any) -> tuple[RunResult, OpenedRun]:
    given: dict[str, Any] = {"model": "cnn:mini", "weights": "none", "train": "@head", "batch_size": 8, "steps": 2}
    result = finetune(FinetuneConfig(**given | {"cache": "off", "out": str(out)} | fields))
    assert result.code == 0
    return result, open_run(out)


def eval_loss(opened: OpenedRun, **given: Any) -> float:
    return float(evaluate(opened, open_examples(opened, **given)).figures["loss"])


def test_deep_images_of_several_sizes_are_trained_on_padded_and_predicted_alike(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(24):
        size = ((10, 6), (6, 10), (9, 9))[number % 3]
        value = rng.integers(0, 65536, size).astype(np.uint16) // (1 + number % 2)
        Image.fromarray(value).save(tmp_path / f"{number}.{'png' if number % 4 else 'tif'}")
        lines.append(
            f"{number}.{'png' if number % 4 else 'tif'},{'ab'[number % 2]},{'train' if number < 16 else 'val'}"
        )
    (tmp_path / "m.csv").write_text("\n".join(lines))
    result, opened = trained(
        tmp_path / "run",
        data=f"csv:{tmp_path}/m.csv",
        image_size="8",
        image_pixels="stored",
        image_fit="pad",
        image_mask=True,
    )
    assert (opened.image_shape, opened.class_names, opened.data.image_dtype) == ((8, 8, 2), ("a", "b"), "float32")
    assert eval_loss(opened) == result.run["final"]["eval_loss"]
    files = [tmp_path / line.split(",")[0] for line in lines[17:]]
    batch = result.task.source.eval.read(np.arange(8))["image"]
    (found,) = opened.predictor().predict_files(files)
    np.testing.assert_array_equal(found.outputs[0], opened.predictor().outputs(opened.predictor().prepare(batch)))
    (again,) = result.predictor().predict_files(files)
    np.testing.assert_array_equal(again.outputs[0], found.outputs[0])


MLP = """
    import numpy as np
    import tensorflow as tf

    class Layer(tf.Module):
        def __init__(self, size, outputs):
            self.kernel = tf.Variable(tf.random.stateless_normal([size, outputs], [1, 2]) / size**0.5)
            self.bias = tf.Variable(tf.zeros([outputs]))
        def __call__(self, x):
            return x @ self.kernel + self.bias

    class Mlp(tf.Module):
        def __init__(self, shape, outputs):
            self.body, self.head = Layer(shape[0], 3), Layer(3, outputs)
        def __call__(self, x, training=False):
            return self.head(tf.nn.relu(self.body(x)))

    class Points:
        classes = ("low", "high")
        def __init__(self, start=0, count=40):
            self.start, self.count = start, count
        def __len__(self):
            return self.count
        def read(self, positions):
            x = np.sin(np.outer(self.start + positions, np.arange(1, 13))).astype(np.float32)
            return {"x": x, "label": (x[:, 0] > 0).astype(np.int64)}
        def fingerprint(self):
            return f"points {self.start} {self.count}"

    def points():
        return {"train": Points(), "val": Points(100, 12)}
"""


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory, with a module ``own_parts``."""
    (tmp_path / "own_parts.py").write_text(textwrap.dedent(MLP))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_parts", raising=False)
    return tmp_path


def write_table(path: pathlib.Path, start: int) -> None:
    lines = [",".join([*(f"x{n}" for n in range(12)), "label", "split"])]
    for number, row in enumerate(np.random.default_rng(start).normal(size=(40, 12))):
        cells = [f"{value * (1 + n):.4f}" for n, value in enumerate(row)]
        lines.append(",".join([*cells, "yes" if row[0] > row[1] else "no", "val" if number % 4 == 3 else "train"]))
    path.write_text("\n".join(lines))


def test_a_network_of_vectors_trains_from_a_table_with_its_frozen_part_cached(own: pathlib.Path) -> None:
    write_table(own / "t.csv", 0)
    fields = {"model": "py:own_parts:Mlp", "data": "table:t.csv,standardise", "train": "head/.*", "steps": 3}
    result, opened = trained(own / "cached", cache="require", **fields)
    plain, _ = trained(own / "plain", **fields)
    assert result.run["cache"]["used"] is True
    assert opened.class_names == ("no", "yes")
    assert result.run["freeze_proof"]["verified"] is True
    np.testing.assert_allclose(result.run["final"]["eval_loss"], plain.run["final"]["eval_loss"], rtol=1e-6)
    np.testing.assert_allclose(eval_loss(opened), result.run["final"]["eval_loss"], rtol=1e-6)
    write_table(own / "new.csv", 1)
    scaled = [eval_loss(opened, data=f"table:new.csv{how}") for how in ("", ",standardise", ",standardise=t.csv")]
    assert scaled[0] == scaled[1] == scaled[2], "always by the mean of the data that the model was trained on"
    early = dataclasses.replace(opened, data=dataclasses.replace(opened.data, moments=None))
    with pytest.raises(InputError, match=r"would be standardised by its own mean.* standardise=FILE names these"):
        open_examples(early, data="table:new.csv,standardise")
    with pytest.raises(
        InputError, match=r"did not record by which mean; table:new\.csv,standardise=FILE names the file"
    ):
        open_examples(early, data="table:new.csv")
    assert eval_loss(early, data="table:new.csv,standardise=t.csv") == scaled[0]
    same = eval_loss(opened, data="table:t.csv,standardise=t.csv", part="eval")
    np.testing.assert_allclose(same, result.run["final"]["eval_loss"], rtol=1e-6)


def test_a_source_of_the_users_own_trains_and_is_evaluated_again(own: pathlib.Path) -> None:
    fields = {"model": "py:own_parts:Mlp", "data": "py:own_parts:points", "train": "head/.*"}
    result, opened = trained(own / "run", cache="require", **fields)
    assert (len(result.task.source.train), len(result.task.source.eval)) == (40, 12)
    assert opened.class_names == ("low", "high")
    np.testing.assert_allclose(eval_loss(opened), result.run["final"]["eval_loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=vit:mini", "--weights=none"], "it takes images, but an example of these data is features [12]"),
        (["--model=cnn:mini"], "it takes images, but an example of these data is features [12]"),
        (["--model=keras:MobileNetV2", "--weights=none"], "it takes images, but an example of these data is features [12]"),
        (["--model=cnn:mini", "--image_fit=pad"], "these data have no images; leave out --image_fit"),
        (["--model=cnn:mini", "--parts=off"], "parts=off: table:t.csv has no folders; it is about folder:DIR"),
        (["--model=cnn:mini", "--image_mask"], "image_mask: every pixel is the image's own"),
        (["--model=cnn:mini", "--data=csv:t.csv,lable=x"], "`lable` is not an option"),
        (["--model=cnn:mini", "--data=csv:none.csv"], "there is no such file"),
        (["--model=cnn:mini", "--data=tfds:no_such_set,data_dir=."], "no_such_set"),
        (["--model=cnn:mini", "--data=py:own_parts:none"], "own_parts has no 'none'"),
        (["--model=cnn:mini", "--image_pixels=raw"], "raw"),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_with_code_2_before_anything_is_written(
    own: pathlib.Path, call: Call, words: list[str], message: str
) -> None:
    write_table(own / "t.csv", 0)
    code, _, err = call(
        *(
            {"--data=table:t.csv", "--out=run"} | set(words)
            if not any("--data" in w for w in words)
            else {"--out=run", *words}
        )
    )
    assert code == 2
    assert message in err
    assert not (own / "run").exists()


def test_two_labels_of_a_manifest_are_two_outputs_and_missing_ones_count_for_nothing(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,species,age,split"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
        age = "" if number % 3 == 0 else f"{number / 10:.1f}"
        lines.append(f"{number}.png,{'ab'[number % 2] if number % 5 else ''},{age},{'train' if number < 14 else 'val'}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    result, opened = trained(
        tmp_path / "run",
        data=f"csv:{tmp_path}/m.csv,label=species,label=age",
        image_size="8",
        loss="species=softmax, age=mse weight=0.3",
    )
    assert np.isfinite(result.run["final"]["eval_loss"])
    assert {task.name: task.classes for task in result.task.source.tasks} == {"species": ("a", "b"), "age": ()}
    assert opened.image_shape == (8, 8, 3)
