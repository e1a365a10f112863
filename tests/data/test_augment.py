"""Augmentation: each example's own, in range, and geometry exact where it can be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from engine.data.augment import COLOR, CONTRAST, CROP, KINDS, AugmentError, augment, parse
from engine.seeds import example_seeds

SIZE = 16
kinds = pytest.mark.parametrize("kind", KINDS)


def images(count: int = 12, *, channels: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, channels), np.float32)


def seeds(count: int = 12, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return example_seeds(seed, epoch, np.arange(count))


def changed(batch: np.ndarray, *wanted: str, using: np.ndarray | None = None) -> np.ndarray:
    return augment(batch, seeds(len(batch)) if using is None else using, wanted).numpy()


@kinds
def test_each_kind_changes_something_and_keeps_shape_and_type(kind: str) -> None:
    batch = images()
    found = changed(batch, kind)
    assert found.shape == batch.shape
    assert found.dtype == np.float32
    assert sum((a != b).any() for a, b in zip(found, batch, strict=True)) >= 3  # flip leaves about half as they are


@pytest.mark.parametrize("wanted", [*((kind,) for kind in KINDS), KINDS], ids="+".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_results_stay_between_zero_and_one(wanted: tuple[str, ...], channels: int) -> None:
    batch = images(channels=channels)
    batch[::3] = 0.0
    batch[1::3] = 1.0
    found = changed(batch, *wanted)
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    assert np.isfinite(found).all()


def test_without_kinds_nothing_is_touched() -> None:
    batch = images()
    np.testing.assert_array_equal(augment(batch, seeds(), ()), batch)


@pytest.mark.parametrize("wanted", [*((kind,) for kind in KINDS), KINDS], ids="+".join)
def test_an_examples_result_does_not_depend_on_its_batch(wanted: tuple[str, ...]) -> None:
    batch, rows = images(), seeds()
    whole = changed(batch, *wanted, using=rows)
    for chosen in ([7], [11, 2, 7], list(range(4))):
        found = changed(batch[chosen], *wanted, using=rows[chosen])
        # contrast's mean of 256 numbers may be summed in another order, warps may use fused
        # multiply-adds in vectors and not in rests: a few roundings of numbers below 1
        np.testing.assert_allclose(found, whole[chosen], atol=1e-6, rtol=0)


@kinds
def test_seed_epoch_and_index_decide_and_nothing_else(kind: str) -> None:
    batch = images()
    np.testing.assert_array_equal(changed(batch, kind), changed(batch, kind))
    for other in (seeds(seed=1), seeds(epoch=1), example_seeds(0, 0, np.arange(12, 24))):
        assert (changed(batch, kind, using=other) != changed(batch, kind)).any()


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KINDS, 2)))
def test_kinds_draw_for_themselves(one: str, other: str) -> None:
    """Which of many examples change most by one kind says nothing about the other."""
    batch = np.repeat(images(1), 300, axis=0)
    amounts = [np.abs(changed(batch, kind) - batch).mean(axis=(1, 2, 3)) for kind in (one, other)]
    # the correlation of 300 independent pairs has standard deviation 0.058; five of them
    assert abs(np.corrcoef(amounts)[0, 1]) < 0.29


# --- geometry ---


def test_flip_is_the_exact_mirror_image_of_about_half() -> None:
    batch = images(200, size=4)
    found = changed(batch, "flip")
    mirrored = (found == batch[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (found == batch).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 65 <= mirrored.sum() <= 135  # five standard deviations of 200 coins


def test_a_crop_alone_moves_by_whole_pixels_and_mirrors_at_the_edge() -> None:
    batch = images(60)
    most = round(CROP * SIZE)
    padded = np.pad(batch, [(0, 0), (most, most), (most, most), (0, 0)], mode="symmetric")
    shifts = set()
    for found, source in zip(changed(batch, "crop"), padded, strict=True):
        places = [
            (down - most, right - most)
            for down in range(2 * most + 1)
            for right in range(2 * most + 1)
            if np.array_equal(source[down : down + SIZE, right : right + SIZE], found)
        ]
        assert len(places) == 1
        shifts.update(places)
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(-most, most + 1))


@pytest.mark.parametrize("kind", ["rotate", "zoom"])
def test_rotation_and_zoom_keep_the_centre(kind: str) -> None:
    batch = images(20, size=17)
    np.testing.assert_allclose(changed(batch, kind)[:, 8, 8], batch[:, 8, 8], atol=1e-5)  # bilinear at a 1e-6 offset


@pytest.mark.parametrize("kind", ["crop", "rotate", "zoom"])
def test_geometry_leaves_a_plain_image_as_it_is(kind: str) -> None:
    plain = np.full((8, SIZE, SIZE, 3), 0.25, np.float32)
    np.testing.assert_allclose(changed(plain, kind), plain, atol=1e-6)  # bilinear weights sum to 1 within roundings


def test_rotation_turns_around_the_centre_by_at_most_fifteen_degrees() -> None:
    size = 65
    batch = np.zeros((40, size, size, 1), np.float32)
    batch[:, 31:34, 56:59] = 1.0  # a spot 25 pixels to the right of the centre
    found = changed(batch, "rotate")[..., 0]
    grid = np.arange(size) - 32
    mass = found.sum(axis=(1, 2))
    down, right = (found * grid[:, None]).sum(axis=(1, 2)) / mass, (found * grid).sum(axis=(1, 2)) / mass
    np.testing.assert_allclose(np.hypot(down, right), 25.0, atol=0.5)  # half a pixel of resampling
    angles = np.degrees(np.arctan2(down, right))
    assert np.abs(angles).max() < 15.5
    assert angles.min() < -8
    assert angles.max() > 8


# --- colour ---


def test_contrast_scales_around_each_channels_mean() -> None:
    batch = (0.4 + 0.2 * images()).astype(np.float32)  # far enough from 0 and 1 not to be clipped
    found = changed(batch, "contrast")
    mean = batch.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.mean(axis=(1, 2), keepdims=True), mean, atol=1e-6)
    factors = ((found - mean) * (batch - mean)).sum(axis=(1, 2, 3)) / ((batch - mean) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found, mean + factors[:, None, None, None] * (batch - mean), atol=1e-6)
    assert np.abs(factors - 1).max() <= CONTRAST + 1e-6
    assert len(set(factors.tolist())) == len(batch)


def test_color_of_a_grey_image_is_brightness_alone() -> None:
    batch = (0.4 + 0.2 * images(channels=1)).astype(np.float32)
    shift = changed(batch, "color") - batch
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-6)
    assert 0.0 < np.abs(shift).max() <= COLOR + 1e-6


def test_color_of_three_equal_channels_leaves_them_equal() -> None:
    batch = np.repeat(0.4 + 0.2 * images(channels=1), 3, axis=-1).astype(np.float32)
    found = changed(batch, "color")
    # the weights of grey sum to 1 within a rounding
    np.testing.assert_allclose(found, np.broadcast_to(found[..., :1], found.shape), atol=1e-6)


# --- parse ---


def test_a_list_of_kinds_is_read() -> None:
    assert parse("") == ()
    assert parse("flip, crop") == ("flip", "crop")
    assert parse(",".join(KINDS)) == KINDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "`flop` is not one of flip, crop, color, rotate, zoom, contrast; nearest: flip"),
        ("flip,crop,flip", "`flip` is named twice"),
        ("Flip", "`Flip` is not one of"),
    ],
)
def test_what_is_no_list_of_kinds_is_refused(text: str, message: Any) -> None:
    with pytest.raises(AugmentError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert f"augment={text!r}" in str(caught.value)
