"""Average precision equals a second implementation, written from the definition, on random and on awkward cases."""

from __future__ import annotations

import fractions

import numpy as np
import pytest

from engine.training import average_precision
from engine.training.average_precision import average, match_detections, measure_average_precision, rate_detections

Fraction = fractions.Fraction


def naive_overlap(one: list[float], other: list[float]) -> Fraction:
    """Intersection over union in exact arithmetic."""
    a, b = ([Fraction(float(value)) for value in box] for box in (one, other))
    wide = max(Fraction(0), min(a[2], b[2]) - max(a[0], b[0]))
    high = max(Fraction(0), min(a[3], b[3]) - max(a[1], b[1]))
    shared = wide * high
    covered = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / covered if covered else Fraction(0)


def naive_hits(found: np.ndarray, truth: np.ndarray, number: int) -> list[tuple[float, bool]]:
    """The score of each detection of a class, and whether it finds an object: image by image, one after the other."""
    pairs = []
    for detections, objects in zip(found.tolist(), truth.tolist(), strict=True):
        left = [box[1:] for box in objects if box[0] == number]
        for _, score, *box in sorted((d for d in detections if d[0] == number), key=lambda d: -d[1]):
            each = [naive_overlap(box, other) for other in left]
            hit = bool(each) and max(each) >= Fraction(1, 2)
            if hit:
                left.pop(each.index(max(each)))
            pairs.append((score, hit))
    return pairs


def naive_average_precision(found: np.ndarray, truth: np.ndarray, number: int) -> float | None:
    """The area below the curve of precision over recall, where each score is a threshold."""
    objects = int((truth[..., 0] == number).sum())
    if objects == 0:
        return None
    pairs = naive_hits(found, truth, number)
    curve = []
    for threshold in {score for score, _ in pairs}:
        chosen = [hit for score, hit in pairs if score >= threshold]
        curve.append((Fraction(sum(chosen), objects), Fraction(sum(chosen), len(chosen))))
    area, before = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in curve}):
        area += (recall - before) * max(precision for other, precision in curve if other >= recall)
        before = recall
    return float(area)


def make_case(seed: int, *, classes: int = 3, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random objects, and detections that are near them, elsewhere, repeated, or none; on a grid, so that overlaps tie."""
    rng = np.random.default_rng(seed)
    images, most, places = int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(1, 12))
    corner = rng.integers(0, 6, [images, most, 2]) / 8
    edges = np.concatenate([corner, corner + rng.integers(1, 4, [images, most, 2]) / 8], axis=-1)
    number = rng.integers(-1, classes, [images, most, 1]).astype(np.float64)
    truth = np.concatenate([number, edges], axis=-1)
    near = truth[np.arange(images)[:, None], rng.integers(0, most, [images, places])]
    moved = near[..., 1:] + rng.integers(-1, 2, [images, places, 4]) * rng.choice([0.0, 1 / 16, 1 / 8])
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2])  # some without area
    scores = rng.random([images, places, 1])
    if ties:
        scores = np.ceil(scores * 3) / 4
    found = np.concatenate([near[..., :1], scores, moved], axis=-1)
    found[rng.random([images, places]) < 0.2, 0] = rng.integers(0, classes)
    found[rng.random([images, places]) < 0.2] = (-1, 0, 0, 0, 0, 0)
    return found.astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct scores", "equal scores"])
def test_it_equals_the_definition_on_random_cases(ties: bool) -> None:
    for seed in range(150):
        found, truth = make_case(seed, ties=ties)
        rated = rate_detections(found, truth, 3)
        for number, value in enumerate(rated):
            wanted = naive_average_precision(found, truth, number)
            assert (value is None) == (wanted is None), (seed, number)
            assert value is None or value == pytest.approx(wanted, abs=1e-12), (seed, number)


def test_the_order_of_images_does_not_matter() -> None:
    found, truth = make_case(11, ties=True)
    order = np.random.default_rng(1).permutation(len(found))
    assert rate_detections(found[order], truth[order], 3) == rate_detections(found, truth, 3)


BOX = [0.25, 0.25, 0.75, 0.75]
NONE = [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("found", "truth", "wanted"),
    [
        ([[0, 0.9, *BOX]], [[0, *BOX]], 1.0),
        ([NONE], [[0, *BOX]], 0.0),
        ([[0, 0.9, *BOX], [0, 0.8, *BOX]], [[0, *BOX]], 1.0),  # a second detection of an object that is found already
        ([[0, 0.9, 0.0, 0.0, 0.1, 0.1], [0, 0.8, *BOX]], [[0, *BOX]], 0.5),
        ([[0, 0.9, 0.0, 0.0, 0.1, 0.1], [0, 0.9, *BOX]], [[0, *BOX]], 0.5),  # the same score: both count
        ([[1, 0.9, *BOX]], [[0, *BOX]], 0.0),  # another class
        ([[0, 0.9, 0.25, 0.25, 0.75, 0.5]], [[0, *BOX]], 1.0),  # exactly a half is enough
        ([[0, 0.9, 0.25, 0.25, 0.75, 0.499]], [[0, *BOX]], 0.0),
        ([[0, 0.9, *BOX]], [[0, *BOX], [0, 0, 0, 0.1, 0.1]], 0.5),  # one of two is found
        ([[0, 0.9, *BOX], [0, 0.8, *BOX]], [[0, *BOX], [0, *BOX]], 1.0),  # two objects at the same place
        ([[0, 0.9, *BOX]], [[-1, 0, 0, 0, 0]], None),
    ],
)
def test_awkward_cases(found: list[list[float]], truth: list[list[float]], wanted: float | None) -> None:
    assert rate_detections(np.array([found]), np.array([truth]), 1) == [wanted]


def test_a_detection_takes_the_object_that_it_overlaps_most_among_those_left() -> None:
    truth = np.array([[[0, 0.0, 0.0, 0.5, 0.5], [0, 0.1, 0.0, 0.6, 0.5]]])
    found = np.array([[[0, 0.9, 0.02, 0.0, 0.52, 0.5], [0, 0.8, 0.0, 0.0, 0.5, 0.5]]])
    assert match_detections(found, truth).tolist() == [[True, True]]


def test_without_detections_images_or_objects_nothing_fails() -> None:
    assert rate_detections(np.zeros([0, 5, 6]), np.zeros([0, 2, 5]), 2) == [None, None]
    assert measure_average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    assert average([None, None]) is None
    assert average([0.5, None, 1.0]) == 0.75


def test_the_overlap_of_boxes_without_area_is_nought() -> None:
    flat = np.array([0.5, 0.5, 0.5, 0.9])
    assert average_precision.overlap(flat, flat) == 0.0
