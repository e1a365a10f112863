"""E12: an adapted model begins as its base to the bit, training leaves the base as it is, and merged is unmerged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import AdamW, FreezeProof, TrainStep, select
from engine.models import build_model
from engine.models.adapters.attach import attach
from engine.models.adapters.merging import merge_into
from engine.selection.variables import name_variables
from engine.training import losses

Make = Callable[[Any], Any]


def vit(dtype: Any = tf.float32) -> Any:
    return build_model("vit:mini,depth=1", image_shape=(16, 16, 3), outputs=3, dtype=dtype).network


def cnn(dtype: Any = tf.float32) -> Any:
    return build_model("cnn:mini", image_shape=(16, 16, 3), outputs=3, dtype=dtype).network


def keras_model(dtype: Any = tf.float32) -> Any:
    """Every kind of layer that can be adapted, with strides, groups, activations and a nested backbone."""
    keras.utils.set_random_seed(1)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(tf.as_dtype(dtype).name)
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(images)
    y = layers.BatchNormalization()(y)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, activation=layers.ReLU(6.0))(y)
    backbone = keras.Model(images, layers.Conv2D(8, 3, groups=2 if dtype == tf.float32 else 1, use_bias=False)(y))
    y = backbone(outer := keras.Input((16, 16, 3)))
    y = layers.LayerNormalization()(layers.Reshape((16, 8))(y))
    y = layers.Add()([y, layers.MultiHeadAttention(2, 4)(y, y)])
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 6), bias_axes="d", activation="gelu")(y)
    y = layers.Dense(6, activation="relu")(layers.GlobalAveragePooling1D()(y))
    model = keras.Model(outer, layers.Dense(3, name="head")(y))
    keras.config.set_dtype_policy(before)
    return model


MODELS: dict[str, Make] = {"vit": vit, "cnn": cnn, "keras": keras_model}
TEXTS = {
    "lora": "lora:rank=2,alpha=4 @kernel",
    "ssf": "ssf @all",
    "both": "lora:rank=2 @kernel; ssf @all",
    "adapter": "adapter:size=3 @kernel; ssf @norm",
}


def batch(dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {"image": rng.standard_normal((6, 16, 16, 3)).astype(dtype), "label": np.arange(6) % 3}


def outputs(network: Any, images: Any) -> np.ndarray:
    return np.asarray(network(images, training=False))


def bits(network: Any) -> dict[str, bytes]:
    return {e.path: e.variable.numpy().tobytes() for e in name_variables(network) if "adapters" not in e.groups}


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def train(network: Any, images: dict[str, Any]) -> list[str]:
    """Trains the adapters for three steps; the paths of frozen variables that changed."""
    selection = select(network, "@adapters", statistics="follow")
    assert all("adapters" in entry.groups for entry in selection.trained)
    assert not selection.moving
    step = TrainStep(losses.supervised_loss(network), AdamW(weight_decay=0.1, clip_norm=1.0))
    proof = FreezeProof.begin(selection)
    for _ in range(3):
        step(selection, images, learning_rate=0.02)
    return proof.changed(selection)


def disturb(network: Any, paths: Sequence[str]) -> None:
    rng, named = np.random.default_rng(0), name_variables(network).by_path()
    for path in paths:
        variable = named[path].variable
        variable.assign_add(rng.standard_normal(variable.shape).astype(variable.dtype.as_numpy_dtype) * 0.05)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", MODELS)
def test_adapted_begins_as_the_base_and_merged_is_unmerged(name: str, text: str) -> None:
    network, images = MODELS[name](tf.float32), batch()["image"]
    base, before = bits(network), outputs(network, images)
    made = attach(network, TEXTS[text])
    assert outputs(network, images).tobytes() == before.tobytes()
    disturb(network, made)
    unmerged = outputs(network, images)
    assert relative(unmerged, before) > 1e-2
    if text == "adapter":
        return
    plain = MODELS[name](tf.float32)
    changed = merge_into(network, plain)
    assert [entry.path for entry in name_variables(plain)] == list(base)
    assert set(changed) <= set(base)
    assert relative(outputs(plain, images), unmerged) < 1e-6
    assert bits(network) == base


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param("vit", "adapter", marks=pytest.mark.slow), ("cnn", "both"), ("keras", "both")]
)
@pytest.mark.usefixtures("deterministic_ops")
def test_training_moves_every_adapter_and_no_bit_of_the_base(name: str, text: str) -> None:
    network, images = MODELS[name](tf.float32), batch()
    base, traced = bits(network), tf.function(lambda images: network(images, training=False))
    before = traced(images["image"]).numpy()
    made = attach(network, TEXTS[text])
    adapted = tf.function(lambda images: network(images, training=False))
    assert adapted(images["image"]).numpy().tobytes() == before.tobytes()
    now = name_variables(network).by_path()
    first = {path: now[path].variable.numpy() for path in made}
    assert not train(network, images)
    assert bits(network) == base
    assert not [path for path, value in first.items() if np.array_equal(value, now[path].variable.numpy())]


@pytest.mark.parametrize("name", MODELS)
def test_merged_is_unmerged_in_float64(name: str) -> None:
    network, images = MODELS[name](tf.float64), batch(np.float64)["image"]
    disturb(network, made := attach(network, TEXTS["both"]))
    named = name_variables(network).by_path()
    assert {named[path].variable.dtype for path in made} == {tf.float64}
    plain = MODELS[name](tf.float64)
    merge_into(network, plain)
    assert relative(outputs(plain, images), outputs(network, images)) < 1e-12


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_a_real_backbone_merges_too() -> None:
    def make() -> Any:
        return build_model("keras:MobileNetV2,alpha=0.35", image_shape=(64, 64, 3), outputs=3).network

    network, rng = make(), np.random.default_rng(0)
    images = {"image": rng.standard_normal((6, 64, 64, 3), np.float32), "label": np.arange(6) % 3}
    before = outputs(network, images["image"])
    made = attach(network, "lora:rank=2 @kernel; ssf @kernel @norm")
    assert outputs(network, images["image"]).tobytes() == before.tobytes()
    assert sum(path.endswith("/lora/up") for path in made) == 35
    assert sum(path.endswith("/ssf/scale") for path in made) == 104
    assert not train(network, images)
    plain = make()
    merge_into(network, plain)
    assert relative(outputs(plain, images["image"]), outputs(network, images["image"])) < 1e-6
