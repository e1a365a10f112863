"""What the quality part of a report shows: the rows that were judged, in the order of their importance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.study.formatting import quality
from engine.study.quality.rows import Row, choose_cost, choose_metric, find_fault, merit


@dataclass(frozen=True, kw_only=True)
class View:
    """The quality part of a study.

    Attributes:
        about: ``quality`` of study.json.
        rows: the rows of all strategies that were tried, in the order of the study.
        judged: the rows that can be compared: the recommended one, the best one, then by falling quality.
        metric: what they are compared by, "accuracy" or "loss".
        recommended, best: names of strategies, or None.
        level: those that cannot be told apart from ``best``, with itself.
        cost: the kind of time that all judged rows have ("job_seconds" or "seconds"), or "trained_parameters".
    """

    about: Mapping[str, Any]
    rows: tuple[Row, ...]
    judged: tuple[Row, ...]
    metric: str
    recommended: str | None
    best: str | None
    level: frozenset[str]
    cost: str

    @property
    def accuracy(self) -> bool:
        """Whether strategies are compared by accuracy."""
        return self.metric == "accuracy"

    @property
    def part(self) -> str:
        """The name of the part that judged."""
        return str(self.about["part"])

    def show(self, value: float | None) -> str:
        """An accuracy or a loss as text."""
        return quality(value, accuracy=self.accuracy)

    def find(self, name: str | None) -> Row | None:
        """The judged row of a strategy."""
        return next((row for row in self.judged if row["strategy"] == name), None)


def open_view(study: Mapping[str, Any]) -> View | None:
    """The quality part of a study; None if it has none."""
    about = study.get("quality")
    if not about:
        return None
    rows = tuple(row for row in study["results"] if row["runner"] == "quality")
    usable = [row for row in rows if not find_fault(row)]
    metric, verdict = choose_metric(usable), about.get("verdict") or {}
    recommended, best = verdict.get("recommended"), verdict.get("best")
    first = {recommended: 0, best: 1}
    usable.sort(key=lambda row: (first.get(row["strategy"], 2), -merit(row, metric)))
    return View(
        about=about,
        rows=rows,
        judged=tuple(usable),
        metric=metric,
        recommended=recommended,
        best=best,
        level=frozenset([*verdict.get("equals", ()), *([best] if best else [])]),
        cost=choose_cost(usable),
    )
