"""Whole weights of Keras models: the file that the user's own code loads, with what the run trained."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from engine import FinetuneConfig, apply_delta, finetune, tensorflow_private
from engine.errors import InputError
from engine.runs import picture, records
from engine.selection.variables import name_variables


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A saved model with a BatchNorm and a final softmax, and its weights beside it."""
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Input((16, 16, 1)),
        keras.layers.Conv2D(3, 3, name="conv"),
        keras.layers.BatchNormalization(name="bn"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(3, activation="softmax", name="head"),
    ]
    model = keras.Sequential(layers, name="small")
    folder = tmp_path_factory.mktemp("base")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.keras"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    yield
    tensorflow_private.disable_op_determinism()


def train(base: pathlib.Path, data: pathlib.Path, out: pathlib.Path, **given: Any) -> Any:
    fields: dict[str, Any] = {"model": f"file:{base},preprocess=unit", "data": f"npz:{data}", "steps": 1}
    fields |= {"batch_size": 8, "cache": "off", "out": str(out), "train": "@head bn/.*"}
    return finetune(FinetuneConfig(**(fields | given)))


def values(model: Any) -> list[bytes]:
    return [np.asarray(weight).tobytes() for weight in model.weights]


def test_the_saved_model_keeps_its_form_and_its_softmax(
    base: pathlib.Path, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = train(base, small_data, tmp_path / "run")
    done = apply_delta(base, tmp_path / "run/trained.npz", tmp_path / "out.keras")
    whole = keras.saving.load_model(tmp_path / "out.keras")
    assert [layer.name for layer in whole.layers] == ["conv", "bn", "pool", "head"]
    assert whole.layers[-1].activation is keras.activations.softmax
    assert values(whole) == values(result.network)
    assert all(name.startswith(("head", "bn")) for name in done.changed)
    moved = keras.saving.load_model(base)
    moved.save(tmp_path / "moved.keras")  # the same model at another place
    apply_delta(tmp_path / "moved.keras", tmp_path / "run/trained.npz", tmp_path / "again.keras")
    assert values(keras.saving.load_model(tmp_path / "again.keras")) == values(result.network)
    moved.layers[0].kernel.assign(moved.layers[0].kernel * 2)
    moved.save(tmp_path / "moved.keras")
    with pytest.raises(InputError, match=r"what differs \(1\): .*conv/kernel: other values"):
        apply_delta(tmp_path / "moved.keras", tmp_path / "run/trained.npz", tmp_path / "no.keras")
    # the same from its weights alone
    apply_delta(base.with_name("model.weights.h5"), tmp_path / "run/trained.npz", tmp_path / "out.weights.h5")
    other = keras.saving.load_model(base)
    other.load_weights(tmp_path / "out.weights.h5")
    assert values(other) == values(result.network)
    with pytest.raises(InputError, match=r"expected a name that ends in \.keras"):
        apply_delta(base, tmp_path / "run/trained.npz", tmp_path / "out.h5")


@pytest.mark.slow
def test_a_new_head_is_saved_with_the_network(
    base: pathlib.Path, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = train(base, small_data, tmp_path / "run", head="gap,4", train="@head")
    apply_delta(base, tmp_path / "run/trained.npz", tmp_path / "out.keras")
    assert values(keras.saving.load_model(tmp_path / "out.keras")) == values(result.network)
    other = keras.saving.load_model(base)
    other.get_layer("conv").kernel.assign(other.get_layer("conv").kernel + 1e-3)
    other.save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="belongs to other weights"):
        apply_delta(tmp_path / "other.keras", tmp_path / "run/trained.npz", tmp_path / "no.keras")
    assert not (tmp_path / "no.keras").exists()
    assert name_variables(result.network)
