"""Keras models that compute in 16 bits: variables stay float32, layers compute in bfloat16, logits are wide."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import ModelSpecError, build_model
from engine.selection.variables import name_variables
from engine.training import losses, optimizers

SMALL = "keras:MobileNetV2,alpha=0.35"
CODE = """
import keras
import tensorflow as tf

class Net(tf.Module):
    def __init__(self, outputs):
        super().__init__()
        self.kernel = tf.Variable(tf.ones([64, outputs]))
    def __call__(self, images):
        return tf.reshape(images, [-1, 64]) @ self.kernel

class Sub(keras.Model):
    def __init__(self, outputs):
        super().__init__()
        self.flatten, self.out = keras.layers.Flatten(), keras.layers.Dense(outputs)
    def call(self, x, training=False): return self.out(self.flatten(x))

def module(image_shape, outputs): return Net(outputs)
def subclass(image_shape, outputs): return Sub(outputs)
def layers(image_shape, outputs):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(outputs)])
"""


@pytest.fixture
def user_code(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precise_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "precise_code", raising=False)


def saved(path: pathlib.Path) -> pathlib.Path:
    """A file of a float32 model: convolution, BatchNorm, dense, softmax."""
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    keras.Sequential([keras.Input((8, 8, 1)), *layers]).save(path)
    return path


def check(model: Any, shape: tuple[int, int, int], compute: str = "bfloat16") -> None:
    """float32 variables, computing layers, float32 logits near those of float32, and a step that trains."""
    variables = name_variables(model.network)
    assert {entry.variable.dtype.name for entry in variables if entry.kind == "weight"} == {"float32"}
    layers = [
        x for x in model.network._flatten_layers(include_self=False) if not isinstance(x, keras.layers.InputLayer)
    ]
    assert len(layers) > 1
    assert {layer.compute_dtype for layer in layers} == {compute}
    assert {layer.variable_dtype for layer in layers} == {"float32"}
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    batch = {"image": images, "label": np.array([0, 2])}
    loss_fn = losses.supervised_loss(model.network)
    outputs = model.network(images, training=False)
    assert outputs.dtype.name == compute
    loss = loss_fn(batch, training=False, seeds=None)
    assert {term.dtype for term in tf.nest.flatten(loss) if tf.is_tensor(term) and term.dtype.is_floating} == {
        tf.float32
    }
    step = TrainStep(loss_fn, optimizers.SGD())
    selection = select(model.network, "@all", statistics=model.statistics)
    before = {entry.path: entry.variable.numpy() for entry in variables}
    result = step(selection, batch, learning_rate=0.1)
    assert result.loss.dtype == tf.float32
    assert np.isfinite(result.loss)
    assert any(not np.array_equal(before[entry.path], entry.variable.numpy()) for entry in selection.trained)
    assert all(np.array_equal(before[entry.path], entry.variable.numpy()) for entry in selection.frozen)


@pytest.mark.slow
def test_an_application_computes_in_16_bits() -> None:
    model = build_model(SMALL, image_shape=(32, 32, 3), outputs=3, head="gap,8", compute=tf.bfloat16)
    check(model, (32, 32, 3))
    assert keras.config.dtype_policy().name == "float32"  # of layers that others make


def test_an_application_starts_from_the_weights_of_float32() -> None:
    one = build_model(SMALL, image_shape=(32, 32, 3), outputs=3)
    two = build_model(SMALL, image_shape=(32, 32, 3), outputs=3, compute=tf.bfloat16)
    for a, b in zip(name_variables(one.network), name_variables(two.network), strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(a.variable, b.variable, a.path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("head", [None, "gap,8"])
def test_a_saved_model_computes_in_16_bits(tmp_path: pathlib.Path, suffix: str, head: str | None) -> None:
    path = saved(tmp_path / f"m{suffix}")
    model = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3, head=head, compute=tf.bfloat16)
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    if head is None:
        wide = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3)
        np.testing.assert_allclose(
            tf.cast(model.network(images), tf.float32), wide.network(images), rtol=0.05, atol=0.02
        )
    check(model, (8, 8, 1))


def test_a_float32_file_is_refused_for_float64(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path / "m.keras")
    with pytest.raises(ModelSpecError, match="its weights are float32; expected float64"):
        build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3, dtype=tf.float64)


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize("name", ["subclass", "layers"])
def test_keras_models_of_a_factory_compute_in_16_bits(name: str) -> None:
    check(build_model(f"py:precise_code:{name}", image_shape=(8, 8, 1), outputs=3, compute=tf.bfloat16), (8, 8, 1))


@pytest.mark.usefixtures("user_code")
def test_a_module_of_a_factory_decides_itself_and_is_refused() -> None:
    with pytest.raises(
        ModelSpecError, match=r"precision=mixed_bfloat16: precise_code:module returns a tf.Module, which"
    ):
        build_model("py:precise_code:module", image_shape=(8, 8, 1), outputs=3, compute=tf.bfloat16)
    with pytest.raises(ModelSpecError, match="its weights are float32; expected float64"):
        build_model("py:precise_code:module", image_shape=(8, 8, 1), outputs=3, dtype=tf.float64)
