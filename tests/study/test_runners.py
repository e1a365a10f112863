"""Runners train a strategy with the settings of its own: rates by phase or by layer, and a pull to the start."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from compat_v1.training.study_runner import VarListRunner
from engine.study.config import StudyConfig
from engine.study.measurements import LeftOut
from engine.study.planning import Plan, build_plan
from engine.study.runners import EngineRunner
from engine.study.strategies import list_flags
from engine.training.phases import Phase

NAMES = ["lp_ft", "layer_decay", "l2_sp"]


@pytest.fixture(scope="module")
def plan(small_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    config = StudyConfig(
        model="cnn:mini", weights="none", data=f"npz:{small_data}", strategies=NAMES, runners=["engine"], repeats=1,
        steps=6, eval_every=1, batch_size=8, eval_fraction=0.2, out=str(tmp_path_factory.mktemp("study") / "out"),
    )  # fmt: skip
    return build_plan(config, command="study")


@pytest.fixture
def run(plan: Plan, tmp_path: pathlib.Path) -> Any:
    """Runs a strategy of the plan from its first weights: (runner, weights afterwards)."""
    variables = plan.setting.task.variables
    first = {entry.path: entry.variable.numpy() for entry in variables}

    def train(name: str, kind: Any = EngineRunner) -> tuple[Any, dict[str, np.ndarray]]:
        for entry in variables:
            entry.variable.assign(first[entry.path])
        asked = next(run for run in plan.runs if run.strategy == name)
        stages = plan.setting.stages((Phase(**phase) for phase in asked.phases), optimizer=asked.optimizer)
        runner = kind(plan.setting, stages, scratch=tmp_path / "cache")
        runner.run()
        return runner, {entry.path: entry.variable.numpy() for entry in variables}

    yield train
    for entry in variables:
        entry.variable.assign(first[entry.path])


def test_the_head_comes_first_and_everything_follows_at_a_lower_rate(run: Any) -> None:
    runner, _ = run("lp_ft")
    assert [phase["name"] for phase in runner.phases] == ["head", "full"]
    assert 1 < runner.phases[0]["to_step"] <= 3  # a plateau, or half of the steps
    assert (runner.phases[1]["from_step"], runner.phases[1]["to_step"]) == (runner.phases[0]["to_step"], 6)
    assert [stage.learning_rate for stage in runner.stages] == [1e-3, pytest.approx(3e-5)]
    assert not any(phase["changed"] for phase in runner.phases)


@pytest.mark.slow
def test_lower_layers_move_less_by_any_runner(plan: Plan, run: Any) -> None:
    start = {entry.path: entry.variable.numpy() for entry in plan.setting.task.variables}
    _, ours = run("layer_decay")
    v1, theirs = run("layer_decay", VarListRunner)
    v1.close()
    kernels = [e.path for e in plan.setting.task.variables if e.kind == "weight" and len(e.shape) > 1]
    for path in kernels:
        np.testing.assert_allclose(theirs[path], ours[path], atol=2e-5)
    moved = [float(np.abs(ours[path] - start[path]).mean()) for path in (kernels[0], kernels[-1])]
    assert 0.02 < moved[0] / moved[1] < 0.05  # Adam's first steps are about as long as the rate, here 1/32 of it


def test_the_start_pulls_and_graphs_of_tensorflow_1_leave_it_out(plan: Plan, run: Any) -> None:
    start = {entry.path: entry.variable.numpy() for entry in plan.setting.task.variables}
    runner, after = run("l2_sp")
    np.testing.assert_array_equal(runner.step.slots.values["head/kernel"]["start"].numpy(), start["head/kernel"])
    assert not np.array_equal(after["head/kernel"], start["head/kernel"])
    with pytest.raises(LeftOut, match="decay toward zero here"):
        run("l2_sp", VarListRunner)


def test_a_plan_says_which_flags_repeat_a_strategy(plan: Plan) -> None:
    flags = {run.strategy: list_flags(run.phases, run.optimizer) for run in plan.runs}
    assert flags["lp_ft"] == []
    assert flags["l2_sp"] == ["--optimizer=adamw", "--weight_decay=0.1", "--decay_toward=start"]
    assert flags["layer_decay"] == [f"--layer_decay={plan.runs[1].phases[0]['layer_decay']!r}"]
    assert "optimizer" not in plan.runs[0].identity()  # as in the files of earlier studies
    assert plan.runs[2].identity()["optimizer"].startswith("adamw")
