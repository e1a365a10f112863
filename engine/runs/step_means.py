"""Means of the metrics of steps, such as the accuracy: that of a single batch says little."""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.training.loop import Event

Sums = dict[str, tuple[float, float]]


class StepMeans:
    """The mean of each metric over the examples that count in the steps that were added since the last ``clear``.

    ``sums`` are those of another one (``to_json``), with which this one goes on.
    """

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        self._sums: Sums = {name: (float(total), count) for name, (total, count) in (sums or {}).items()}

    def add(self, event: Event) -> None:
        """Adds a step; a metric that is not finite, as that of a skipped step may be, is left out."""
        assert event.result is not None
        for name, value in event.result.metrics.items():
            weight = float(event.result.metric_weights.get(name, event.examples))
            weight = int(weight) if weight.is_integer() else weight  # as counts are kept
            if math.isfinite(number := float(value)) and weight:
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + number * weight, count + weight)

    def means(self) -> dict[str, float]:
        """Returns the mean of each metric."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def clear(self) -> None:
        self._sums = {}

    def to_json(self) -> dict[str, list[float]]:
        return {name: list(pair) for name, pair in self._sums.items()}
