"""What of a saved model is its top: only that is cut off for a new head, and it is named."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from engine.models import build_model
from engine.models.keras.heads import HeadError
from engine.selection.variables import name_variables

layers = keras.layers


def body(channels: int = 5) -> list[Any]:
    """A feature map that ends in BatchNorm and ReLU, as the bases of keras.applications do."""
    return [layers.Conv2D(4, 3), layers.ReLU(), layers.Conv2D(channels, 3), layers.BatchNormalization(), layers.ReLU()]


def stacked(*stack: Any) -> Any:
    return keras.Sequential([keras.Input((8, 8, 3)), *stack])


def tokens() -> Any:
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((4, 5))(layers.Conv2D(5, 4, 4)(image))
    return keras.Model(image, layers.LayerNormalization()(x)[:, 0])


def joined(last: Callable[[Any, Any], Any]) -> Any:
    image = keras.Input((8, 8, 3))
    return keras.Model(image, last(layers.Conv2D(5, 3)(image), layers.Conv2D(5, 3)(image)))


def gap() -> Any:
    return layers.GlobalAveragePooling2D()


KEPT: dict[str, Callable[[], Any]] = {
    "a feature map": lambda: stacked(*body()),
    "a nested base": lambda: stacked(stacked(*body())),
    "pooled features": lambda: stacked(*body(), gap()),
    "a nested base that pools": lambda: stacked(layers.Rescaling(1.0), stacked(*body(), gap())),
    "maximum, then dropout": lambda: stacked(*body(), layers.GlobalMaxPooling2D(), layers.Dropout(0.5)),
    "flattened features": lambda: stacked(*body(), layers.Flatten()),
    "pooled with places": lambda: stacked(*body(), layers.GlobalAveragePooling2D(keepdims=True)),
    "pooled and normalised": lambda: stacked(*body(), gap(), layers.BatchNormalization()),
    "a hidden layer with ReLU": lambda: stacked(*body(), gap(), layers.Dense(6, "relu")),
    "a token after LayerNorm": tokens,
    "maps that are added": lambda: joined(lambda a, b: layers.Add()([a, b])),
    "a map of one place": lambda: stacked(*body(), layers.AveragePooling2D(4), layers.Conv2D(5, 1)),
    "a mask": lambda: stacked(*body(), layers.Conv2D(2, 1, activation="softmax")),
}
# name -> (model, the paths of its top)
CUT: dict[str, tuple[Callable[[], Any], str, str]] = {
    "logits": (lambda: stacked(*body(), gap(), layers.Dense(7, name="top")), "top/", "its top top with 7 outputs"),
    "softmax": (
        lambda: stacked(*body(), gap(), layers.Dense(7, name="top"), layers.Softmax(name="end")),
        "top/",
        "its top top with 7 outputs, end",
    ),
    "a convolution on a pooled map": (
        lambda: stacked(
            *body(), layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(7, 1, name="top"), layers.Flatten(name="f")
        ),
        "top/",
        "its top top with 7 outputs, f",
    ),
    "a convolution that is pooled to probabilities": (
        lambda: stacked(*body(), layers.Conv2D(7, 1, name="top"), layers.GlobalAveragePooling2D(name="gap"), layers.Softmax(name="end")),
        "top/",
        "its top top with 7 outputs, gap, end",
    ),
    "a normalisation before softmax": (
        lambda: stacked(*body(), gap(), layers.Dense(7, name="top"), layers.BatchNormalization(name="bn"), layers.Softmax(name="end")),
        ("top/", "bn/"),  # type: ignore[dict-item]
        "its top top with 7 outputs, bn, end",
    ),
}  # fmt: skip


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def build(model: Any) -> Any:
        monkeypatch.setitem(sys.modules, "top_code", types.SimpleNamespace(make=lambda shape, outputs: model))
        return build_model("py:top_code:make", image_shape=(8, 8, 3), outputs=3, head="gap")

    return build


@pytest.mark.parametrize("case", KEPT)
def test_a_model_without_a_top_keeps_all_its_layers(case: str, adopted: Any) -> None:
    saved = KEPT[case]()
    pixels = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    expected, paths = saved(pixels), [entry.path for entry in name_variables(saved)]
    model = adopted(saved)
    found = [entry.path for entry in name_variables(model.network)]
    assert len(found) == len(paths) + 2
    np.testing.assert_array_equal(model.network.layers[1](pixels), expected)
    assert any("no layer is cut off: its outputs of" in note for note in model.notes)


@pytest.mark.parametrize("case", CUT)
def test_a_top_is_cut_off_and_named(case: str, adopted: Any) -> None:
    make, top, note = CUT[case]
    saved = make()
    paths = [entry.path for entry in name_variables(saved) if not entry.path.startswith(top)]
    model = adopted(saved)
    found = [entry.path.partition("/")[2] for entry in name_variables(model.network)]
    assert found[: len(paths)] == paths
    assert len(found) == len(paths) + 2
    assert any(f"cut off: {note}" in line for line in model.notes), model.notes


def test_a_top_that_joins_tensors_is_refused(adopted: Any) -> None:
    with pytest.raises(HeadError, match="which joins 2 tensors"):
        adopted(joined(lambda a, b: layers.Add()([layers.Dense(3)(layers.Flatten()(x)) for x in (a, b)])))
    with pytest.raises(HeadError, match="its last layer is the whole model"):
        adopted(stacked(stacked(*body(), gap(), layers.Dense(7))))
