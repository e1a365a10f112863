"""benchmark_quality as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

SMALL = [
    "--model=vit:mini,depth=1",
    "--weights=none",
    "--strategies=head,full",
    "--learning_rates=1e-2,1e-3",
    "--steps=4",
]
BAD = [
    ("--strategies=heda", "strategies='heda' is not a strategy of this model"),
    ("--learning_rates=fast", "`fast` is not a number"),
    ("--steps=0", "steps=0: expected a number from 1"),
    ("--out=nowhere/results.json", "expected the name of a file in an existing, writable folder"),
]


@pytest.mark.slow
def test_a_study_is_compared_with_its_trials_done_apart_and_bad_input_is_named(
    run_each: Any, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "results.json"
    (code, printed, error), *others = run_each(
        "scripts.benchmark_quality",
        [[*SMALL, "--rates=one", f"--out={out}"], *([*SMALL, flag] for flag, _ in BAD)],
        apart=False,
    )
    for (flag, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (flag, bad_error)
    assert code == 0, error
    results = json.loads(out.read_text())
    assert (results["trials"], results["done_apart"]) == (4, 2)
    assert results["largest_difference"] <= 1e-6
    for name in ("seconds", "cpu_seconds"):
        whole = 2 * sum(run[name] for run in results["runs"])
        assert results["apart"][name] == pytest.approx(whole)
        assert results["ratio"][name] == pytest.approx(results["study"][name] / whole)
    assert "largest relative difference" in printed
