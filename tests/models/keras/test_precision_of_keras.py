"""Keras models that compute in 16 bits: variables stay float32, layers compute in bfloat16, logits are wide."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import ModelSpecError, build_model
from engine.models.keras import scopes
from engine.selection.variables import name_variables
from engine.training import losses, optimizers

SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or pathlib.Path(__file__).resolve().parents[4] / "shared")
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


# ---- files that were saved with another precision


def saved_as(policy: str, path: pathlib.Path) -> pathlib.Path:
    """A file of nested models, one of which casts its input to 16 bits; its last layer computes in float32."""
    with scopes.dtype_policy(policy):
        inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 3, padding="same")])
        layers = [keras.layers.Rescaling(1.0), keras.layers.Conv2D(4, 3, padding="same"), inner]
        layers += [keras.Sequential([keras.layers.Conv2D(4, 3)]), keras.layers.Normalization()]
        layers += [keras.layers.TimeDistributed(keras.layers.Dense(4)), keras.layers.BatchNormalization()]
        layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, dtype="float32")]
        keras.Sequential([keras.Input((8, 8, 1)), *layers]).save(path)
    return path


@pytest.mark.parametrize("policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"])
def test_the_precision_asked_for_governs_every_layer_of_a_file(tmp_path: pathlib.Path, policy: str) -> None:
    path = saved_as(policy, tmp_path / "m.keras")
    plain = keras.saving.load_model(path)
    with scopes.dtype_policy("float32"):
        wide = keras.Sequential.from_config(saved_config(plain))
    wide.set_weights(plain.get_weights())
    images = np.random.default_rng(1).random((2, 8, 8, 1), np.float32)
    model = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3)
    np.testing.assert_array_equal(model.network(images), wide(images))
    assert compute_dtypes(model) == {"float32"}
    assert not [note for note in model.notes if "whatever --precision says" in note]
    other = build_model(f"file:{path}", image_shape=(8, 8, 1), outputs=3, compute=tf.bfloat16)
    assert compute_dtypes(other) == {"bfloat16"}
    if policy == "mixed_float16":
        check(model, (8, 8, 1), "float32")  # trains without a loss scale


def compute_dtypes(model: Any) -> set[str]:
    layers = model.network._flatten_layers()
    return {layer.compute_dtype for layer in layers if not isinstance(layer, keras.layers.InputLayer)}


def saved_config(model: Any) -> Any:
    """The configuration of a model without any dtype policy."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: "float32" if key == "dtype" else without(item) for key, item in value.items()}
        return [without(item) for item in value] if isinstance(value, list) else value

    return without(model.get_config())


def test_a_policy_for_each_layer_is_replaced_as_well(tmp_path: pathlib.Path) -> None:
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_bfloat16")
    layer = keras.layers.MultiHeadAttention(1, 4, dtype=policies)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Reshape((16, 4))(image)
    x = keras.layers.GlobalAveragePooling1D()(layer(x, x))
    keras.Model(image, keras.layers.Dense(3)(x)).save(tmp_path / "m.keras")
    model = build_model(f"file:{tmp_path / 'm.keras'}", image_shape=(8, 8, 1), outputs=3)
    assert compute_dtypes(model) == {"float32"}
    assert model.network(np.ones([2, 8, 8, 1], np.float32)).dtype == tf.float32
    assert not [note for note in model.notes if "whatever --precision says" in note]


def test_quantised_kernels_stay_and_are_named(tmp_path: pathlib.Path) -> None:
    layers = [keras.layers.Flatten(), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3, name="top")]
    network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    network.layers[1].quantize("int8")
    network.save(tmp_path / "m.keras")
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    model = build_model(f"file:{tmp_path / 'm.keras'},preprocess=unit", image_shape=(8, 8, 1), outputs=3)
    assert "kernels stay int8 whatever --precision says (hidden)" in model.notes
    np.testing.assert_array_equal(model.network(images), network(images))
    with pytest.raises(
        ModelSpecError, match=r"precision=mixed_float16: the quantised layer 'hidden' of .* cannot compute so"
    ):
        build_model(
            f"file:{tmp_path / 'm.keras'},preprocess=unit", image_shape=(8, 8, 1), outputs=3, compute=tf.float16
        )


CASTS = """
import keras
import tensorflow as tf

class Net(tf.Module):
    def __init__(self, outputs, dtype):
        super().__init__()
        self.kernel, self.dtype = tf.Variable(tf.ones([64, outputs])), dtype
    def __call__(self, images):
        with tf.name_scope("middle"):
            product = tf.cast(tf.reshape(images, [-1, 64]), self.dtype) @ tf.cast(self.kernel, self.dtype)
        return tf.cast(product, tf.float32)

class Inside(keras.layers.Layer):
    def build(self, shape):
        self.net = Net(3, tf.bfloat16)
        self.kernel = self.add_weight(name="kernel", shape=(64, 4))
    def call(self, images):
        flat = tf.cast(tf.reshape(images, [-1, 64]), tf.bfloat16)
        return tf.cast(flat @ tf.cast(self.kernel, tf.bfloat16), tf.float32)

def half(image_shape, outputs): return Net(outputs, tf.float16)
def brain(image_shape, outputs): return Net(outputs, tf.bfloat16)
def layer(image_shape, outputs):
    image = keras.Input(image_shape)
    return keras.Model(image, keras.layers.Dense(outputs)(Inside(name="inside")(image)))
"""


@pytest.fixture
def casts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "casting_code.py").write_text(CASTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "casting_code", raising=False)


@pytest.mark.usefixtures("casts")
def test_what_computes_in_another_precision_by_its_code_is_named() -> None:
    model = build_model("py:casting_code:brain", image_shape=(8, 8, 1), outputs=3)
    assert model.notes[0] == "a part computes in bfloat16 whatever --precision says (middle)"
    same = build_model("py:casting_code:brain", image_shape=(8, 8, 1), outputs=3, compute=tf.bfloat16)
    assert not [note for note in same.notes if "whatever --precision says" in note]
    layer = build_model("py:casting_code:layer", image_shape=(8, 8, 1), outputs=3)
    assert "a part computes in bfloat16 whatever --precision says (" in layer.notes[0]
    assert "inside" in layer.notes[0]


@pytest.mark.usefixtures("casts")
def test_what_computes_in_float16_by_its_code_needs_the_flag_with_a_loss_scale() -> None:
    with pytest.raises(
        ModelSpecError, match=r"float16 whatever --precision says .middle.; --precision=mixed_float16 trains"
    ):
        build_model("py:casting_code:half", image_shape=(8, 8, 1), outputs=3)
    build_model("py:casting_code:half", image_shape=(8, 8, 1), outputs=3, compute=tf.float16)


@pytest.mark.parametrize("name", ["bf16", "mixed"])
def test_fault_16_computes_in_float32_by_default(name: str) -> None:
    file = SHARED / "faults" / "16_saved_policy" / f"{name}.keras"
    if not file.is_file():
        pytest.skip("shared/faults is not beside the checkout; FROSTLINE_SHARED names another folder")
    model = build_model(f"file:{file}", image_shape=(32, 32, 3), outputs=3)
    assert compute_dtypes(model) == {"float32"}
    assert not [note for note in model.notes if "whatever --precision says" in note]
