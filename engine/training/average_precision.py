"""Average precision of detections, as a pure function of them; nothing here needs TensorFlow.

A detection finds an object if it is of its class and overlaps it (intersection over union) by a threshold, 0.5 for AP50.
Within an image, detections choose in the order of their scores: each takes the object that it overlaps most among those that
are left, as COCO's evaluation does. What takes none is a false alarm, a second detection of the same object included.

Over all images, precision and recall follow from the detections with at least a score; those of equal scores count
together, so the order of images does not matter. The average precision is the area below the curve, in which the precision
at a recall is the highest at that recall or more (all points: PASCAL VOC since 2010). COCO samples the same curve at 101
recalls.
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5


def match_detections(found: np.ndarray, truth: np.ndarray, *, threshold: float = THRESHOLD) -> np.ndarray:
    """Which detections find an object, bool [n, D].

    Args:
        found: detections [n, D, 6]: class, score, x1, y1, x2, y2; class -1 is none.
        truth: objects [n, K, 5]: class, x1, y1, x2, y2; class -1 is none.

    Of equal scores in an image the first chooses first, and of equal overlaps the first object is taken.

    Example:
        >>> box = [0.0, 0.0, 1.0, 1.0]
        >>> found, truth = np.array([[[0, 0.9, *box], [0, 0.8, *box]]]), np.array([[[0, *box]]])
        >>> match_detections(found, truth).tolist()
        [[True, False]]
    """
    images = np.arange(len(found))
    hits = np.zeros(found.shape[:2], bool)
    left = truth[..., 0] >= 0
    for place in np.argsort(-found[..., 1], axis=1, kind="stable").T:  # the next detection of every image
        box = found[images, place].astype(np.float64)
        same = left & (truth[..., 0] == box[:, :1])
        overlaps = np.where(same, overlap(box[:, None, 2:], truth[..., 1:].astype(np.float64)), -1.0)
        best = overlaps.argmax(axis=1)
        hit = (overlaps[images, best] >= threshold) & (box[:, 0] >= 0)
        hits[images, place] = hit
        left[images[hit], best[hit]] = False
    return hits


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that boxes [..., 4] share with others, divided by the area that they cover together; 0 where that is 0."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=-1)
    own, other = (np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (boxes, others))
    covered = own + other - shared
    return np.divide(shared, covered, out=np.zeros_like(covered), where=covered > 0)


def measure_average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float | None:
    """The average precision of one class, from all its detections' scores [d], whether each finds an object, and the objects.

    None if there are no objects.

    Example:
        >>> measure_average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
        0.8333333333333333
    """
    if not objects:
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else order
    right = np.cumsum(hits[order], dtype=np.int64)[ends]
    precision = right / (ends + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(right, prepend=0)  # objects that are found at each score
    return float((best * gained).sum() / objects)


def rate_detections(
    found: np.ndarray, truth: np.ndarray, classes: int, *, threshold: float = THRESHOLD
) -> list[float | None]:
    """The average precision of each class, of detections [n, D, 6] and objects [n, K, 5]; None without objects."""
    hits = match_detections(found, truth, threshold=threshold)
    rated = []
    for number in range(classes):
        of_class = found[..., 0] == number
        objects = int((truth[..., 0] == number).sum())
        rated.append(measure_average_precision(found[..., 1][of_class], hits[of_class], objects))
    return rated


def average(rated: list[float | None]) -> float | None:
    """The mean over classes that have objects; None if none has."""
    known = [value for value in rated if value is not None]
    return float(np.mean(known)) if known else None
