"""Rows from runs: medians, targets, what disagrees, and the table as CSV."""

from __future__ import annotations

import csv
import io
import pathlib
from typing import Any

import pytest

from engine.study import results

CONTRACT = {
    "strategy", "runner", "repeats", "precision", "micro_batches", "trained_parameters", "frozen_parameters", "step_ms",
    "examples_per_second", "peak_rss_bytes", "slot_bytes", "backward_ops", "gflop_per_example", "eval_accuracy",
    "job_seconds", "final_loss", "freeze_verified", "failed",
}  # fmt: skip
BESIDES = {
    "eval_loss", "job_seconds_spread", "time_to_target_seconds", "gflop_forward", "gflop_backward", "gemm_share",
    "frozen_output_norm", "first_step_seconds", "cache", "weights_sha256", "reason",
}  # fmt: skip


def run(strategy: str = "head", runner: str = "engine", repeat: int = 1, **other: Any) -> dict[str, Any]:
    """A run as its process writes it: 4 steps of 10 examples, 2 ms each, twice as much arithmetic as 10 GFLOP/s."""
    points = [
        {"step": step, "seconds": seconds, "eval_loss": loss, "eval_accuracy": accuracy, "train_loss": loss}
        for step, seconds, loss, accuracy in ((0, 0.5, 2.0, 0.1), (2, 1.0, 1.5, 0.5), (4, 2.0, 1.0, 0.8))
    ]
    return {
        "strategy": strategy,
        "runner": runner,
        "repeat": repeat,
        "step_ms": [2.0, 2.0, 2.0, 2.0],
        "examples": 40,
        "first_step_seconds": 1.0,
        "first_loss": 2.0,
        "last_loss": 1.0,
        "points": points,
        "slot_bytes": 80,
        "job_seconds": 2.0,
        "peak_rss_bytes": 1000,
        "trained_parameters": 10,
        "frozen_parameters": 90,
        "freeze_verified": True,
        "weights_sha256": "same",
        "cache": None,
        "frozen_output_norm": 3.0 if repeat == 1 else None,
        "cost": {"gflop_forward": 0.001, "gflop_backward": 0.003, "backward_ops": 7} if repeat == 1 else None,
    } | other


def rows(runs: list[dict[str, Any]], pairs: list[tuple[str, str]] | None = None, **other: Any) -> list[dict[str, Any]]:
    given = {"precision": "float32", "micro_batches": 1, "gemm_gflops": 40.0, "target": 0.5} | other
    return results.build_rows(runs, pairs or [("head", "engine")], **given)


def test_a_row_has_the_contracts_keys_and_the_medians_of_its_repeats() -> None:
    slow = {"step_ms": [9.0] * 4, "job_seconds": 9.0, "peak_rss_bytes": 5000}
    [row] = rows([run(), run(repeat=2, **slow), run(repeat=3, job_seconds=3.0, peak_rss_bytes=1200)])
    assert set(row) == CONTRACT | BESIDES
    assert row["repeats"] == 3
    assert row["step_ms"] == {"median": 2.0, "p10": 2.0, "p90": 9.0}  # one slow repeat does not move the median
    assert row["job_seconds"] == 3.0
    assert row["job_seconds_spread"] == {"least": 2.0, "most": 9.0}
    assert row["peak_rss_bytes"] == 1200
    assert row["examples_per_second"] == pytest.approx(5000.0)
    assert row["gflop_per_example"] == pytest.approx(0.004)
    assert row["gemm_share"] == pytest.approx(0.004 * 5000 / 40)
    assert row["backward_ops"] == 7
    assert row["frozen_output_norm"] == 3.0
    assert row["time_to_target_seconds"] == 1.0
    assert row["weights_sha256"] == ["same"] * 3
    assert row["freeze_verified"] is True
    assert row["failed"] is False


def test_a_failed_row_has_null_where_there_is_no_number() -> None:
    failed = {"strategy": "head", "runner": "engine", "repeat": 1, "failed": True, "reason": "killed by SIGKILL"}
    [row] = rows([failed])
    assert set(row) == CONTRACT | BESIDES
    assert (row["failed"], row["reason"], row["repeats"]) == (True, "killed by SIGKILL", 0)
    numbers = ("job_seconds", "final_loss", "eval_accuracy", "peak_rss_bytes", "freeze_verified", "gemm_share", "cache")
    assert [row[name] for name in numbers] == [None] * len(numbers)
    assert row["step_ms"] == {"median": None, "p10": None, "p90": None}
    [row] = rows([failed, run(repeat=2)])
    assert (row["failed"], row["repeats"], row["final_loss"]) == (True, 1, 1.0)


