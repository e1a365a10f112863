"""benchmark_step as its user runs it: exact facts, no timed assertion."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from scripts.baselines import harness, step_results, turns
from scripts.baselines.harness import Job

HERE = pathlib.Path(__file__).parent
SMALL = [
    "--model=vit:mini,depth=2",
    "--image_size=28",
    "--batch_size=4",
    "--classes=10",
    "--rounds=2",
    "--warmup=1",
    "--runners=engine,hand",
    "--train=@head",
    "--train=@all",
]
HEAD = 97 * 10


BAD = [
    (
        ["--runners=engine,hands"],
        "runners='hands' is not a known runner; expected engine, hand, keras, torch, torch_compile; nearest: hand",
    ),
    (["--runners=engine,engine"], "runners='engine,engine': expected at least one, and none twice"),
    (
        ["--model=keras:MobileNetV2", "--runners=torch"],
        "runners='torch': it cannot run model='keras:MobileNetV2'; expected engine, keras",
    ),
    (["--precisions=float16"], "precisions='float16' is not a known precision; expected float32, mixed_bfloat16"),
    (["--train=heda/.*"], "train='heda/.*': "),
    (["--classes=1"], "classes=1: expected a number from 2 to 1000000"),
    (["--warmup=0"], "warmup=0: expected a number from 1 to 1000000"),
    (["--patience=0"], "patience=0: expected a number from 1 to 1000000"),
    (["--seed=-1"], "seed=-1: expected a number of at least 0"),
    (["--out=nowhere/results.json"], "expected the name of a file in an existing, writable folder"),
]


@pytest.mark.slow
def test_engine_and_hand_are_compared_on_equal_terms_and_bad_flags_are_named(run_each: Any, tmp_path: Any) -> None:
    out = tmp_path / "results.json"
    (code, printed, error), *others = run_each(
        "scripts.benchmark_step", [[*SMALL, f"--out={out}"], *([*SMALL, *words] for words, _ in BAD)]
    )
    for (words, said), (bad_code, _, bad_error) in zip(BAD, others, strict=True):
        assert (bad_code, said in bad_error) == (2, True), (words, bad_error)
    assert code == 0, error
    assert "round 2 of 2: engine float32" in printed
    results = json.loads(out.read_text())
    assert results["finished"]
    assert results["machine"]["processor"]
    assert [rate["gflops"]["median"] > 0 for rate in results["product_rates"]] == [True, True]
    rows = {(row["selection"], row["runner"]): row for row in results["rows"]}
    assert list(rows) == [("@head", "engine"), ("@head", "hand"), ("@all", "engine"), ("@all", "hand")]

    for row in rows.values():
        assert (row["available"], row["failed"], row["rounds"]) == (True, None, 2)
        assert row["step_ms"]["p10"] <= row["step_ms"]["median"] <= row["step_ms"]["p90"]
        assert row["peak_rss_bytes"] > 0
        assert 0 < row["product_rate_share"] < 2
        assert row["parameters"] == rows["@all", "engine"]["trained_parameters"]
        assert row["slot_bytes"] == 2 * 4 * row["trained_parameters"]
    for train in ("@head", "@all"):
        engine, hand = rows[train, "engine"], rows[train, "hand"]
        assert engine["first_loss"] == pytest.approx(hand["first_loss"], rel=1e-5)
        assert set(hand["engine_ratio"]["cpu"]) == {"median", "p10", "p90"}
        assert engine["engine_ratio"] is None
    assert rows["@head", "engine"]["trained_parameters"] == HEAD
    assert 0 < rows["@head", "engine"]["backward_ops"] < rows["@all", "engine"]["backward_ops"]
    assert rows["@head", "engine"]["tape"]["watched_variables"] == 2
    # a frozen backbone keeps nothing for the backward pass: the head's input, its logits, per-example losses
    kept = {train: rows[train, "engine"]["tape"]["activation_bytes"] for train in ("@head", "@all")}
    assert kept["@head"] < kept["@all"] / 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "trains"), [("float32", ["@all @stats"]), ("mixed_bfloat16", ["@layers[-20:] @head"])]
)
def test_a_keras_network_trains_alike_in_the_engine_and_in_keras(precision: str, trains: list[str]) -> None:
    from scripts.baselines import keras_models

    given = {"model": "keras:MobileNetV2,alpha=0.35", "image_size": 32, "classes": 10, "batch_size": 4, "seed": 0}
    for job in keras_models.build_jobs(**given, train=trains):
        job = dataclasses.replace(job, precision=precision)
        found = []
        for runner in (keras_models.Engine(job), keras_models.Keras(job)):
            loss = runner.train_step()
            found.append(runner.facts() | {"first_loss": loss, "second": runner.train_step()})
        assert harness.find_disagreement(job, "keras", found[1], found[0]) is None, (job.train, found)
        assert found[0]["second"] < found[0]["first_loss"]
        assert found[0]["slot_bytes"] == found[1]["slot_bytes"]


def _job(**changes: Any) -> Job:
    config = {"image": [8, 8, 3], "classes": 10}
    fields = {"model": "", "config": config, "train": "@all", "trained": [], "decayed": [], "weights": "", "adamw": {}}
    return Job(**(fields | {"batch_size": 4, "warmup": 1, "steps": 2, "seed": 0} | changes))


def _participant(does: str, *, runner: str | None = None, patience: float = 60, mark: str = "") -> turns.Participant:
    def start() -> turns.Process:
        environment = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "OMP_WAIT_POLICY": "PASSIVE"}
        job = _job(model=does, weights=mark)
        return turns.Process(
            "runners_for_turns:Runner", job, tensorflow=False, environment=environment, patience=patience
        )

    return turns.Participant(runner or does, "float32", start, required=runner == "engine")


def test_a_runner_that_fails_dies_or_hangs_is_named_and_the_others_go_on(tmp_path: pathlib.Path) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    ways = ("works", "needs a library", "raises", "dies", "hangs", "exits", "computes something else")
    runners = [_participant(way, runner="engine" if way == "works" else None, patience=5) for way in ways]
    runners.append(_participant("starts another process", mark=mark))
    results = step_results.Results(out=str(tmp_path / "out.json"), facts={"machine": {}})
    part = results.begin(_job(), runners)
    said: list[str] = []
    rounds: list[tuple[int, int]] = []

    def after(number: int) -> None:
        results.write()
        written = json.loads((tmp_path / "out.json").read_text())
        assert not written["finished"]
        rounds.append((number, written["rows"][0]["rounds"]))

    turns.take_turns(runners, warmup=1, rounds=2, check=lambda: part.check(said.append), after=after, say=said.append)
    assert rounds == [(0, 0), (1, 1), (2, 2)]
    assert _alive(mark) == 0  # what a runner started ended with it
    assert all(one.process is not None and one.process._process.returncode is not None for one in runners)
    found = {one.runner: one for one in runners}
    assert [(one.failed, len(one.steps)) for one in (found["engine"], runners[-1])] == [(None, 2), (None, 2)]
    assert (found["engine"].cost, found["engine"].facts["waits"]) == (1.0, "PASSIVE")
    assert all(step is not None and step["cpu_seconds"] <= step["seconds"] * 2 for step in found["engine"].steps)
    reasons = {one.runner: one.failed for one in runners if one.failed is not None}
    assert reasons["needs a library"] == "no_such_library is not installed"
    assert reasons["raises"] == "ValueError: no step for you"
    assert (reasons["dies"] or "").startswith("killed by SIGKILL")
    assert reasons["hangs"] == "no answer within 5 s; it was stopped"
    assert reasons["exits"] == "this is not a reply; this is not a reply; the last words"
    assert "the loss of its first step is 3.0; expected 2.0" in (reasons["computes something else"] or "")
    assert len(said) == len(reasons) == 6
    assert [one.runner for one in runners if one.unavailable] == ["needs a library"]
    assert len(results.failures()) == 5  # a library that is not installed is not a failure
    assert found["raises"].steps == [None, None]


def test_a_required_runner_that_cannot_begin_is_a_failure_and_nothing_goes_on_without_any() -> None:
    engine = _participant("needs a library", runner="engine")
    rounds: list[int] = []
    turns.take_turns([engine], warmup=1, rounds=5, check=lambda: None, after=rounds.append, say=lambda line: None)
    assert (engine.failed, engine.unavailable, len(rounds)) == ("no_such_library is not installed", False, 1)


def test_no_runner_outlives_a_program_that_is_killed() -> None:
    driver = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
from test_benchmark_step import _participant
process = _participant("hangs").start()
process.wait(); process.ask("step")
print(process._process.pid, flush=True)
process.ask("step")
"""
    with subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
    ) as run:
        assert run.stdout is not None
        runner = int(run.stdout.readline())
        assert pathlib.Path(f"/proc/{runner}").exists()
        run.send_signal(signal.SIGKILL)
    for _ in range(200):
        if _ended(runner):
            return
        time.sleep(0.05)
    raise AssertionError("the runner lives on")


