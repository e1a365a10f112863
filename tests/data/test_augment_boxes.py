"""Boxes move with the pixels of their images, in batches of images and of cached features alike."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from engine.data.augment import AugmentError, augment
from engine.data.augment_boxes import move_boxes
from engine.data.batches import EvalBatches, TrainBatches
from engine.data.part import Part
from engine.seeds import example_seeds

SIZE = (40, 60)


def make_part(count: int = 24) -> Part:
    """Images with one white box each on grey, away from the middle, and a row that is not a box."""
    rng = np.random.default_rng(0)
    images = np.full([count, *SIZE, 3], 64, np.uint8)
    labels = np.zeros([count, 2, 5], np.float32)
    labels[:, 1, 0] = -1
    for image, label in zip(images, labels, strict=True):
        x, y = rng.integers(10, 38), rng.integers(8, 22)
        wide, high = rng.integers(6, 12, 2)
        image[y : y + high, x : x + wide] = 255
        label[0] = [1, x / SIZE[1], y / SIZE[0], (x + wide) / SIZE[1], (y + high) / SIZE[0]]
    return Part(images, labels, np.arange(count, dtype=np.int64))


def measure(image: np.ndarray) -> np.ndarray:
    """The edges of what is light in an image, as shares of its sides; to a part of a pixel."""
    light = np.clip((image.mean(axis=-1) - 64 / 255) / (191 / 255), 0, 1)
    edges = []
    for axis, side in ((0, SIZE[1]), (1, SIZE[0])):
        profile = light.max(axis=axis)
        inside = np.flatnonzero(profile > 0.05)
        first, last = inside[0], inside[-1]
        edges.append(((first + 1 - profile[first]) / side, (last + profile[last]) / side))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


@pytest.mark.parametrize("kinds", [("flip",), ("crop",), ("zoom",), ("flip", "crop", "zoom")], ids="+".join)
def test_boxes_move_as_pixels_do(kinds: tuple[str, ...]) -> None:
    part = make_part()
    batch = part.read(np.arange(len(part)))
    seeds = example_seeds(3, 1, batch["index"])
    images = augment(tf.constant(batch["image"] / np.float32(255)), seeds, kinds, fill="mean").numpy()
    boxes = move_boxes(tf.constant(batch["label"]), tf.constant(seeds), kinds, height=SIZE[0], width=SIZE[1]).numpy()
    moved = 0
    for image, before, after in zip(images, batch["label"], boxes, strict=True):
        assert after[1].tolist() == [-1, 0, 0, 0, 0]
        moved += bool((before != after).any())
        np.testing.assert_allclose(
            after[0, 1:] * np.tile(SIZE[::-1], 2), measure(image) * np.tile(SIZE[::-1], 2), atol=0.8
        )
        assert after[0, 0] == 1
    assert moved > len(images) // 4


def test_boxes_that_leave_the_image_are_cut_and_then_none() -> None:
    seeds = example_seeds(0, 0, np.arange(64))
    edge = np.tile(np.array([[[0, 0.0, 0.4, 0.06, 0.6]]], np.float32), (64, 1, 1))
    found = move_boxes(tf.constant(edge), tf.constant(seeds), ("crop",), height=40, width=40).numpy()[:, 0]
    gone = found[:, 0] < 0
    assert 0 < gone.sum() < 64
    assert not found[gone, 1:].any()
    widths = found[~gone, 3] - found[~gone, 1]
    assert widths.min() >= 0.25 * 0.06 - 1e-6
    assert widths.max() == pytest.approx(0.06, abs=1e-6)


def test_batches_move_labels_by_the_draws_of_their_images_in_every_epoch() -> None:
    part = make_part(8)
    batches = TrainBatches(part, batch_size=8, seed=5, augment=("flip", "crop"))
    seen = []
    for step in (0, 1):
        batch = batches.at(step)
        for image, boxes in zip(batch["image"].numpy(), batch["label"].numpy(), strict=True):
            shown = measure(image * 0.5 + 0.5)  # normalised to -1 ... 1
            np.testing.assert_allclose(boxes[0, 1:], shown, atol=0.03)
        epoch, positions = batches.place(step)
        np.testing.assert_array_equal(batches.prepared_rest(positions, epoch)["label"], batch["label"])
        seen.append(batch["label"].numpy()[np.argsort(batch["index"])])
    assert (seen[0] != seen[1]).any()
    plain = next(iter(EvalBatches(part, batch_size=8)))
    np.testing.assert_array_equal(plain["label"], part.labels)


def test_rotation_is_refused_for_boxes() -> None:
    with pytest.raises(
        AugmentError, match=r"`rotate` turns objects.*expected any of flip, crop, zoom, color, contrast"
    ):
        TrainBatches(make_part(4), batch_size=2, augment=("flip", "rotate"))
