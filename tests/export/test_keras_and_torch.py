"""Exports for a user's own Keras code, and for PyTorch libraries."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from engine import porting
from engine.errors import InputError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.models import build_model
from engine.recipes.reopen import open_run
from engine.selection.variables import name_variables

safetensors = pytest.importorskip("safetensors.numpy")
Train = Callable[..., pathlib.Path]
IMAGES = np.random.default_rng(0).random((3, 16, 16, 1), np.float32)


def export(run: pathlib.Path, out: pathlib.Path, kind: str, **fields: object) -> dict:
    return dict(export_run(ExportConfig(run=str(run), out=str(out), format=kind, **fields)).record)


@pytest.mark.slow
def test_a_keras_model_loads_in_keras_alone_and_gives_probabilities(train: Train, tmp_path: pathlib.Path) -> None:
    import keras

    with keras.utils.custom_object_scope({}):
        model = keras.Sequential(
            [
                keras.Input([16, 16, 1]),
                keras.layers.Conv2D(4, 3, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )
    model.save(tmp_path / "own.keras")
    run = train(model=f"file:{tmp_path / 'own.keras'}", weights="auto")
    record = export(run, tmp_path / "out", "keras")
    loaded = keras.models.load_model(tmp_path / "out" / "model.keras")
    opened = open_run(run)
    prepared = opened.normalise(IMAGES)
    expected = tf.nn.softmax(opened.network(prepared, training=False)).numpy()
    np.testing.assert_allclose(loaded(prepared, training=False), expected, atol=1e-6)
    prepare = record["prepare"]
    np.testing.assert_allclose((IMAGES - prepare["mean"]) / prepare["std"], prepared, atol=1e-6)


def test_a_model_that_keras_did_not_build_is_refused(vit_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="did not come from Keras; savedmodel and tflite"):
        export(vit_run, tmp_path / "out", "keras")
    assert not list(tmp_path.iterdir())


WIDTH, PATCH = 96, 4
# written from the documentation of timm and transformers, not from the rule files
TIMM = {
    "cls_token": [1, 1, WIDTH],
    "pos_embed": [1, 17, WIDTH],
    "patch_embed.proj.weight": [WIDTH, 1, PATCH, PATCH],
    "patch_embed.proj.bias": [WIDTH],
    "blocks.0.norm1.weight": [WIDTH],
    "blocks.0.norm1.bias": [WIDTH],
    "blocks.0.attn.qkv.weight": [3 * WIDTH, WIDTH],
    "blocks.0.attn.qkv.bias": [3 * WIDTH],
    "blocks.0.attn.proj.weight": [WIDTH, WIDTH],
    "blocks.0.attn.proj.bias": [WIDTH],
    "blocks.0.norm2.weight": [WIDTH],
    "blocks.0.norm2.bias": [WIDTH],
    "blocks.0.mlp.fc1.weight": [4 * WIDTH, WIDTH],
    "blocks.0.mlp.fc1.bias": [4 * WIDTH],
    "blocks.0.mlp.fc2.weight": [WIDTH, 4 * WIDTH],
    "blocks.0.mlp.fc2.bias": [WIDTH],
    "norm.weight": [WIDTH],
    "norm.bias": [WIDTH],
    "head.weight": [3, WIDTH],
    "head.bias": [3],
}
_LAYER = "vit.encoder.layer.0"
HF = {
    "vit.embeddings.cls_token": [1, 1, WIDTH],
    "vit.embeddings.position_embeddings": [1, 17, WIDTH],
    "vit.embeddings.patch_embeddings.projection.weight": [WIDTH, 1, PATCH, PATCH],
    "vit.embeddings.patch_embeddings.projection.bias": [WIDTH],
    **{
        f"{_LAYER}.attention.attention.{name}.{part}": [WIDTH] * (1 + (part == "weight"))
        for name in ("query", "key", "value")
        for part in ("weight", "bias")
    },
    f"{_LAYER}.attention.output.dense.weight": [WIDTH, WIDTH],
    f"{_LAYER}.attention.output.dense.bias": [WIDTH],
    f"{_LAYER}.intermediate.dense.weight": [4 * WIDTH, WIDTH],
    f"{_LAYER}.intermediate.dense.bias": [4 * WIDTH],
    f"{_LAYER}.output.dense.weight": [WIDTH, 4 * WIDTH],
    f"{_LAYER}.output.dense.bias": [WIDTH],
    f"{_LAYER}.layernorm_before.weight": [WIDTH],
    f"{_LAYER}.layernorm_before.bias": [WIDTH],
    f"{_LAYER}.layernorm_after.weight": [WIDTH],
    f"{_LAYER}.layernorm_after.bias": [WIDTH],
    "vit.layernorm.weight": [WIDTH],
    "vit.layernorm.bias": [WIDTH],
    "classifier.weight": [3, WIDTH],
    "classifier.bias": [3],
}


@pytest.mark.parametrize(("rules", "names"), [("vit_timm", TIMM), pytest.param("vit_hf", HF, marks=pytest.mark.slow)])
def test_a_vit_has_the_names_and_shapes_of_other_libraries_and_comes_back(
    rules: str, names: dict, vit_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    export(vit_run, tmp_path / "out", "safetensors", rules=rules)
    found = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert {name: list(value.shape) for name, value in found.items()} == names
    opened = open_run(vit_run)
    network = build_model("vit:mini,depth=1", image_shape=(16, 16, 1), outputs=3, seed=9).network
    porting.load(network, tmp_path / "out" / "model.safetensors")
    own = opened.variables.by_path()
    for entry in name_variables(network):
        np.testing.assert_array_equal(entry.variable.numpy(), own[entry.path].variable.numpy())
    # the values, computed as PyTorch does: a convolution, and one product for query, key and value
    prefix = {"vit_timm": "patch_embed.proj", "vit_hf": "vit.embeddings.patch_embeddings.projection"}[rules]
    image = opened.normalise(IMAGES).numpy()
    patch = image[0, 4:8, 8:12].transpose(2, 0, 1)
    value = np.einsum("ocij,cij->o", found[f"{prefix}.weight"], patch) + found[f"{prefix}.bias"]
    kernel, bias = own["patch/kernel"].variable.numpy(), own["patch/bias"].variable.numpy()
    np.testing.assert_allclose(value, image[0, 4:8, 8:12].reshape(-1) @ kernel + bias, atol=1e-5)
    if rules == "vit_timm":
        query = found["blocks.0.attn.qkv.weight"][:WIDTH]
        np.testing.assert_array_equal(query.T, own["blocks/0/attention/query/kernel"].variable.numpy())


@pytest.mark.slow
def test_the_configs_say_what_the_network_is(vit_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export(vit_run, tmp_path / "timm", "safetensors")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["architecture"].startswith("vit_")
    assert config["num_classes"] == 3
    arguments = config["model_args"]
    assert (arguments["embed_dim"], arguments["depth"], arguments["num_heads"], arguments["in_chans"]) == (96, 1, 3, 1)
    assert config["pretrained_cfg"]["mean"] == [0.5]
    export(vit_run, tmp_path / "hf", "safetensors", rules="vit_hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    assert (config["hidden_size"], config["intermediate_size"], config["image_size"]) == (96, 384, 16)
    assert config["id2label"] == {"0": "0", "1": "1", "2": "2"}


@pytest.mark.parametrize(
    ("model", "rules", "message"),
    [
        ("cnn:mini", "vit_timm", "is not one of the built-in ViTs"),
        ("vit:mini,depth=1,pool=mean", "vit_hf", "pool=mean .*--rules=vit_timm writes"),
        ("vit:mini,depth=1,layer_scale", "vit_hf", "layer_scale"),
        ("vit:mini,depth=1,norm_epsilon=1e-12", "vit_timm", "epsilon"),
        ("vit:mini,depth=1,layer_scale,pool=mean,fc_norm,gelu=tanh", "vit_timm", None),
        ("vit:mini,depth=1,norm_epsilon=1e-12", "vit_hf", None),
    ],
)
@pytest.mark.slow
def test_what_another_library_does_not_have_is_refused(
    model: str, rules: str, message: str | None, train: Train, tmp_path: pathlib.Path
) -> None:
    run = train(model=model)
    if message is None:
        export(run, tmp_path / "out", "safetensors", rules=rules)
        return
    with pytest.raises(InputError, match=message):
        export(run, tmp_path / "out", "safetensors", rules=rules)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_that_are_not_square_come_back(train: Train, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=rng.integers(0, 255, [12, 8, 32, 3], np.uint8),
        train_labels=np.arange(12) % 3,
    )
    run = train(data=f"npz:{tmp_path / 'data.npz'}", batch_size=6)
    for rules in ("vit_timm", "vit_hf"):
        export(run, tmp_path / rules, "safetensors", rules=rules)


def test_onnx_is_refused_in_words_where_its_packages_are_missing(
    vit_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(InputError, match=r"format=onnx: the package tf2onnx.*frostline\[onnx\]"):
        export(vit_run, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx_is_the_model(vit_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    export(vit_run, tmp_path / "out", "onnx")
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    opened = open_run(vit_run)
    expected = opened.network(opened.normalise(IMAGES), training=False).numpy()
    np.testing.assert_allclose(session.run(None, {"images": IMAGES})[0], expected, atol=1e-5)
