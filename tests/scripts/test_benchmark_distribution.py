"""benchmark_distribution as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from scripts.baselines import replica_results, turns
from scripts.baselines.replicas import ReplicaJob, Replicas

SMALL = ["--model=vit:mini,depth=1", "--image_size=8", "--batch_size=3", "--classes=10", "--rounds=2", "--warmup=1"]
HEAD = 97 * 10
BAD = [
    ("--devices=1", "devices=1: expected a number from 2 to 64"),
    ("--warmup=0", "warmup=0: expected a number from 1 to 1000000"),
    ("--rounds=0", "rounds=0: expected a number from 1 to 1000000"),
    ("--micro_batch_size=-1", "micro_batch_size=-1: expected a number from 0"),
    ("--classes=1", "classes=1: expected a number from 2"),
    ("--seed=-1", "seed=-1: expected a number of at least 0"),
    ("--train=heda/.*", "item 1 `heda/.*` matches nothing"),
    ("--model=vit:giant", "vit:giant"),
    ("--out=nowhere/results.json", "expected the name of a file in an existing, writable folder"),
]


def test_bad_flags_are_named_before_any_process_starts(run_each: Any) -> None:
    for (flag, said), (code, printed, error) in zip(
        BAD, run_each("scripts.benchmark_distribution", [[*SMALL, flag] for flag, _ in BAD]), strict=True
    ):
        assert (code, said in error, "processes start" in printed) == (2, True, False), (flag, error)


def runner(devices: int) -> Replicas:
    fields = {"model": "vit:mini,depth=1", "image_size": 8, "classes": 10, "batch_size": 3, "micro_batch_size": 0}
    return Replicas(ReplicaJob(**fields, train="@head", seed=0, devices=devices))  # type: ignore[arg-type]


def test_a_strategy_with_one_device_trains_the_same_step_and_exchanges_nothing() -> None:
    found = []
    for one in (runner(0), runner(1)):
        losses = [one.train_step() for _ in range(2)]
        assert losses[1] < losses[0]
        found.append((losses, one.facts()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for _, facts in found:
        assert facts["trained_parameters"] == HEAD
        assert facts["communication"] == {"bytes": 0, "collectives": 0}
        assert 4 * HEAD < facts["expected_communication"]["bytes"] <= 4 * HEAD + 100


def measured(name: str, seconds: float, peak: int, *, sent: int = 0, loss: float = 2.0) -> turns.Participant:
    one = turns.Participant(name, "float32", start=lambda: pytest.fail("no process is needed"), required=True)
    one.steps = [{"seconds": n * seconds, "cpu_seconds": 2 * n * seconds} for n in (1, 2, 3)]
    communication = {"bytes": sent, "collectives": int(sent > 0)}
    expected = {"bytes": 100, "collectives": 1}
    one.facts = {"trained_parameters": 25, "communication": communication, "expected_communication": expected}
    one.first_loss, one.peak_rss_bytes = loss, peak
    return one


def test_ratios_are_to_the_step_without_a_strategy_and_other_bytes_or_losses_are_faults() -> None:
    none, mirrored = measured("none", 1.0, 1 << 30), measured("mirrored", 1.5, 1 << 30)
    two = measured("mirrored_2", 2.0, 3 << 29, sent=100)
    results = replica_results.Results({"machine": {"processor": "P", "cores": 2}})
    results.parts.append(("@head", [none, mirrored, two]))
    first, second, third = results.rows()
    assert (first["ratio"], first["peak_ratio"], first["cpu_ms"]["median"]) == (None, None, 4000.0)
    assert (second["ratio"]["wall"]["median"], second["peak_ratio"]) == (1.5, 1.0)
    assert (third["ratio"]["cpu"]["p90"], third["peak_ratio"], third["communication"]["bytes"]) == (2.0, 1.5, 100)
    assert "mirrored_2   4000.0  8000.0  2.000 (2.000 to 2.000)" in results.text()
    assert [replica_results.find_fault(one, none) for one in (none, mirrored, two)] == [None] * 3
    other = replica_results.find_fault(measured("mirrored", 1.0, 1, loss=2.1), none)
    assert other is not None
    assert other.startswith("the loss of its first step is 2.1; expected 2.0")
    assert replica_results.find_fault(measured("mirrored", 1.0, 1, loss=float("nan")), none) is not None
    more = replica_results.find_fault(measured("mirrored_2", 1.0, 1, sent=104), none)
    assert more is not None
    assert "'bytes': 104" in more
    assert replica_results.find_fault(measured("mirrored_2", 1.0, 1), none) is not None, "it is not distributed"


@pytest.mark.slow
def test_one_and_two_devices_are_measured_in_turn_and_their_bytes_are_those_of_what_trains(
    run_each: Any, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "results.json"
    asked = [*SMALL, "--train=@head", "--train=@all", "--micro_batch_size=1", f"--out={out}"]
    ((code, printed, error),) = run_each("scripts.benchmark_distribution", [asked], apart=True)
    assert code == 0, error
    assert "round 2 of 2: none " in printed
    results = json.loads(out.read_text())
    assert results["finished"]
    assert [(row["train"], row["runner"], row["rounds"]) for row in results["rows"]] == [
        (train, runner, 2) for train in ("@head", "@all") for runner in ("none", "mirrored", "mirrored_2")
    ]
    for row in results["rows"]:
        assert row["failed"] is None
        assert row["peak_rss_bytes"] > 0
        sent = row["communication"]
        if row["runner"] == "mirrored_2":
            assert sent == row["expected_communication"]
            assert 4 * row["trained_parameters"] < sent["bytes"] <= 4 * row["trained_parameters"] + 100
        else:
            assert sent == {"bytes": 0, "collectives": 0}
