"""What the library is given: images, positions and sizes are taken as what they are, or refused with the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import load_weights, open_data, select
from engine.data import DataError, EvalBatches, Normalise, Part, TrainBatches
from engine.errors import InputError
from engine.models import build_model
from engine.models.images import build_preprocessing
from engine.porting import PortError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
UNIT = PIXELS.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe", "unit", "pixels"])
def test_normalise_takes_bytes_and_floats_alike(mode: str) -> None:
    normalise = build_preprocessing(mode, 3)
    expected = normalise(tf.constant(UNIT))
    for given in (PIXELS, tf.constant(PIXELS), UNIT, UNIT.astype(np.float64)):
        found = normalise(given)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(normalise(PIXELS), expected)
    traced = tf.function(normalise)
    np.testing.assert_allclose(traced(tf.constant(PIXELS)), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UNIT * 255, "float32 with values from 0 to 255; expected 0 to 1 .divide pixels by 255, or give them as uint8"),
        (UNIT * 2 - 1, "with values from -1 to 1; expected 0 to 1"),
        (UNIT.astype(np.float64) * np.nan, "with values from nan to nan"),
        (PIXELS.astype(np.int64), "images: int64; expected uint8, or float with values in"),
        (PIXELS[..., :2], r"images: shape \[6, 4, 5, 2\]; expected 1 or 3 channels in the last place"),
        (PIXELS[:, :, :, 0], r"images: shape \[6, 4, 5\]; expected 1 or 3 channels"),
    ],
)
def test_normalise_refuses_images_that_it_would_get_wrong(images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_preprocessing("tf", 3)(images)
    if "channels" in message:
        with pytest.raises(DataError, match="expected 3 channels"):
            Normalise(mean=(0.5, 0.4, 0.3), std=(1.0,))(images)


def part(images: Any = PIXELS, labels: Any = None) -> Part:
    return Part(images, np.arange(len(images)) % 3 if labels is None else labels, np.arange(len(images)))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.astype(np.int64), None, "images: int64; expected uint8, or float32 with values in"),
        (UNIT.astype(np.float64), None, r"images: float64; expected .*images.astype\(np.float32\)"),
        (UNIT * 255, None, "images: float32 with values from 0 to 255; expected 0 to 1"),
        (PIXELS[:, :, :, 0], None, r"images: shape \[6, 4, 5\]; expected \[n, height, width, channels\]"),
        (PIXELS, np.array(list("abcdef")), r"labels: <U1 \[6\]; expected int64 \[m\] \(classes\)"),
        (PIXELS, np.zeros([6, 2, 2, 2]), r"labels: float64 \[6, 2, 2, 2\]"),
    ],
)
def test_a_part_refuses_images_and_labels_of_other_kinds(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        part(images, labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, np.float16])
def test_small_labels_are_widened(dtype: Any) -> None:
    labels = np.arange(6).astype(dtype)
    found = part(labels=labels).labels
    assert found.dtype == (np.float32 if dtype == np.float16 else np.int64)
    np.testing.assert_array_equal(found, labels)


def test_take_and_read_say_what_they_expect() -> None:
    whole = part()
    mask = np.array([True, False, True, False, False, False])
    for given in (np.array([0, 2]), [0, 2], (0, 2), mask, np.array([0, 2], np.uint8)):
        assert whole.take(given).index.tolist() == [0, 2]
    assert len(whole.take([])) == 0
    for method in (whole.take, whole.read):
        for wrong, message in (
            (2, r"positions=2: expected an array of positions, int64 \[m\], .* 0 to 5; np.arange\(2\) are the first 2"),
            ([0.5], "expected an array of positions"),
            ([[0], [1]], "expected an array of positions"),
            (mask[:3], "expected an array of positions"),
            ([0, 6], r"positions\[1\]=6: there are 6 examples, at positions 0 to 5"),
            ([-1], r"positions\[0\]=-1: there are 6 examples"),
        ):
            with pytest.raises(DataError, match=message):
                method(wrong)  # type: ignore[arg-type]


def test_sizes_may_be_given_in_every_form_and_are_checked() -> None:
    shapes = {
        open_data("fashion_mnist_mini", train_examples=2, image_size=size).image_shape
        for size in (14, "14", "14x14", (14, 14), [14, 14], np.int64(14))
    }
    assert shapes == {(14, 14, 1)}
    for wrong in (14.5, (14,), (14, 14, 1), ("a", 2), True, 0, -3):
        with pytest.raises(DataError, match="image_size="):
            open_data("fashion_mnist_mini", image_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"train_examples=2.5: expected a whole number"):
        open_data("fashion_mnist_mini", train_examples=2.5)  # type: ignore[arg-type]
    for batches in (TrainBatches, EvalBatches):
        with pytest.raises(DataError, match=r"batch_size=2.0: expected a whole number"):
            batches(part(), batch_size=2.0)  # type: ignore[arg-type]


def test_what_a_selection_trains_has_a_shape() -> None:
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3)
    assert [entry.shape for entry in select(model.network, "head/.*").trained][1:] == [(3,)]


def test_weights_load_into_a_bare_network_from_every_file(tmp_path: Any) -> None:
    import keras

    def network() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Normalization(), keras.layers.Dense(3)])

    saved, x = network(), np.ones([2, 4], np.float32)
    saved.layers[0].adapt(np.random.default_rng(0).normal(3, 2, (20, 4)).astype(np.float32))
    for name in ("a.weights.h5", "b.keras", "c.npz"):
        if name.endswith(".h5"):
            saved.save_weights(tmp_path / name)
        elif name.endswith(".keras"):
            saved.save(tmp_path / name)
        else:
            paths = {entry.path: entry.variable.numpy() for entry in select(saved, "@all").variables}
            np.savez(tmp_path / name, **paths)
        loaded = network()
        load_weights(loaded, tmp_path / name)
        np.testing.assert_array_equal(loaded(x), saved(x), name)
    with pytest.raises(PortError, match=r"weights='auto': Sequential is a bare network; expected a file"):
        load_weights(network())
    with pytest.raises(
        InputError, match=r"model=list: expected what build_model returns, a Keras model or a tf.Module"
    ):
        load_weights([], tmp_path / "c.npz")
