"""finetune called from Python: the same bits as from flags, a listener that hears and stops, and what comes back."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from engine.errors import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import DONE, FAILED, STOPPED, RunResult, finetune
from engine.recipes.job import Job
from engine.recipes.listener import Listener
from engine.runs import picture, records
from engine.training.loop import Event


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No curves, which would take most of the time; and op determinism off again."""
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    yield
    config.disable_op_determinism()


class Hearing(Listener):
    """Keeps what it hears, and stops after some steps."""

    stopped_by = "the test"

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.heard: list[str] = []
        self.lines: list[str] = []
        self.stop_after = stop_after
        self.steps = 0
        self.jobs: list[Job] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show_job(self, job: Job) -> None:
        self.heard.append("job")
        self.jobs.append(job)

    def show_caching(self, job: Job, decisions: Sequence[Any]) -> None:
        self.heard.append(f"caching {[decision.used for decision in decisions]}")

    def begin(self, total: int, start: int) -> None:
        self.heard.append(f"begin {start} of {total}")

    def handle(self, event: Event) -> None:
        self.heard.append(event.kind)
        self.steps += event.kind == "step"

    def show_progress(self, total: int, what: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        self.heard.append(f"progress {what} {total}")
        return super().show_progress(total, what)

    def end(self) -> None:
        self.heard.append("end")

    def should_stop(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


@pytest.fixture
def given(small_data: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, Any]:
    """Fields of a run of four steps."""
    return {
        "model": "cnn:mini", "weights": "none", "data": f"npz:{small_data}", "eval_fraction": 0.2, "batch_size": 8,
        "train": "@head stages/3/.*", "steps": 4, "log_every": 1, "out": str(tmp_path / "python"),
    }  # fmt: skip


def test_a_run_from_python_and_from_flags_gives_the_same_bits(
    given: dict[str, Any], call: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finetune(FinetuneConfig(**given))
    assert capsys.readouterr() == ("", "")
    code, printed, _ = call(*(f"--{name}={value}" for name, value in (given | {"out": tmp_path / "flags"}).items()))
    assert code == 0
    assert "freeze proof:        verified" in printed
    assert (tmp_path / "flags/trained.npz").read_bytes() == (tmp_path / "python/trained.npz").read_bytes()
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("python", "flags")]
    assert next(iter(runs[0])) == "format"
    for run in runs:
        run["flags"].pop("out")
        for measured in ("timing", "memory"):
            run.pop(measured)
        for phase in run["cache"]["phases"]:
            phase.pop("seconds")
    assert runs[0] == runs[1]
    assert result.run["final"] == runs[0]["final"]


def test_the_result_has_the_trained_network_and_what_became_of_the_run(given: dict[str, Any]) -> None:
    result = finetune(FinetuneConfig(**given))
    assert isinstance(result, RunResult)
    assert (result.code, result.reason, result.out) == (DONE, "done", pathlib.Path(given["out"]))
    assert result.run == json.loads((result.out / "run.json").read_text())
    assert [entry.path for entry in result.selection.trained] == result.run["phases"][0]["trained"]
    assert [evaluation.step for evaluation in result.evaluations] == [0, 4]
    assert result.evaluations[-1].loss == result.run["final"]["eval_loss"]
    assert result.network is result.task.model.network
    batch = next(iter(result.task.eval_batches()))
    assert result.network(batch["image"], training=False, seeds=batch["seeds"]).shape == (12, 3)


def test_a_listener_hears_the_job_the_events_and_the_end(given: dict[str, Any]) -> None:
    listener = Hearing()
    finetune(FinetuneConfig(**given | {"steps": 2, "cache": "require", "train": "@head"}), listener=listener)
    assert listener.heard == [
        "job", "caching [True]", "begin 0 of 2", "phase", "progress cache train 48", "progress cache train 12",
        "evaluation", "step", "checkpoint", "step", "evaluation", "phase_end", "checkpoint", "end",
    ]  # fmt: skip
    assert "weights: random" in listener.lines
    (job,) = listener.jobs
    assert (job.total_steps, job.eval_every, job.eval_size) == (2, 6, 64)


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_same_bits(given: dict[str, Any], tmp_path: pathlib.Path) -> None:
    whole = finetune(FinetuneConfig(**given | {"out": str(tmp_path / "whole")}))
    stopped = finetune(FinetuneConfig(**given), listener=Hearing(stop_after=2))
    assert (stopped.code, stopped.reason, stopped.run["steps"]) == (STOPPED, "stopped by the test; --resume goes on", 2)
    assert stopped.run["exit"] == {"code": 3, "reason": "stopped by the test; --resume goes on"}
    listener = Hearing()
    resumed = finetune(FinetuneConfig(**given | {"resume": True}), listener=listener)
    assert "begin 2 of 4" in listener.heard
    assert any(line.endswith("step-00000002.npz, 2 steps trained") for line in listener.lines)
    assert resumed.run["final"] == whole.run["final"]
    assert resumed.evaluations == whole.evaluations
    assert (resumed.out / "trained.npz").read_bytes() == (whole.out / "trained.npz").read_bytes()


def test_a_dry_run_resolves_everything_and_writes_nothing(given: dict[str, Any], tmp_path: pathlib.Path) -> None:
    listener = Hearing()
    result = finetune(FinetuneConfig(**given | {"dry_run": True}), listener=listener)
    assert (result.code, result.reason, result.run, result.evaluations) == (DONE, "dry_run", {}, ())
    assert listener.heard == ["job", "caching [False]"]
    assert result.selection.trained_parameters > 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_says_why_and_is_recorded(given: dict[str, Any]) -> None:
    result = finetune(FinetuneConfig(**given | {"steps": 30, "optimizer": "sgd", "learning_rate": 1e30}))
    assert result.code == FAILED
    assert "lower the learning rate" in result.reason
    assert json.loads((result.out / "run.json").read_text())["exit"] == {"code": 1, "reason": result.reason}


def test_what_only_the_data_and_the_model_show_is_an_input_error_and_nothing_is_written(
    given: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    for bad in ({"train": "haed/.*"}, {"batch_size": 49}, {"model": "cnn:mini,classes=2"}, {"decay": "haed"}):
        with pytest.raises(InputError):
            finetune(FinetuneConfig(**given | bad))
    assert not list(tmp_path.iterdir())
