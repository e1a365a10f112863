"""What is shown and logged while a run goes on: the time left, and the accuracy since the last line."""

from __future__ import annotations

import itertools
import json
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from engine.runs.progress import Progress
from engine.runs.step_means import StepMeans


def event(kind: str, step: int, *, seconds: float = 0.0, accuracy: float = 0.0, examples: int = 1) -> Any:
    stage = SimpleNamespace(phase=SimpleNamespace(name="p"), selection=SimpleNamespace(trained_parameters=1))
    result = SimpleNamespace(loss=1.0, metrics={"accuracy": accuracy}, metric_weights={})
    return SimpleNamespace(
        kind=kind, state=SimpleNamespace(step=step), stage=stage, result=result, seconds=seconds, examples=examples
    )


def test_the_time_left_is_that_of_the_steps_of_the_phase_without_the_one_that_traces(capsys: Any) -> None:
    show = Progress(100, start=0, log_every=10)
    for first, seconds in ((0, 1.0), (50, 3.0)):  # the second phase is slower
        show(event("phase", first))
        for step in range(first + 1, first + 21):
            show(event("step", step, seconds=40.0 if step == first + 1 else seconds))
    lines = [line.rsplit("left: ")[1] for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert lines == ["0:01:30", "0:01:20", "0:02:00", "0:01:30"]


def test_the_accuracy_is_the_mean_over_examples_since_the_last_line(capsys: Any) -> None:
    show = Progress(4, start=0, log_every=2)
    show(event("phase", 0))
    for step, accuracy, examples in ((1, 1.0, 3), (2, 0.0, 1), (3, 0.5, 3), (4, 0.25, 3)):
        show(event("step", step, accuracy=accuracy, examples=examples))
    assert [line.split("accuracy: ")[1][:6] for line in capsys.readouterr().out.splitlines() if "accuracy" in line] == [
        "0.7500",
        "0.3750",
    ]


def test_means_leave_out_what_is_not_finite_and_go_on_from_saved_sums() -> None:
    means = StepMeans()
    means.add(event("step", 1, accuracy=0.3, examples=7))
    means.add(event("step", 2, accuracy=float("nan"), examples=7))
    assert means.means() == {"accuracy": 0.3 * 7 / 7}
    other = StepMeans(json.loads(json.dumps(means.to_json())))
    for each in (means, other):
        each.add(event("step", 3, accuracy=0.9, examples=2))
    assert other.means() == means.means()
    means.clear()
    assert means.means() == {}


@pytest.mark.slow
def test_a_resume_between_two_lines_logs_what_one_piece_logs(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    flags = ["--model=cnn:mini", "--weights=none", "--train=@all", f"--data=npz:{small_data}", "--batch_size=8"]
    flags += ["--eval_fraction=0.2", "--steps=6", "--log_every=3", "--eval_every=6", "--cache=off"]
    assert call(*flags, f"--out={tmp_path / 'whole'}")[0] == 0
    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > 2)
        assert call(*flags, f"--out={tmp_path / 'parts'}")[0] == 3
    assert call(*flags, f"--out={tmp_path / 'parts'}", "--resume")[0] == 0
    found = []
    for name in ("whole", "parts"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found.append([(row["step"], row["loss"], row["accuracy"]) for row in rows if row["kind"] == "train"])
    assert found[0] == found[1]
    assert [step for step, _, _ in found[0]] == [3, 6]
