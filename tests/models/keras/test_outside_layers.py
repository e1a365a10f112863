"""Layers without weights around a nested backbone, in the file or in the model only: told or followed at every place."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from engine.data import Normalise
from engine.models.keras import file_weights, heads
from engine.porting import PortError

tf_keras: Any = pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")

X = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
PLACES = [("once", at) for at in ("before", "after")] + [
    ("twice", at) for at in ("before", "inner_before", "inner_after", "after")
]
SYMMETRIC = Normalise(channels=3)


def backbone(k: Any) -> Any:
    image = x = k.Input((8, 8, 3))
    for number in range(2):
        x = k.layers.Conv2D(3, 3, padding="same", name=f"c{number}")(x)
        x = k.layers.BatchNormalization()(x)
    return k.Model(image, x, name="body")


def build(k: Any, nesting: str = "once", at: str = "", *, layer: Any = None, top: bool = True) -> Any:
    """A backbone in one model or two, with a layer without weights at some place; ``net.body`` is the backbone."""
    body = model = backbone(k)
    extra = layer or (lambda: k.layers.Rescaling(0.5, 0.25))

    def here(place: str) -> list[Any]:
        return [extra()] if at == place else []

    if nesting == "twice":
        model = k.Sequential([k.Input((8, 8, 3)), *here("inner_before"), body, *here("inner_after")], name="inner")
    tops = [k.layers.GlobalAveragePooling2D(), k.layers.Dense(3, name="logits")] if top else []
    model = k.Sequential([k.Input((8, 8, 3)), *here("before"), model, *here("after"), *tops])
    rng = np.random.default_rng(7)
    model.set_weights([np.abs(w + rng.normal(0, 0.3, w.shape)) for w in model.get_weights()])
    return model


def write(model: Any, form: str, folder: pathlib.Path) -> str:
    path = folder / f"file.{form}"
    if form == "tf":
        model.save_weights(folder / "tf", save_format="tf")
        return str(folder / "tf")
    model.save_weights(path) if form in ("h5", "weights.h5") else model.save(path)
    return str(path)


def target(outputs: int = 3) -> tuple[Any, Any]:
    body = backbone(keras)
    return heads.add_head(body, heads.parse_head("gap"), outputs), body


def load(path: str, network: Any, body: Any = None, images: Normalise | None = None) -> str:
    said = file_weights.load_file(path, network, backbone=body, images=images)
    assert said is not None
    return said


def cases(quick: list[tuple[Any, str, tuple[str, str]]], forms: list[tuple[Any, str]]) -> list[Any]:
    """A few quick places, and the product of all forms and places, which is slow."""
    rest = [(k, form, place) for (k, form), place in itertools.product(forms, PLACES)]
    return [*quick, *(pytest.param(*each, marks=pytest.mark.slow) for each in rest if each not in quick)]


FORMS = [(keras, "keras"), (keras, "weights.h5"), (tf_keras, "h5"), (tf_keras, "tf")]
MORE = [(tf_keras, "whole.h5"), (tf_keras, "keras"), (tf_keras, "weights.h5")]


TWICE = ("twice", "inner_after")


@pytest.mark.parametrize(
    ("k", "form", "place"),
    cases([(keras, "keras", ("once", "before")), (keras, "keras", TWICE), (tf_keras, "h5", PLACES[0])], FORMS + MORE),
)
def test_a_layer_that_only_the_file_has_is_told(
    k: Any, form: str, place: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    nesting, at = place
    path = write(build(k, nesting, at), form, tmp_path)
    network, body = target()
    said = load(path, network, body)
    if form == "h5" and at.startswith("inner"):
        assert "the file does not list the layers without weights inside body" in said
        return
    assert "rescaling" in said
    if form != "tf":
        assert "the file's own head is left out, since layers without weights differ: " in said
    if form in ("keras", "h5"):
        word, model = "before" if "before" in at else "behind", "inner" if nesting == "twice" else "body"
        assert f"left out of the file, since it lies {word} {model}" in said


@pytest.mark.parametrize(("k", "form", "place"), cases([(keras, "keras", TWICE)], FORMS))
def test_a_layer_that_only_the_model_has_is_refused(
    k: Any, form: str, place: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    path = write(build(k, place[0]), form, tmp_path)
    network = build(keras, *place)
    before = network.get_weights()
    if form == "h5" and place[1].startswith("inner"):
        assert "the file does not list the layers without weights inside inner" in load(path, network)
        return
    with pytest.raises(PortError, match="made for another graph"):
        load(path, network)
    assert all(np.array_equal(one, other) for one, other in zip(before, network.get_weights(), strict=True))


@pytest.mark.parametrize(("k", "form", "place"), cases([(keras, "keras", TWICE)], FORMS))
def test_a_layer_that_both_have_is_followed(k: Any, form: str, place: tuple[str, str], tmp_path: pathlib.Path) -> None:
    source, network = build(k, *place), build(keras, *place)
    assert "all of the model" in load(write(source, form, tmp_path), network)
    np.testing.assert_allclose(network(X, training=False), source(X, training=False), rtol=1e-5, atol=1e-6)


def test_layers_that_lie_at_other_places_are_told_even_where_the_file_holds_no_more_than_names(
    tmp_path: pathlib.Path,
) -> None:
    for form, here, there in (("h5", "before", "after"), ("whole.h5", "after", "before")):
        path = write(build(tf_keras, "once", here), form, tmp_path)
        with pytest.raises(PortError, match=r"made for another graph(?s:.*)rescaling"):
            load(path, build(keras, "once", there))


def test_a_file_that_prepares_images_as_they_are_prepared_here_keeps_its_head(tmp_path: pathlib.Path) -> None:
    def pixels_to(scale: float, offset: float) -> Any:
        return lambda: keras.layers.Rescaling(scale, offset, name="prepare")

    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    source = build(keras, "once", "before", layer=pixels_to(1 / 127.5, -1.0))
    path = write(source, "keras", tmp_path)
    network, body = target()
    said = load(path, network, body, SYMMETRIC)
    assert (
        said
        == "file.keras, all of the model; prepare (rescaling) of the file prepares images as they are prepared here"
    )
    np.testing.assert_allclose(network(SYMMETRIC(pixels)), source(pixels.astype(np.float32)), rtol=1e-4, atol=1e-5)
    path = write(build(keras, "once", "before", layer=pixels_to(1 / 255, 0.0)), "keras", tmp_path)
    with pytest.raises(PortError, match=r"pixels from 0 to 255 become 0 to 1 before .*; here they become -1 to 1"):
        load(path, network, body, SYMMETRIC)


def test_augmentation_around_a_backbone_computes_nothing_in_inference(tmp_path: pathlib.Path) -> None:
    path = write(build(keras, "once", "before", layer=lambda: keras.layers.RandomFlip()), "keras", tmp_path)
    network, body = target()
    assert "left out" not in load(path, network, body).replace("the file's own head is left out", "")


def test_a_model_that_takes_all_of_a_file_takes_its_other_layers_too_or_refuses(tmp_path: pathlib.Path) -> None:
    path = write(build(keras, "once", "before", top=False), "keras", tmp_path)
    with pytest.raises(
        PortError, match=r"made for another graph than the model.*(?s:.*)rescaling\w*: only in the file"
    ):
        file_weights.load_file(path, backbone(keras), whole=True)


def test_weights_alone_say_what_was_not_compared(tmp_path: pathlib.Path) -> None:
    for k, form in (FORMS[0], FORMS[2]):
        network, body = target()
        said = load(write(build(k), form, tmp_path), network, body)
        told = said.count("strides, activations and other arguments were not, since the file does not hold them")
        assert told == (0 if form in ("keras", "whole.h5") else 1), said
