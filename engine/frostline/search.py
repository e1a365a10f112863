"""Finds the cheapest cut of a graph at tensors that do not mix examples.

The cost of a cut is the number of bytes that cross it per example, plus a small price for each multiply-add that the
suffix recomputes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.frostline import explain, row_independence
from engine.frostline.analysis import Analysis, Crossing
from engine.frostline.line import Cut, Refused
from engine.frostline.traced import Compute
from engine.graphs import dataflow

MAC_PRICE = 0.02  # bytes that recomputing one multiply-add is worth; with 0 the line moves too far up
_AT_ONCE = 32  # tensors checked in one run, which holds their values
_CHEAPER = (1.0, 0.1, 0.01, 0.0)  # factors of the price, tried in turn under a limit on bytes


def find_cut(analysis: Analysis, *, most_bytes: int | None) -> Cut | Refused:
    """Finds the cheapest cut of a graph at tensors that do not mix examples.

    ``most_bytes`` limits the bytes that may cross per example; None sets no limit.
    """
    reasons: list[str] = []
    for share in _CHEAPER:
        found = _row_independent_cut(analysis, MAC_PRICE * share)
        if isinstance(found, Refused):
            return Refused(tuple(dict.fromkeys([*reasons, *found.reasons])))
        size = sum(crossing.bytes for crossing in found.crossing)
        if most_bytes is None or size <= most_bytes:
            return found
        reasons = [f"the cheapest cut takes {size:,} bytes per example, but the limit is {most_bytes:,}"]
    return Refused(tuple(reasons))


def _row_independent_cut(analysis: Analysis, price: float) -> Cut | Refused:
    """The cheapest cut of tensors that do not mix examples."""
    while True:
        chosen = analysis.min_cut(price)
        # below the first matrix product there is nothing worth caching: it would be the images again
        below = analysis.ops_below()
        if chosen is None or not analysis.count_macs(below & dataflow.ancestors([c.tensor for c in chosen])):
            return Refused(explain.explain_refusal(analysis, chosen))
        try:
            prefix, bad = _check(analysis, chosen)
            if not bad:
                return Cut(analysis, chosen, prefix)
            # all candidates are checked at once: whatever depends on a mixing tensor mixes too
            others = analysis.find_candidates()
            for start in range(0, len(others), _AT_ONCE):
                bad += _check(analysis, others[start : start + _AT_ONCE])[1]
            analysis.forbid(bad)
        except row_independence.RowIndependenceError as error:
            return Refused((str(error),))


def _check(analysis: Analysis, crossing: Sequence[Crossing]) -> tuple[Compute, list[Any]]:
    """The function from the model's inputs to these tensors, and the tensors among them that mix examples."""
    compute = analysis.build_function([c.tensor for c in crossing])
    bad = row_independence.find_mixing(compute, [c.rows for c in crossing], analysis.examples)
    return compute, [crossing[number].tensor for number in bad]