def test_what_was_left_out_is_no_row_and_rows_keep_their_order() -> None:
    left = {"strategy": "head", "runner": "engine_cached", "repeat": 1, "left_out": "no frost line"}
    pairs = [("full", "engine"), ("head", "engine"), ("head", "engine_cached")]
    found = rows([run(), run("full"), left], pairs)
    assert [(row["strategy"], row["runner"]) for row in found] == pairs[:2]


def test_a_cache_is_summed_up() -> None:
    caches = [{"used": True, "bytes": 8, "seconds": seconds} for seconds in (1.0, 5.0, 2.0)]
    [row] = rows([run(repeat=n + 1, cache=cache) for n, cache in enumerate(caches)])
    assert row["cache"] == {"used": True, "bytes": 8, "seconds": 2.0}


def test_the_target_is_a_share_of_the_best_unless_given() -> None:
    assert results.choose_target([run()], 0.7)[0] == 0.7
    target, how = results.choose_target([run(), run("full")], None)
    assert target == pytest.approx(0.95 * 0.8)
    assert "95%" in how
    without = run(points=[{"step": 0, "seconds": 1.0, "eval_loss": 1.0, "eval_accuracy": None, "train_loss": None}])
    assert results.choose_target([without], None) == (None, "")
    assert results.time_to_target([run()["points"]], 0.9) is None
    assert results.time_to_target([run()["points"], run()["points"], without["points"]], 0.8) == 2.0


def test_equal_runs_have_nothing_to_say() -> None:
    runs = [run(runner=name, repeat=n) for name in ("engine", "v1_trainable", "v1_var_list") for n in (1, 2)]
    assert results.find_disagreements(runs, precision="float32") == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"first_loss": 2.001}, "the loss of the first step is 2 by engine and 2.001 by v1_var_list"),
        ({"last_loss": 1.5}, "the loss of the last step is 1 by engine and 1.5 by v1_var_list"),
        ({"last_loss": float("nan")}, "the loss of the last step"),
        ({"trained_parameters": 11}, "v1_var_list trained 11 parameters and engine 10"),
        (
            {"weights_sha256": "another"},
            "the TF1 methods (v1_trainable, v1_var_list) did not end with bit-identical weights",
        ),
        ({"freeze_verified": False}, "the freeze proof failed"),
    ],
)
def test_a_disagreement_is_said_in_words(other: dict[str, Any], said: str) -> None:
    runs = [run(runner="v1_trainable"), run(), run(runner="v1_var_list", **other)]
    [note] = results.find_disagreements(runs, precision="float32")
    assert said in note


def test_repeats_that_differ_in_their_bits_are_told() -> None:
    [note] = results.find_disagreements([run(), run(repeat=2, weights_sha256="another")], precision="float32")
    assert "the repeats of engine did not end with bit-identical weights" in note


def test_runs_that_shared_the_machine_are_told() -> None:
    assert results.find_disturbed([run(), run(taken=None), run(taken=0.1)]) == []
    (said,) = results.find_disturbed([run(), run(taken=0.05), run(taken=0.2), run("full", repeat=2, taken=0.43)])
    assert said.startswith(
        "During 2 of 3 runs, other programs, or other guests of this machine's host, used over 10% of its time"
    )
    assert "at most 43%: full by engine, repeat 2" in said


def test_curves_and_baseline_leave_out_what_failed() -> None:
    failed = {"strategy": "head", "runner": "engine", "repeat": 1, "failed": True, "reason": ""}
    assert len(results.collect_curves([failed, run()])) == 1
    assert results.find_baseline([failed, run()]) == {"eval_loss": 2.0, "eval_accuracy": 0.1}
    assert results.find_baseline([failed]) == {"eval_loss": None, "eval_accuracy": None}


def test_the_csv_has_a_column_for_each_number(tmp_path: pathlib.Path) -> None:
    failed = {"strategy": '=odd, "name"', "runner": "engine", "repeat": 1, "failed": True, "reason": "a\nb"}
    found = rows([run(), failed], [("head", "engine"), (failed["strategy"], "engine")])
    results.write_csv(tmp_path / "rows.csv", found)
    text = (tmp_path / "rows.csv").read_text(encoding="utf-8")
    first, second = csv.DictReader(io.StringIO(text))
    assert first["step_ms.median"] == "2.0"
    assert first["weights_sha256"] == "same"
    assert second["strategy"] == failed["strategy"]
    assert second["reason"] == "a\nb"
    assert second["job_seconds"] == ""
