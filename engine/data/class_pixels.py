"""How often classes occur in dense labels: a class for each pixel."""

from __future__ import annotations

import numpy as np

from engine.data.part import Source
from engine.text import join_words


def count_pixels(labels: np.ndarray) -> np.ndarray:
    """How many pixels of labels uint8 [m, height, width] have each number: int64 [256]."""
    found = np.zeros(256, np.int64)
    for each in labels:  # one at a time: np.bincount makes them eight times as large
        found += np.bincount(each.ravel(), minlength=256)
    return found


def describe_absent_classes(source: Source) -> list[str]:
    """A line on classes without a pixel in the training part, and on those among them that other parts have."""
    count = len(source.classes)
    train = count_pixels(source.train.labels)[:count]
    absent = [number for number in range(count) if not train[number]]
    if not absent:
        return []
    lines = [f"data: no pixel to train on has the class {join_words(source.classes[n] for n in absent)}"]
    for name in ("eval", "test"):
        part = getattr(source, name)
        if part is None or part is source.train:
            continue
        own = count_pixels(part.labels)
        if only := [source.classes[n] for n in absent if own[n]]:
            lines.append(f"data: the {name} part has pixels of {join_words(only)}, which training never sees")
    return lines
