"""benchmark_accumulation as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

SMALL = [
    "--model=vit:mini,depth=1",
    "--image_size=28",
    "--batch_size=4",
    "--micro_batch_size=2",
    "--rounds=2",
    "--parts=1,2",
]


BAD = [
    ("--parts=2,4", "parts=2,4: expected 1 first, and at most 4, the number of examples in a step"),
    ("--parts=1,x", "parts='x': expected whole numbers of at least 1"),
    ("--parts=", "parts=: expected 1 first"),
    ("--rounds=0", "rounds=0: expected a number of at least 1"),
    ("--train=hed", "item 1 `hed` matches nothing"),
    ("--remat=all", "remat='all'"),
    ("--out=nowhere/results.json", "expected the name of a file in an existing, writable folder"),
]


@pytest.mark.slow
def test_steps_in_parts_and_steps_of_equal_parts_are_timed_and_bad_input_is_named(
    run_each: Any, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "results.json"
    good = [*SMALL, "--parts=1,3", "--train=@head @blocks[-1:]", f"--out={out}"]
    (code, printed, error), *others = run_each(
        "scripts.benchmark_accumulation", [good, *([*SMALL, flag] for flag, _ in BAD)]
    )
    for (flag, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (flag, bad_error)
    assert code == 0, error
    results = json.loads(out.read_text())
    assert list(results) == ["split", "equal"]
    for rows in results.values():
        assert list(rows) == ["1", "3"]
        for row in rows.values():
            for kind in ("seconds", "ratio"):
                assert 0 < row[kind]["p10"] <= row[kind]["median"] <= row[kind]["p90"]
    assert results["split"]["1"]["ratio"]["median"] == results["equal"]["3"]["ratio"]["median"] == 1.0
    assert "vit:mini,depth=1 at 28 px, train @head @blocks[-1:], remat none, 2 rounds" in printed
    assert "a step of 4 examples in k micro-batches, relative to k = 1" in printed
    assert "one of k micro-batches of 2 examples, relative to k = 3" in printed
    assert len(re.findall(r"^ +[13] +\d+\.\d{3} +\d+\.\d{3}  \d+\.\d{3} to \d+\.\d{3}$", printed, re.MULTILINE)) == 4