def _alive(mark: str) -> int:
    """How many processes have a word on their command line."""
    found = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += mark.encode() in path.read_bytes() and not _ended(int(path.parent.name))
        except OSError:
            continue
    return found


def _ended(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _measured(runner: str, *steps: tuple[float, float] | None, precision: str = "float32") -> turns.Participant:
    one = turns.Participant(runner, precision, start=lambda: pytest.fail("no process is needed"))
    one.steps = [step and {"seconds": step[0], "cpu_seconds": step[1]} for step in steps]
    one.facts = {"parameters": 10, "trained_parameters": 10, "gflop": 100.0}
    one.first_loss, one.peak_rss_bytes = 2.0, 1 << 20
    return one


def test_ratios_are_those_of_pairs_and_a_rate_is_that_of_cpu_seconds() -> None:
    engine, torch = (
        _measured("engine", (1.0, 2.0), (3.0, 3.0), (2.0, 2.0)),
        _measured("torch", (2.0, 4.0), None, (2.0, 8.0)),
    )
    half = _measured("engine", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), precision="mixed_bfloat16")
    product = _measured("product", (1.0, 1.0), (1.0, 2.0), (1.0, 1.0))
    engine.cost = 50.0  # half of what the product computes
    results = step_results.Results(out=None, facts={"machine": {"processor": "P", "instructions": [], "cores": 2}})
    part = results.begin(_job(), [engine, torch, product, half])
    first, second, third = part.rows()
    assert second["engine_ratio"]["wall"]["median"] == pytest.approx(
        (0.5 + 1.0) / 2
    )  # the round without torch is left out
    assert second["engine_ratio"]["cpu"]["median"] == pytest.approx((0.5 + 0.25) / 2)
    assert third["float32_ratio"]["cpu"]["median"] == pytest.approx(0.5)
    assert (first["engine_ratio"], second["float32_ratio"]) == (None, None)
    assert first["product_rate_share"] == pytest.approx(0.5 * 0.5)  # product to engine 1/2, 2/3, 1/2
    assert third["product_rate_share"] is None  # no product in bfloat16 was measured
    (rate,) = part.rates()
    assert (rate["gflops"]["median"], rate["gflop_per_cpu_second"]["median"]) == (100.0, 100.0)
    text = results.text()
    assert "0.375 (0.275 to 0.475)" in text
    assert json.loads(json.dumps(results.to_json()))["rows"][1]["rounds"] == 2


