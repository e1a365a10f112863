"""Figures of merit of a class for each pixel, from the confusion matrix of all pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.training.dense_losses import pixel_weights
from engine.training.metric import Figure, Metric

OVERLAPS = ("miou", "dice")


def rate_overlaps(confusions: np.ndarray) -> tuple[list[float | None], list[float | None]]:
    """The intersection over union of each class, and its Dice coefficient (its F1), from a confusion matrix.

    A class that neither occurs nor is predicted has none: None.

    Example:
        >>> rate_overlaps(np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
        ([0.6666666666666666, 0.5, None], [0.8, 0.6666666666666666, None])
    """
    hits, either = np.diagonal(confusions), confusions.sum(axis=0) + confusions.sum(axis=1)
    pairs = list(zip(hits.tolist(), either.tolist(), strict=True))
    return (
        [hit / (both - hit) if both else None for hit, both in pairs],
        [2 * hit / both if both else None for hit, both in pairs],
    )


def _average(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


class Overlap(Metric):
    """The mean over the classes of the intersection over union ("miou"), or of the Dice coefficient ("dice").

    It is that of all pixels of all examples together, not an average over examples, and a class that neither occurs nor is
    predicted does not enter: as ``jaccard_score`` and ``f1_score`` of scikit-learn with ``average="macro"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        """The confusion matrix of a batch, float64 [C, C]: rows are the true classes.

        ``outputs`` are [B, height, width, C] with labels [B, height, width], or [B, C] with labels [B]; examples of weight 0
        do not count, and other weights count as 1, since a pixel is a pixel.
        """
        classes, counted = tf.cast(labels, tf.int32), tf.ones(tf.shape(labels), tf.float64)
        if labels.shape.rank == 3:
            classes, counted = pixel_weights(labels, tf.float64)
        if weights is not None:
            present = tf.cast(weights > 0, tf.float64)
            counted *= tf.reshape(present, [-1] + [1] * (labels.shape.rank - 1))
        count = outputs.shape[-1]
        cells = classes * count + tf.argmax(outputs, axis=-1, output_type=tf.int32)
        sums = tf.math.unsorted_segment_sum(tf.reshape(counted, [-1]), tf.reshape(cells, [-1]), count * count)
        return {"confusions": tf.reshape(sums, [count, count])}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        """The mean over the classes; NaN where no class occurs."""
        unions, dices = rate_overlaps(sums["confusions"])
        return _average(unions if self.name == "miou" else dices)


class PixelConfusions(Overlap):
    """The confusion matrix of all pixels itself, as a table of whole numbers: rows are the true classes."""

    title = "pixel_confusions"

    def __init__(self) -> None:
        super().__init__(self.title)

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        return sums["confusions"].astype(np.int64).tolist()
