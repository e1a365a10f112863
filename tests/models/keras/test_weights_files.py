"""Keras' own weights files, as the reverse porting reads them: by the names of layers or attributes, or refused."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from engine.files import FileError
from engine.models.keras.weights_file import load_weights_file

X = np.random.default_rng(0).uniform(-1, 1, (2, 8)).astype(np.float32)


def branches(order: tuple[str, str], *, last: Any = None) -> Any:
    """Two equal layers, made in this order; which is which shows in the result."""
    image = keras.Input((8,))
    made = {name: keras.layers.Dense(4, name=name)(image) for name in order}
    joined = keras.layers.Concatenate()([made[name] for name in order]) if last is None else last(made)
    return keras.Model(image, keras.layers.Dense(3, name="head")(joined))


def subtract(made: Any) -> Any:
    return keras.layers.Subtract()([made["a"], made["b"]])


class Own(keras.Model):
    """A model that is not a graph of layers; ``names`` are those of its layers, whose attributes stay the same."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.first, self.second = (keras.layers.Dense(8, name=name) for name in names)
        self(X)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def test_layers_made_in_another_order_are_matched_by_name(tmp_path: pathlib.Path) -> None:
    source, target = branches(("a", "b"), last=subtract), branches(("b", "a"), last=subtract)
    source.save_weights(tmp_path / "w.weights.h5")
    assert "all of the model" in load_weights_file(target, tmp_path / "w.weights.h5")
    np.testing.assert_allclose(target(X), source(X), rtol=1e-6)


def test_a_file_of_other_layers_changes_nothing(tmp_path: pathlib.Path) -> None:
    image = keras.Input((8,))
    other = keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.Dense(4, name="a")(image)))
    other.save_weights(tmp_path / "w.weights.h5")
    target = branches(("a", "b"))
    before = target.get_weights()
    with pytest.raises(FileError, match="does not fit the model"):
        load_weights_file(target, tmp_path / "w.weights.h5")
    assert all(np.array_equal(one, two) for one, two in zip(before, target.get_weights(), strict=True))


def test_a_model_of_a_class_of_its_own_is_matched_by_attributes_or_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "w.weights.h5"
    source = Own("encoder", "decoder")
    source.save_weights(path)
    target = Own("encoder", "decoder")
    assert load_weights_file(target, path).endswith("by the names of its attributes")
    np.testing.assert_allclose(target(X), source(X), rtol=1e-6)
    swapped = Own("decoder", "encoder")
    before = swapped.get_weights()
    with pytest.raises(FileError, match=r"layers that differ(?s:.*)coder in the model, \w+coder in the file"):
        load_weights_file(swapped, path)
    assert all(np.array_equal(one, two) for one, two in zip(before, swapped.get_weights(), strict=True))
