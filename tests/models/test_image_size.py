"""The size of images for a user's own model: that of its factory where it has one; a mismatch names the flag."""

from __future__ import annotations

import random
import sys
import types
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models import ModelSpecError, build_model, build_network, default_image_size


def network(shape: Any, outputs: int = 3) -> Any:
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(outputs)(keras.layers.GlobalAveragePooling2D()(image)))


class Fixed(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.normal([3, 3]))

    @tf.function(input_signature=[tf.TensorSpec([None, 20, 24, 3])])
    def __call__(self, images: Any) -> Any:
        return tf.reduce_mean(images, [1, 2]) @ self.kernel


def refuses(image_shape: Any, outputs: int) -> Any:
    raise ValueError("made for 20x24")


FACTORIES: dict[str, tuple[Any, tuple[int, int]]] = {
    "a default": (lambda image_shape=(20, 24, 3), outputs=3: network(image_shape, outputs), (20, 24)),
    "a default without channels": (lambda size=(20, 24), outputs=3: network((*size, 3), outputs), (20, 24)),
    "no arguments": (lambda: network((20, 24, 3)), (20, 24)),
    "a shape that is ignored": (lambda image_shape, outputs: network((20, 24, 3)), (20, 24)),
    "any size": (lambda image_shape, outputs: network((None, None, 3)), (224, 224)),
    "the size given": (lambda image_shape, outputs: network(image_shape), (224, 224)),
    "an input signature": (lambda image_shape, outputs: Fixed(), (20, 24)),
    "a refusal": (refuses, (224, 224)),
    "nothing": (None, (224, 224)),
}


@pytest.fixture
def spec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "sized_code", types.SimpleNamespace(make=FACTORIES[request.param][0]))
    return "py:sized_code:make"


@pytest.mark.parametrize(
    ("spec", "size"), [(name, size) for name, (_, size) in FACTORIES.items()], ids=list(FACTORIES), indirect=["spec"]
)
def test_image_files_get_the_size_of_a_factory(spec: str, size: tuple[int, int]) -> None:
    assert default_image_size(spec) == size


@pytest.mark.parametrize("spec", ["a default", "a shape that is ignored"], indirect=True)
def test_a_port_builds_a_factory_at_its_own_size(spec: str) -> None:
    assert build_network(f"{spec},classes=3").input_shape == (None, 20, 24, 3)


@pytest.mark.parametrize("spec", ["a shape that is ignored"], indirect=True)
def test_a_mismatch_names_the_size_and_the_flag(spec: str) -> None:
    with pytest.raises(
        ModelSpecError, match=r"images are 8x8, but its input is 20x24; --image_size=20x24 resizes them"
    ):
        build_model(spec, image_shape=(8, 8, 3), outputs=3)


@pytest.mark.parametrize("spec", ["an input signature"], indirect=True)
def test_a_call_that_fails_names_the_size_too(spec: str) -> None:
    with pytest.raises(ModelSpecError, match=r"for another size than 8x8, --image_size=HEIGHTxWIDTH resizes"):
        build_model(spec, image_shape=(8, 8, 3), outputs=3)


@pytest.mark.parametrize("spec", ["an input signature"], indirect=True)
def test_asking_for_the_size_leaves_the_random_generators_alone(spec: str) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), *tf.random.normal([2]).numpy().tolist()]

    keras.utils.set_random_seed(3)
    expected = draw()
    keras.utils.set_random_seed(3)
    default_image_size(spec)
    assert draw() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_shape": (8, 8)}, r"it takes images, but an example of these data is \[8, 8\]"),
        ({"image_shape": 8}, "image_shape=8: expected"),
        ({"image_shape": (8, 8.5, 3)}, "image_shape="),
        ({"image_shape": (8, 0, 3)}, "image_shape="),
        ({"outputs": 0}, "outputs=0: expected a whole number of at least 1"),
        ({"outputs": 2.0}, "outputs=2.0: expected"),
        ({"dtype": "int8"}, "dtype='int8', compute='int8': expected float32 and float32, float32 and bfloat16"),
        ({"dtype": "single"}, "dtype='single'"),
        ({"compute": "float64"}, "compute='float64'"),
    ],
)
def test_build_model_checks_what_it_is_given(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        build_model("cnn:mini", **{"image_shape": (8, 8, 1), "outputs": 3} | given)
