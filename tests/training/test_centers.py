"""The centre head's targets and loss equal loops written from the papers; what it finds is what was drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from engine.training import centers
from engine.training.loss_names import LossError

NONE = [-1.0, 0.0, 0.0, 0.0, 0.0]


def make_boxes(seed: int, *, images: int = 4, most: int = 6, classes: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.random([images, most, 2]) * 0.7
    edges = np.concatenate([low, low + 0.02 + rng.random([images, most, 2]) * 0.28], axis=-1)
    number = rng.integers(-1, classes, [images, most, 1]).astype(np.float64)
    return np.concatenate([number, edges], axis=-1)


def least_overlap(height: float, width: float, distance: float) -> float:
    """The least overlap of a box with one whose corners have moved by a distance: in all directions that count."""
    found = []
    for first, second in [(1, 1), (1, -1), (-1, 1)]:  # both right and down, both inwards, both outwards
        top, bottom = first * distance, height + second * distance
        left, right = first * distance, width + second * distance
        if bottom <= top or right <= left:
            return 0.0
        shared = (min(height, bottom) - max(0.0, top)) * (min(width, right) - max(0.0, left))
        found.append(shared / (height * width + (bottom - top) * (right - left) - shared))
    return min(found)


def test_the_radius_is_the_largest_that_keeps_the_overlap() -> None:
    for height, width in [(1.0, 1.0), (10.0, 3.0), (40.0, 40.0), (0.2, 7.0), (100.0, 2.0)]:
        radius = float(centers.find_radius(tf.constant(height, tf.float64), tf.constant(width, tf.float64)))
        assert least_overlap(height, width, radius) == pytest.approx(centers.OVERLAP, abs=1e-9)
        assert least_overlap(height, width, radius * 0.99) > centers.OVERLAP


def naive_heat(boxes: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    heat = np.zeros([height, width, classes])
    for number, x1, y1, x2, y2 in boxes:
        if number < 0:
            continue
        wide, high = (x2 - x1) * width, (y2 - y1) * height
        column, row = math.floor((x1 + x2) / 2 * width), math.floor((y1 + y2) / 2 * height)
        radius = 0
        while least_overlap(high, wide, radius + 1) >= centers.OVERLAP:
            radius += 1
        deviation = (2 * radius + 1) / 6
        for y in range(max(0, row - radius), min(height, row + radius + 1)):
            for x in range(max(0, column - radius), min(width, column + radius + 1)):
                value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * deviation**2))
                heat[y, x, int(number)] = max(heat[y, x, int(number)], value)
    return heat


def naive_loss(outputs: np.ndarray, boxes: np.ndarray, classes: int) -> list[float]:
    height, width = outputs.shape[:2]
    wanted = naive_heat(boxes, height, width, classes)
    heat = 0.0
    for place in np.ndindex(height, width, classes):
        chance = 1 / (1 + math.exp(-outputs[place]))
        if wanted[place] == 1:
            heat -= (1 - chance) ** 2 * math.log(chance)
        else:
            heat -= (1 - wanted[place]) ** 4 * chance**2 * math.log(1 - chance)
    size = offset = 0.0
    for number, x1, y1, x2, y2 in boxes:
        if number < 0:
            continue
        x, y = (x1 + x2) / 2 * width, (y1 + y2) / 2 * height
        said = outputs[math.floor(y), math.floor(x), classes:]
        size += abs(said[0] - (x2 - x1) * width) + abs(said[1] - (y2 - y1) * height)
        offset += abs(said[2] - (x - math.floor(x))) + abs(said[3] - (y - math.floor(y)))
    return [heat, size, offset, float((boxes[:, 0] >= 0).sum())]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 20), (24, 16)])
def test_targets_and_loss_equal_loops_from_the_papers(height: int, width: int) -> None:
    boxes = make_boxes(height)
    boxes[0, :, 0] = -1.0  # an image without objects
    outputs = np.random.default_rng(1).normal(size=[len(boxes), height, width, 2 + 4])
    targets = centers.draw_targets(tf.constant(boxes), height, width, 2)
    for found, own in zip(targets.heat.numpy(), boxes, strict=True):
        np.testing.assert_allclose(found, naive_heat(own, height, width, 2), atol=1e-12)
    found = np.stack(centers.measure_centers(tf.constant(outputs), tf.constant(boxes)), axis=1)
    wanted = [naive_loss(out, own, 2) for out, own in zip(outputs, boxes, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_objects_in_one_cell_both_count_and_the_next_class_has_its_own_map() -> None:
    boxes = np.array([[[0, 0.1, 0.1, 0.3, 0.3], [0, 0.05, 0.05, 0.35, 0.35], [1, 0.1, 0.1, 0.3, 0.3]]])
    targets = centers.draw_targets(tf.constant(boxes), 8, 8, 2)
    assert targets.heat.numpy()[0, 1, 1].tolist() == [1.0, 1.0]
    assert (targets.heat.numpy() == 1).sum() == 2
    assert centers.measure_centers(tf.zeros([1, 8, 8, 6], tf.float64), tf.constant(boxes)).objects.numpy() == [3]


def draw_outputs(boxes: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    """The maps of a head that is always right."""
    targets = centers.draw_targets(tf.constant(boxes), height, width, classes)
    heat = np.clip(targets.heat.numpy(), 1e-6, 1 - 1e-6)
    maps = np.zeros([len(boxes), height * width, 4])
    for image, cells in enumerate(targets.cells.numpy()):
        for place, cell in enumerate(cells):
            if boxes[image, place, 0] >= 0:
                maps[image, cell] = targets.geometry.numpy()[image, place]
    logits = np.log(heat / (1 - heat))
    return np.concatenate([logits, maps.reshape(len(boxes), height, width, 4)], axis=-1)


def test_what_is_found_is_what_was_drawn() -> None:
    boxes = np.array([
        [[0, 0.1, 0.1, 0.3, 0.4], [1, 0.5, 0.55, 1.0, 0.95], [1, 0.0, 0.8, 0.1, 1.0]],
        [[1, 0.2, 0.2, 0.25, 0.3], NONE, NONE],
        [NONE, NONE, NONE],
    ])  # fmt: skip
    found = centers.find_boxes(tf.constant(draw_outputs(boxes, 16, 20, 2)), 5).numpy()
    assert found.shape == (3, 5, 6)
    for own, seen in zip(boxes, found, strict=True):
        wanted = sorted(map(tuple, own[own[:, 0] >= 0].round(6)))
        sure = seen[seen[:, 1] > 0.9]
        assert sorted(map(tuple, np.delete(sure, 1, axis=1).round(6))) == wanted


def test_fewer_cells_than_wanted_and_plateaus_are_no_fault() -> None:
    flat = tf.zeros([2, 2, 3, 1 + 4])
    found = centers.find_boxes(flat, 100).numpy()
    assert found.shape == (2, 6, 6)
    assert (found[..., 1] == 0.5).all()  # all cells are maxima
    peak = np.full([1, 3, 3, 5], 0.0)
    peak[0, 1, 1, 0] = 1.0
    found = centers.find_boxes(tf.constant(peak), 100).numpy()
    assert (found[0, :, 0] >= 0).sum() == 1
    assert found[0, 1:, 1].max() == 0.0


def test_no_gradient_is_lost_or_undefined_where_there_are_no_objects() -> None:
    boxes = tf.constant([[NONE], [[0.0, 0.2, 0.2, 0.6, 0.6]]])
    outputs = tf.Variable(tf.random.stateless_normal([2, 4, 4, 5], seed=[0, 1]))
    with tf.GradientTape() as tape:
        found = centers.measure_centers(outputs, boxes)
        total = tf.reduce_sum(found.heat + found.size + found.offset)
    gradient = tape.gradient(total, outputs).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[..., 0] != 0).all()
    assert not gradient[0, ..., 1:].any()


@pytest.mark.parametrize(
    ("outputs", "boxes", "words"),
    [
        ([2, 6], [2, 3, 5], "the model's outputs have shape (2, 6); expected [B, h, w, classes + 4]"),
        ([2, 4, 4, 4], [2, 3, 5], "expected [B, h, w, classes + 4]"),
        ([2, 4, 4, 6], [2], "labels have shape (2,); expected boxes [B, K, 5]"),
        ([2, 4, 4, 6], [2, 3, 4], "expected boxes [B, K, 5]"),
    ],
)
def test_other_shapes_are_refused_in_words(outputs: list[int], boxes: list[int], words: str) -> None:
    with pytest.raises(LossError) as error:
        centers.measure_centers(tf.zeros(outputs), tf.zeros(boxes))
    assert words in str(error.value)
