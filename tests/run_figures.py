"""What an evaluation of a run must have of the run's own figures (docs/predict.md).

They have the same bits where the last phase evaluated from images. Where it did from a cache, what is frozen was computed in
batches of another size, whose products some CPUs round otherwise: then they are the same up to rounding, as contract E4.
"""

from __future__ import annotations

from typing import Any

import pytest

ROUNDING = 1e-6  # contract E4, in float32


def is_cached(opened: Any) -> bool:
    """Whether the last phase of a run trained and evaluated from a cache."""
    return bool(opened.run["cache"]["phases"][-1]["used"])


def check_equal(opened: Any, found: Any, recorded: Any) -> None:
    """Checks that figures (numbers, tables, or either by name) are those that the run recorded."""
    if not is_cached(opened):
        assert found == recorded
    elif isinstance(found, dict):
        assert found.keys() == recorded.keys()
        for name, value in found.items():
            check_equal(opened, value, recorded[name])
    else:
        assert found == (pytest.approx(recorded, rel=ROUNDING) if isinstance(recorded, float) else recorded)


def check_run_figures(opened: Any, report: Any) -> None:
    """Checks that the loss and accuracy of a report are the run's own, and that it says whether their bits are."""
    own = report.figures["run_figures"]
    found = {name: report.figures[name] for name in ("loss", "accuracy")}
    recorded = {name: own[name] for name in found}
    check_equal(opened, found, recorded)
    assert own["same"] == (found == recorded)
