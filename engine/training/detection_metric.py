"""AP50 as a metric of evaluations: the mean over classes of the average precision of the boxes that maps of centres show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.training.average_precision import THRESHOLD, average, rate_detections

MOST_BOXES = 100  # in an image, as COCO's evaluation takes; more where an image of the data has more


def count_found(boxes: int) -> int:
    """How many boxes are looked for in each image of data of which none has more than so many."""
    return max(MOST_BOXES, boxes)


@dataclass
class AveragePrecision:
    """The mean average precision at an overlap (``engine.training.average_precision``); NaN without objects.

    It keeps the detections and objects of all examples: 24 bytes for each of the former, 20 for each of the latter.
    """

    name: str = "ap50"
    threshold: float = THRESHOLD

    kept: tuple[str, ...] = ("found", "truth")
    higher_is_better: bool = True

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        """The boxes in a batch of maps [B, h, w, C + 4], and the true ones, [B, K, 5]; none of an example of weight 0."""
        import tensorflow as tf

        from engine.training.centers import check_shapes, find_boxes

        check_shapes(outputs.shape, labels.shape)
        found = tf.cast(find_boxes(outputs, count_found(labels.shape[1] or 0)), tf.float32)
        truth = tf.cast(labels, tf.float32)
        if weights is not None:
            counts = (weights > 0)[:, None, None]
            found, truth = (tf.where(counts, boxes, -tf.ones_like(boxes)) for boxes in (found, truth))
        return {"found": found, "truth": truth}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> float:
        """The mean over the classes that have objects."""
        classes = int(sums["truth"][..., 0].max(initial=-1.0)) + 1
        value = average(rate_detections(sums["found"], sums["truth"], classes, threshold=self.threshold))
        return math.nan if value is None else value
