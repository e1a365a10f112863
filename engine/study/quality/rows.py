"""What a row of quality mode says of its strategy, for the verdict and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

Row = Mapping[str, Any]


def leave_out_quality(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study with the rows of cost mode alone."""
    return {**study, "results": [row for row in study["results"] if row["runner"] != "quality"]}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number; JSON has no nan, so one may have become None."""
    return value is not None and math.isfinite(value)


def find_fault(row: Row) -> str:
    """Why a strategy can never be recommended, or ""."""
    found = row.get("quality") or {}
    rates = found.get("rates") or []
    test = found.get("test")
    if row["failed"]:
        lines = str(row.get("reason") or "").strip().splitlines()
        return f"it failed ({lines[-1]})" if lines else "it failed"
    if row["freeze_verified"] is False:
        return "its freeze proof failed: frozen variables changed"
    if found.get("chosen") is None:
        if rates and all(rate["status"] == "diverged" for rate in rates):
            tried = ", ".join(f"{rate['learning_rate']:g}" for rate in rates)
            return f"every learning rate diverged ({tried})"
        return "no learning rate has been chosen" + ("" if rates else ", because none was tried")
    if test is None:
        return "it has not been judged"
    if not is_number(test["loss"]):
        return "its loss on the examples that judge is not finite"
    return ""


def choose_metric(rows: Sequence[Row]) -> str:
    """What the rows are compared by: "accuracy" if all that were judged have one, otherwise "loss"."""
    named = [found.get("metric") for row in rows for found in row["quality"].get("compared") or ()]
    if named and named[0]:
        return str(named[0])
    tests = [row["quality"]["test"] for row in rows if (row.get("quality") or {}).get("test")]
    return "accuracy" if tests and all(is_number(test["accuracy"]) for test in tests) else "loss"


def merit(row: Row, metric: str) -> float:
    """What is the higher, the better: the accuracy, or the loss with its sign changed."""
    test = row["quality"]["test"]
    return float(test["accuracy"] if metric == "accuracy" else -test["loss"])


def find_difference(row: Row, other: Row, *, shifted: bool = False) -> Mapping[str, Any] | None:
    """The comparison of a row with another one, or that under the corruptions; None if there is none."""
    compared = row["quality"].get("compared") or ()
    found = next((each for each in compared if each["with"] == other["strategy"]), None)
    return found and found["shifted"] if shifted else found


def beats(row: Row, other: Row, metric: str, *, shifted: bool = False) -> bool:
    """Whether a row is resolvably better than another one."""
    found = find_difference(row, other, shifted=shifted)
    return found is not None and bool(found["resolved"]) and (found["mean"] > 0) == (metric == "accuracy")


def parameters_of(row: Row) -> float:
    """The number of trained parameters."""
    return float(row["trained_parameters"] or 0)


def seconds_of(row: Row, kind: str) -> float | None:
    """The ``job_seconds`` of a strategy alone (mode both), or its ``seconds`` in the shared process; None if unknown."""
    found = row["quality"]
    value = (found.get("cost") or {}).get("job_seconds") if kind == "job_seconds" else found.get("seconds")
    return float(value) if is_number(value) and value > 0 else None


def choose_cost(rows: Sequence[Row]) -> str:
    """The kind of cost that all rows have; one that some lack would compare times of two kinds."""
    for kind in ("job_seconds", "seconds"):
        if rows and all(seconds_of(row, kind) for row in rows):
            return kind
    return "trained_parameters"


def cost_of(row: Row, kind: str) -> float:
    """What a row costs, by a kind of ``choose_cost``."""
    return parameters_of(row) if kind == "trained_parameters" else seconds_of(row, kind) or 0.0
