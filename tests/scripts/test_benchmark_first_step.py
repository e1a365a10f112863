"""benchmark_first_step as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["--model=vit:mini,depth=1", "--image_size=28", "--batch_size=2", "--classes=10", "--repeats=2"]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.benchmark_first_step", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_engine_and_keras_are_measured_in_turn_on_equal_terms(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "results.json"
    done = run(*SMALL, f"--out={out}")
    assert done.returncode == 0, done.stderr
    order = [line.split(", ")[1].split(":")[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert order == ["engine", "keras", "keras", "engine"]
    results = json.loads(out.read_text())
    assert f"keras train_on_batch ({'XLA' if results['keras_xla'] else 'no XLA'})" in done.stdout
    for runner in ("engine", "keras"):
        row = results["seconds"][runner]
        assert 0 < row["p10"] <= row["median"] <= row["p90"]
        assert len(results["each"][runner]) == 2
        assert results["peak_rss_bytes"][runner]["median"] > 0
    one, other = results["each"]["engine"], results["each"]["keras"]
    assert results["ratio"]["median"] == pytest.approx((one[0] / other[0] + one[1] / other[1]) / 2)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--repeats=0", "repeats=0: it must be from 1 to 1000"),
        ("--model=cnn:mini", "model='cnn:mini': the peers are plain ViTs"),
        ("--out=nowhere/results.json", "out='nowhere/results.json': it must be a file in an existing folder"),
        ("--child=engine", "it is started by a benchmark with a job on standard input"),
    ],
)
def test_bad_input_is_named_with_its_rule(flag: str, said: str) -> None:
    done = run(*SMALL, flag)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
