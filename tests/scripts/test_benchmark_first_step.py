"""benchmark_first_step as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

SMALL = ["--model=vit:mini,depth=1", "--image_size=28", "--batch_size=2", "--classes=10", "--repeats=2"]


BAD = [
    ("--repeats=0", "repeats=0: expected a number from 1 to 1000"),
    ("--seed=-1", "seed=-1: expected a number of at least 0"),
    ("--model=cnn:mini", "model='cnn:mini': it is compared with plain ViTs"),
    ("--out=nowhere/results.json", "expected the name of a file in an existing, writable folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True], ids=["one process", "each its own"])
def test_engine_and_keras_are_measured_in_turn_on_equal_terms_and_bad_input_is_named(
    run_each: Any, tmp_path: pathlib.Path, apart: bool
) -> None:
    out = tmp_path / "results.json"
    (code, printed, error), *others = run_each(
        "scripts.benchmark_first_step", [[*SMALL, f"--out={out}"], *([*SMALL, flag] for flag, _ in BAD)], apart=apart
    )
    for (flag, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (flag, bad_error)
    assert code == 0, error
    order = [line.split(", ")[1].split(":")[0] for line in printed.splitlines() if line.startswith("  ")]
    assert order == ["engine", "keras", "keras", "engine"]
    results = json.loads(out.read_text())
    assert f"keras train_on_batch ({'XLA' if results['keras_xla'] else 'no XLA'})" in printed
    for runner in ("engine", "keras"):
        row = results["seconds"][runner]
        assert 0 < row["p10"] <= row["median"] <= row["p90"]
        assert len(results["each"][runner]) == 2
        assert results["peak_rss_bytes"][runner]["median"] > 0
    one, other = results["each"]["engine"], results["each"]["keras"]
    assert results["ratio"]["median"] == pytest.approx((one[0] / other[0] + one[1] / other[1]) / 2)
