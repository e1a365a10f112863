"""How finetune computes steps: in parts, in other numbers, within a budget, with averages, not finite."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from engine.files import Npz
from engine.memory import planner

VIT = ("--model=vit:mini,depth=1", "--weights=none", "--eval_fraction=0.2", "--batch_size=8", "--log_every=1")
ALL = "--train=@all"
PARTS = ("weights", "slots", "averages", "accumulators", "gradients", "activations", "batches", "graph", "process")
MANY = "--batch_size=40"  # that of one piece is some MiB above that of parts
HOLDS = 500 * 2**20  # what the process is said to hold: the tests' own process is of any size


@pytest.fixture
def run(call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> Any:
    """Runs finetune on small data into tmp_path/NAME; checks the exit code; returns what it printed."""

    def start(name: str, *flags: str, code: int = 0) -> str:
        done, printed, err = call(*VIT, f"--data=npz:{small_data}", f"--out={tmp_path / name}", *flags)
        assert done == code, printed + err
        return str(printed + err)

    return start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def whole(run: Any, shared: pathlib.Path) -> pathlib.Path:
    """The folder of a run of three steps in one piece, float32, without anything that a flag here offers."""
    if not (shared / "whole").exists():
        run(str(shared / "whole"), ALL, "--steps=3")
    return shared / "whole"


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "resident_bytes", lambda: HOLDS)


@pytest.fixture
def impossible(run: Any, steady: None, shared: pathlib.Path) -> str:
    """What is said of a budget of 1 MB."""
    said = shared / "said.txt"
    if not said.exists():
        said.write_text(run(str(shared / "impossible"), ALL, MANY, "--steps=1", "--memory_budget=1MB", code=2))
        assert not (shared / "impossible").exists()
    return said.read_text()


def facts(out: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def rows(out: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with Npz(path) as npz:
        return {name: npz.read(name) for name in npz.names()}


def stopped(run: Any, monkeypatch: pytest.MonkeyPatch, name: str, *flags: str, after: int) -> str:
    """A run that is asked to stop after so many steps, and does; the first time it asks is before any."""
    from scripts import cli

    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > after)
        return str(run(name, *flags, code=3))


# ---- parts


def test_micro_batches_change_no_number_and_run_json_names_them(
    run: Any, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    printed = run("parts", ALL, "--steps=3", "--micro_batches=3")
    assert "step:    8 examples in 3 micro-batches of 3, remat none" in printed
    losses, parts = rows(whole, "train"), rows(tmp_path / "parts", "train")
    assert parts[0]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-6)
    assert parts[0]["grad_norm"] == pytest.approx(losses[0]["grad_norm"], rel=1e-5)
    for one, other in zip(losses, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["accuracy"] == pytest.approx(one["accuracy"])
    memory = facts(tmp_path / "parts")["memory"]
    assert memory["plan"] == {"micro_batch_size": 3, "remat": "none", "blocks": None, "reasons": []}
    assert set(memory["forecast_bytes"]) == {*PARTS, "total"}
    assert memory["forecast_bytes"]["total"] == sum(memory["forecast_bytes"][part] for part in PARTS[1:])
    assert memory["forecast_bytes"]["accumulators"] == memory["forecast_bytes"]["slots"] // 2
    whole_memory = facts(whole)["memory"]
    assert whole_memory["plan"]["micro_batch_size"] is None
    assert whole_memory["forecast_bytes"]["accumulators"] == 0
    assert whole_memory["forecast_bytes"]["activations"] > memory["forecast_bytes"]["activations"]


def test_a_cnn_in_micro_batches_is_told_that_its_statistics_are_not_the_steps(run: Any) -> None:
    printed = run("parts", "--model=cnn:mini", ALL, "--steps=1", "--micro_batches=2")
    assert "BatchNorm layer(s) in training mode normalise by the moments of a micro-batch" in printed
    assert "`!@stats` avoids this" in printed


def test_blocks_computed_again_give_the_same_losses(run: Any, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    printed = run("again", ALL, "--steps=3", "--remat=blocks")
    assert "step:    8 examples in one piece, remat blocks" in printed
    kept, again = rows(whole, "train"), rows(tmp_path / "again", "train")
    assert again[0]["loss"] == pytest.approx(kept[0]["loss"], rel=1e-6)
    for one, other in zip(kept, again, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert facts(tmp_path / "again")["memory"]["plan"]["remat"] == "blocks"


# ---- numbers


@pytest.mark.parametrize(
    ("precision", "scale"),
    [
        ("mixed_float16", 2.0**15),
        *(pytest.param(name, 1.0, marks=pytest.mark.slow) for name in ("mixed_bfloat16", "float64")),
    ],
)
def test_each_precision_trains_and_metrics_hold_the_loss_scale(
    run: Any, tmp_path: pathlib.Path, precision: str, scale: float
) -> None:
    run("run", ALL, "--steps=3", f"--precision={precision}", "--learning_rate=1e-4")
    train = rows(tmp_path / "run", "train")
    assert [row["loss_scale"] for row in train] == [scale] * 3
    assert [row["skipped"] for row in train] == [0] * 3
    assert all(np.isfinite(row["loss"]) for row in train)
    assert facts(tmp_path / "run")["skipped_steps"] == 0
    wanted = np.float64 if precision == "float64" else np.float32
    assert {array.dtype for array in arrays(tmp_path / "run/trained.npz").values()} == {np.dtype(wanted)}


# ---- averages


@pytest.mark.slow
def test_averages_are_written_and_evaluated(run: Any, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("ema", ALL, "--steps=3", "--ema=0.9")
    trained, averaged = arrays(tmp_path / "ema/trained.npz"), arrays(tmp_path / "ema/ema.npz")
    assert list(averaged) == list(trained)
    assert all(not np.array_equal(averaged[path], trained[path]) for path in trained if "kernel" in path)
    assert not (whole / "ema.npz").exists()
    for path, value in arrays(whole / "trained.npz").items():
        np.testing.assert_array_equal(value, trained[path], path)  # averages change nothing of the training
    plain, ema = facts(whole), facts(tmp_path / "ema")
    assert ema["final"]["train_loss"] == plain["final"]["train_loss"]
    assert ema["final"]["eval_loss"] != plain["final"]["eval_loss"]
    assert ema["memory"]["forecast_bytes"]["averages"] == ema["memory"]["forecast_bytes"]["slots"] // 2
    # the file is what was evaluated
    run("from_ema", "--train=@head", "--steps=1", f"--weights={tmp_path / 'ema/ema.npz'}")
    assert rows(tmp_path / "from_ema", "eval")[0]["eval_loss"] == ema["final"]["eval_loss"]


def test_averages_hold_what_trains_alone(run: Any, tmp_path: pathlib.Path) -> None:
    run("ema", "--train=@head", "--steps=1", "--ema=0.5")
    assert set(arrays(tmp_path / "ema/ema.npz")) == {"head/kernel", "head/bias"}


# ---- the forecast and the budget


def test_a_dry_run_prints_tables_and_memory_and_writes_nothing(run: Any, tmp_path: pathlib.Path) -> None:
    printed = run("dry", "--steps=8", "--dry_run", "--ema=0.9", "--micro_batches=2")
    assert re.search(r"phase head: 2 steps.*phase upper: 6 steps", printed, re.DOTALL)
    assert printed.count("decided by") == 2
    for phase in ("head", "upper"):
        assert re.search(rf"memory:  phase {phase}: about [\d.]+ [MG]iB = process before .*averages .*graph", printed)
    assert "evaluation" not in printed.split("memory:")[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_impossible_budget_names_the_smallest(run: Any, impossible: str, tmp_path: pathlib.Path) -> None:
    found = re.search(
        r"memory_budget=977 KiB: the smallest budget that would suffice is (\d+) MiB \(micro-batches of 1 example, remat=\w+\)",
        impossible,
    )
    assert found, impossible
    # and that does, or the next MiB: it is rounded in print
    run("some", ALL, MANY, "--steps=1", f"--memory_budget={int(found[1]) + 1}MiB")
    assert facts(tmp_path / "some")["memory"]["plan"]["micro_batch_size"] is not None


@pytest.mark.usefixtures("steady")
def test_a_budget_that_fits_says_why(run: Any, tmp_path: pathlib.Path) -> None:
    printed = run("run", ALL, "--steps=1", "--memory_budget=8GiB")
    memory = facts(tmp_path / "run")["memory"]
    assert memory["plan"]["micro_batch_size"] is None
    (reason,) = memory["plan"]["reasons"]
    assert re.fullmatch(r"one piece with remat=none: [\d.]+ MiB of 8 GiB", reason)
    assert reason in printed
    assert memory["forecast_bytes"]["process"] == HOLDS


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_a_depth_plan_trains_the_blocks_that_fit(run: Any, tmp_path: pathlib.Path) -> None:
    two = ("--model=vit:mini,depth=2", "--plan=depth", "--steps=1")
    printed = run("both", *two, "--memory_budget=8GiB")
    assert "depth:   the top 2 blocks and the head train" in printed
    (phase,) = facts(tmp_path / "both")["phases"]
    assert phase["name"] == "top_2"
    assert {path.split("/")[1] for path in phase["trained"] if path.startswith("blocks")} == {"0", "1"}
    assert "head/kernel" in phase["trained"]
    assert "patch/kernel" not in phase["trained"]
    total = facts(tmp_path / "both")["memory"]["forecast_bytes"]["total"]
    printed = run("one", *two, f"--memory_budget={total - 1}")
    (phase,) = facts(tmp_path / "one")["phases"]
    assert phase["name"] == "top_1"
    assert {path.split("/")[1] for path in phase["trained"] if path.startswith("blocks")} == {"1"}
    plan = facts(tmp_path / "one")["memory"]["plan"]
    assert plan["blocks"] == 1
    assert plan["reasons"][0].startswith("2 blocks would take")
    said = run("none", *two, "--memory_budget=1MB", code=2)
    assert "training 1 block(s) takes" in said


BAD: dict[str, tuple[list[str], str]] = {
    "no micro-batch": (["--micro_batches=0"], "micro_batches=0: a step of --batch_size=8 examples can be computed in 1 to 8 parts"),
    "too many": (["--micro_batches=99"], "micro_batches=99: a step of --batch_size=8 examples can be computed in 1 to 8 parts"),
    "precision": (["--precision=half"], "precision='half': expected one of float32, mixed_bfloat16, mixed_float16, float64"),
    "near precision": (["--precision=mixed_float"], "nearest: mixed_float16"),
    "budget": (["--memory_budget=lots"], "memory_budget='lots'"),
    "ema above 1": (["--ema=1.5"], "ema=1.5: expected a number above 0 and below 1"),
    "ema 0": (["--ema=0"], "ema=0"),
    "ema nan": (["--ema=nan"], "ema=nan"),
    "both": (["--micro_batches=2", "--memory_budget=8GiB"], "the budget decides the micro-batches; give only one of them"),
    "depth without budget": (["--plan=depth"], "plan=depth: --memory_budget must say what has to fit"),
    "depth with train": (["--plan=depth", "--memory_budget=8GiB", ALL], "leave out --train and --phase"),
    "depth with phase": (
        ["--plan=depth", "--memory_budget=8GiB", "--phase=train=@head steps=1"],
        "leave out --train and --phase",
    ),
    "depth without blocks": (["--model=cnn:mini", "--plan=depth", "--memory_budget=8GiB"], "has no blocks to choose from"),
    "remat of a cnn": (["--model=cnn:mini", "--remat=blocks"], "remat"),
    "remat": (["--remat=all"], "remat"),
    "nonfinite": (["--nonfinite=ignore"], "nonfinite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_end_with_a_message_and_write_nothing(run: Any, tmp_path: pathlib.Path, name: str) -> None:
    words, message = BAD[name]
    assert message in run("bad", *words, code=2)
    assert not list(tmp_path.iterdir())


# ---- steps that are not finite

OVERFLOW = ("--optimizer=sgd", "--learning_rate=1e30", "--schedule=constant", ALL)


def test_stop_fails_at_the_first_such_step_and_names_variables(run: Any, tmp_path: pathlib.Path) -> None:
    printed = run("run", *OVERFLOW, "--steps=5", "--nonfinite=stop", code=1)
    assert re.search(r"step 2 was not applied; \d+ of \d+ gradients are not finite: [a-z_]+/\w+", printed), printed
    assert "lower the learning rate (now 1e+30)" in printed
    end = facts(tmp_path / "run")
    assert end["steps"] == 1
    assert end["exit"]["code"] == 1
    assert "gradients are not finite" in end["exit"]["reason"]


@pytest.mark.slow
def test_skip_counts_such_steps_and_fails_after_20_in_a_row(run: Any, tmp_path: pathlib.Path) -> None:
    printed = run("few", *OVERFLOW, "--steps=6", "--nonfinite=skip")
    end = facts(tmp_path / "few")
    assert (end["steps"], end["skipped_steps"]) == (6, 5)
    assert "skipped steps:       5 of 6, not finite or without any weight" in printed
    assert [row["skipped"] for row in rows(tmp_path / "few", "train")] == [0, 1, 2, 3, 4, 5]
    # the last of them is a phase's last step: the phase has failed, and the next one never began
    phases = ("--phase=name=one steps=21", "--phase=name=two train=@head steps=2")
    printed = run("many", *OVERFLOW, *phases, "--nonfinite=skip", code=1)
    assert "20 steps in a row were skipped" in printed
    end = facts(tmp_path / "many")
    assert (end["steps"], end["skipped_steps"]) == (21, 20)
    assert [(phase["name"], phase["to_step"], phase["reason"]) for phase in end["phases"]] == [("one", 21, "failed")]
    # what was skipped changed nothing
    few, many = arrays(tmp_path / "few/trained.npz"), arrays(tmp_path / "many/trained.npz")
    for path in few:
        np.testing.assert_array_equal(few[path], many[path], path)


# ---- resume


@pytest.mark.slow
def test_a_resume_with_all_of_it_ends_with_the_same_bits(
    run: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (ALL, "--model=vit:mini,depth=1,dropout=0.1", "--steps=5", "--micro_batches=3", "--ema=0.9")
    flags += ("--precision=mixed_float16", "--augment=flip")
    run("whole", *flags)
    stopped(run, monkeypatch, "parts", *flags, after=3)
    assert facts(tmp_path / "parts")["steps"] == 3
    printed = run("parts", *flags, "--resume")
    assert "3 steps trained" in printed
    for name in ("trained.npz", "ema.npz"):
        whole, parts = arrays(tmp_path / "whole" / name), arrays(tmp_path / "parts" / name)
        assert list(whole) == list(parts)
        for path in whole:
            assert whole[path].tobytes() == parts[path].tobytes(), (name, path)
    timed = {"examples_per_second"}
    for one, other in zip(rows(tmp_path / "whole", "train"), rows(tmp_path / "parts", "train"), strict=True):
        assert {key: one[key] for key in set(one) - timed} == {key: other[key] for key in set(other) - timed}
    assert facts(tmp_path / "whole")["final"] == facts(tmp_path / "parts")["final"]


@pytest.mark.slow
def test_a_resume_counts_skipped_steps_on(run: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*OVERFLOW, "--steps=30", "--nonfinite=skip")
    stopped(run, monkeypatch, "run", *flags, after=8)
    assert facts(tmp_path / "run")["skipped_steps"] == 7
    assert "20 steps in a row were skipped" in run("run", *flags, "--resume", code=1)
    end = facts(tmp_path / "run")
    assert (end["steps"], end["skipped_steps"]) == (21, 20)


@pytest.mark.slow
def test_a_resume_keeps_the_plan_whatever_memory_there_is_now(
    run: Any, impossible: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = int(re.findall(r"would suffice is (\d+) MiB", impossible)[0])
    flags = (ALL, MANY, "--steps=4", f"--memory_budget={least + 1}MiB")
    stopped(run, monkeypatch, "run", *flags, after=2)
    plan = facts(tmp_path / "run")["memory"]["plan"]
    assert plan["micro_batch_size"] is not None
    for now in (0, 100 * HOLDS):
        monkeypatch.setattr(planner, "resident_bytes", lambda now=now: now)
        if now:
            run("run", *flags, "--resume")
            assert facts(tmp_path / "run")["steps"] == 4
        else:
            stopped(run, monkeypatch, "run", *flags, "--resume", after=1)
            assert facts(tmp_path / "run")["steps"] == 3
        assert facts(tmp_path / "run")["memory"]["plan"] == plan


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_a_resume_keeps_the_planned_depth(run: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--model=vit:mini,depth=2", "--plan=depth", "--steps=3", "--memory_budget=8GiB")
    stopped(run, monkeypatch, "run", *flags, after=1)
    monkeypatch.setattr(planner, "resident_bytes", lambda: 100 * HOLDS)
    run("run", *flags, "--resume")
    assert [phase["name"] for phase in facts(tmp_path / "run")["phases"]] == ["top_2"]
    assert facts(tmp_path / "run")["memory"]["plan"]["blocks"] == 2
