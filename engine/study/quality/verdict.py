"""Which strategy is recommended once each has been judged at its best, and how sure that is.

Strategies are compared example by example (engine.study.bootstrap). The best one has the highest accuracy, or the lowest
loss where there is no accuracy. Its equals are those whose difference to it the examples and seeds cannot resolve, and which
no other strategy resolvably beats. The cheapest of the best one and its equals is recommended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.study.bootstrap import Difference, compare_all
from engine.study.quality import sentences
from engine.study.quality.rows import (
    Row,
    beats,
    choose_cost,
    choose_metric,
    cost_of,
    find_difference,
    find_fault,
    merit,
    parameters_of,
)

SAME_TIME = 1.05  # times within a factor of this of the least count as the same: single runs do not measure them better


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a strategy did with each example of the part that judges, at its chosen learning rate.

    Row s of each array, [seeds, n], comes from a run with the same seed in all strategies, column i from the same example.

    Attributes:
        loss: the loss of each example.
        right: whether each one was classified correctly (bool, or 0 and 1); None for a model without an accuracy.
        shifted: the mean over the corruptions of what ``right`` is, or of ``loss`` where that is None; None without corruptions.
    """

    loss: np.ndarray
    right: np.ndarray | None = None
    shifted: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The recommendation of a study in quality mode.

    Attributes:
        sentence: the recommendation with its main reason.
        recommended: the name of the strategy; None where nothing can be recommended.
        best: the strategy with the highest accuracy or the lowest loss.
        equals: the strategies that cannot be told apart from ``best``, without itself.
        metric: what was compared: "accuracy" or "loss".
        cost: what the cheapest was chosen by: "job_seconds" (each alone, mode both), "seconds" (in the shared process) or
            "trained_parameters".
        excluded: the strategies that are never recommended, with the reason: {"strategy", "reason"}.
        warnings: what makes the verdict weaker than it looks, a sentence each.
        reasons: how it came about and what was found, a sentence each.
    """

    sentence: str
    recommended: str | None
    best: str | None
    equals: tuple[str, ...]
    metric: str
    cost: str
    excluded: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The attributes as they stand in study.json, under ``quality.verdict``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def compare_strategies(
    judged: Mapping[str, Judged], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Compares every strategy with every other one: the rows of ``compared`` in results.json.

    By accuracy if all have one, otherwise by loss; all pairs share the draws of one seed. ``level``, ``draws`` and ``seed``
    are those of ``engine.study.bootstrap.compare``.

    Returns:
        strategy -> a row for each other strategy, in their order: ``with``, ``metric``, the fields of ``Difference`` (this
        strategy minus the other one), and ``shifted``, the same fields under the corruptions or None. A strategy with a
        loss that is not finite has no rows and is in none; ``decide`` excludes it.

    Raises:
        InputError: two strategies were not judged on the same seeds and examples.
    """
    usable = {name: each for name, each in judged.items() if np.isfinite(each.loss).all()}
    metric = "accuracy" if all(each.right is not None for each in usable.values()) else "loss"
    clean = {name: each.right if metric == "accuracy" else each.loss for name, each in usable.items()}
    # what is shifted is an accuracy wherever a strategy has one, so it cannot be compared among both kinds
    mixed = metric == "loss" and any(each.right is not None for each in usable.values())
    corrupted = {
        name: each.shifted
        for name, each in usable.items()
        if each.shifted is not None and not mixed and np.isfinite(each.shifted).all()
    }
    found = _both_ways(compare_all(clean, level=level, draws=draws, seed=seed))
    shifted = _both_ways(compare_all(corrupted, level=level, draws=draws, seed=seed))
    return {
        name: [
            {"with": other, "metric": metric, **found[name, other], "shifted": shifted.get((name, other))}
            for other in usable
            if other != name and name in usable
        ]
        for name in judged
    }


def _both_ways(found: Mapping[tuple[str, str], Difference]) -> dict[tuple[str, str], dict[str, Any]]:
    """The fields of each difference, and of that of the exchanged pair."""
    both = {}
    for (one, other), difference in found.items():
        fields = dataclasses.asdict(difference)
        both[one, other] = fields
        turned = {"mean": 0.0 - fields["mean"], "low": 0.0 - fields["high"], "high": 0.0 - fields["low"]}
        both[other, one] = fields | turned
    return both


def decide(rows: Sequence[Row], about: Mapping[str, Any]) -> Verdict:
    """Decides which strategy is recommended.

    Args:
        rows: the rows of results.json; those of other runners than "quality" are ignored. Each row that has been judged
            holds its comparison with every other one (``compare_strategies``).
        about: ``quality`` of study.json: what was judged, on how many examples, with which seeds.

    Raises:
        InputError: two strategies that have been judged have not been compared.
    """
    mine = [row for row in rows if row["runner"] == "quality"]
    excluded = {row["strategy"]: why for row in mine if (why := find_fault(row))}
    usable = [row for row in mine if row["strategy"] not in excluded]
    _check_compared(usable)
    metric, cost = choose_metric(usable), choose_cost(usable)
    best = max(usable, key=lambda row: (merit(row, metric), -cost_of(row, cost), -parameters_of(row)), default=None)
    equals = [row for row in usable if best and row is not best and _is_equal(row, usable, metric)]
    chosen = None
    if best is None:
        sentence = sentences.say_nothing_usable(excluded)
    elif not (sentence := sentences.say_useless(best, metric, about)):
        chosen = _find_cheapest([best, *equals], cost)
        sentence = sentences.say_recommended(chosen, best, equals, usable, about=about, metric=metric)
    found = sentences.list_reasons(usable, best, equals, chosen, metric=metric, cost=cost) if best else []
    left_out = [f"{name} is not considered: {reason}." for name, reason in excluded.items()] if best else []
    return Verdict(
        sentence=sentence,
        recommended=chosen["strategy"] if chosen else None,
        best=best["strategy"] if best else None,
        equals=tuple(row["strategy"] for row in equals),
        metric=metric,
        cost=cost,
        excluded=tuple({"strategy": name, "reason": reason} for name, reason in excluded.items()),
        warnings=tuple(sentences.list_warnings(usable, about)) if usable else (),
        reasons=(*found, *sentences.list_rates(mine), *left_out),
    )


def _check_compared(usable: Sequence[Row]) -> None:
    for row in usable:
        missing = [o["strategy"] for o in usable if o is not row and find_difference(row, o) is None]
        if missing:
            raise InputError(
                f"rows: {row['strategy']} was not compared with {missing[0]}; expected the rows of compare_strategies in "
                "`compared` of every strategy that has been judged"
            )


def _is_equal(row: Row, usable: Sequence[Row], metric: str) -> bool:
    """Whether a row is not resolvably worse than any other one, the best one included."""
    return not any(beats(other, row, metric) for other in usable if other is not row)


def _find_cheapest(rows: Sequence[Row], cost: str) -> Row:
    """The cheapest row; of those that take about the same time, the one with the fewest trained parameters."""
    least = min(cost_of(row, cost) for row in rows)
    near = [row for row in rows if cost_of(row, cost) <= SAME_TIME * least]
    return min(near, key=lambda row: (parameters_of(row), cost_of(row, cost)))