def test_a_job_survives_its_way_to_a_process() -> None:
    job = _job(adamw={"learning_rate": 1e-4}, precision="mixed_bfloat16", statistics="frozen")
    assert Job(**json.loads(json.dumps(job.to_json()))) == job


def test_a_pair_swaps_its_order_and_leaves_out_the_warmup() -> None:
    order = []

    class Runner:
        def __init__(self, name: str) -> None:
            self.name = name

        def train_step(self) -> float:
            order.append(self.name)
            return 1.0

        def facts(self) -> dict[str, Any]:
            return {}

    one, other = harness.run_pair(Runner("a"), Runner("b"), _job())
    assert "".join(order) == "abbaab"
    assert len(one["seconds"]) == len(other["seconds"]) == 2


@pytest.mark.parametrize("wrong", [{"first_loss": 2.0001}, {"first_loss": math.nan}, {"parameters": 11}])
def test_runners_that_disagree_are_not_compared(wrong: dict[str, Any]) -> None:
    engine = {"first_loss": 2.0, "parameters": 10, "trained_parameters": 10}
    harness.check_agreement(_job(), {"engine": engine, "hand": engine | {"first_loss": 2.00001}}, {})
    with pytest.raises(harness.BenchmarkError):
        harness.check_agreement(_job(), {"engine": engine, "hand": engine | wrong}, {})


def test_bfloat16_may_differ_by_its_rounding_only() -> None:
    job, engine = _job(precision="mixed_bfloat16"), {"first_loss": 2.0, "parameters": 10, "trained_parameters": 10}
    assert harness.find_disagreement(job, "torch", engine | {"first_loss": 2.03}, engine) is None
    assert harness.find_disagreement(job, "torch", engine | {"first_loss": 2.05}, engine) is not None
