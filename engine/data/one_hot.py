"""Classes that have no names of their own, and labels that are classes written as one 1 among zeros."""

from __future__ import annotations

import numpy as np


def number_classes(count: int) -> tuple[str, ...]:
    """The names of classes that have none of their own: their numbers."""
    return tuple(map(str, range(count)))


def find_not_one_hot(labels: np.ndarray) -> int | None:
    """The first row of labels [n, C] that is not one 1 among zeros; 0 if the labels have another shape."""
    if labels.ndim != 2 or labels.shape[1] < 2:
        return 0
    wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1) | (labels.sum(axis=1) != 1))
    return int(wrong[0]) if len(wrong) else None
