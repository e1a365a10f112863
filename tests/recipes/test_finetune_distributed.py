"""finetune on several workers: one run of two real processes, and, slowly, their stops, deaths and disagreements."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from workers import Kill, Outcome, run_workers

from engine.feature_cache import decision

Call = Callable[..., tuple[int, str, str]]
MODEL = ("--model=vit:mini,depth=2", "--weights=none", "--precision=float64", "--batch_size=5", "--seed=4")
PHASES = ("--phase=name=all steps=2 train=@all", "--phase=name=head steps=4 train=@head", "--clip_norm=1", "--ema=0.9")
VIEWS = ("--augment=flip,crop", "--cache_views=2")
OFTEN = ("--checkpoint_every=1", "--keep=9", "--eval_every=2", "--log_every=1", "--metrics=f1,auc,confusion")

# The program, with a cache wherever there is a frost line, and a change before it begins
PROGRAM = """
import os, sys
from engine.feature_cache import decision
from scripts import finetune
decision._PAYS = 1e9  # so small a model is never worth a cache
{before}
sys.argv[0] = "finetune"
finetune.run()
"""
# Worker 1 changes a bit of a variable after the third step.
PLANTED = """
from engine.recipes.execution import Execution
note = Execution._note_step
def plant(self, event):
    note(self, event)
    if event.kind == "step" and event.state.step == 3 and self.job.distribution.worker == 1:
        variable = self.job.task.variables.by_path()["{path}"].variable
        variable.assign(variable + 1e-9)
Execution._note_step = plant
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag of 13 training, 7 evaluation and 5 test examples: steps of 5, 5 and 3."""
    rng = np.random.default_rng(0)
    parts = {"train": 13, "val": 7, "test": 5}
    arrays: dict[str, Any] = {f"{n}_images": rng.integers(0, 256, (c, 8, 8, 1), np.uint8) for n, c in parts.items()}
    arrays |= {f"{n}_labels": np.arange(c) % 3 for n, c in parts.items()}
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays)
    return f"--data=npz:{path}"


def flags(data: str, out: pathlib.Path, *more: str) -> list[str]:
    return [data, *MODEL, *PHASES, *VIEWS, *OFTEN, f"--out={out}", *more]


def run(words: Sequence[str], count: int = 2, *, before: str = "", **options: Any) -> list[Outcome]:
    """The workers of a run; none may write a traceback."""
    given = ["-c", PROGRAM.format(before=before), *words, "--distribute=multiworker", "--worker_timeout=20"]
    found = run_workers(given, count, timeout=400, **options)
    assert not [each for each in found if "Traceback" in each.stdout + each.stderr], found
    return found


def codes(found: Sequence[Outcome]) -> list[int]:
    return [each.code for each in found]


def read(out: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def evaluations(out: pathlib.Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "eval"]


def difference(one: pathlib.Path, other: pathlib.Path) -> float:
    """Of the trained variables and their averages, relative."""
    norms = np.zeros(2)
    for name in ("trained.npz", "ema.npz"):
        with np.load(one / name) as first, np.load(other / name) as second:
            for key in first.files:
                if isinstance(first[key], np.ndarray) and first[key].dtype.kind == "f":
                    norms += np.sum((first[key] - second[key]) ** 2), np.sum(second[key] ** 2)
    return float(np.sqrt(norms[0] / norms[1]))


def files(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def alone(tmp_path: pathlib.Path, data: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The run of one device."""
    monkeypatch.setattr(decision, "_PAYS", 1e9)
    code, _, error = call(*flags(data, tmp_path / "alone" / "run"))
    assert code == 0, error
    return tmp_path / "alone" / "run"


def test_two_workers_make_the_run_of_one_device_and_one_device_goes_on_with_theirs(
    tmp_path: pathlib.Path, data: str, alone: pathlib.Path, call: Call
) -> None:
    """A phase of images and one of cached features, with augmentation, clipping and averages, in float64."""
    out = tmp_path / "two" / "run"
    chief, other = run(flags(data, out))
    assert (chief.code, other.code) == (0, 0), chief.stderr + other.stderr
    assert "distribution: 2 workers, 2 replicas; this is worker 0, the chief" in chief.stdout
    assert other.stdout.startswith("worker 1 of 2 (127.0.0.1:")
    assert len(other.stdout.splitlines()) == 1
    assert difference(out, alone) <= 1e-10
    ours, one = read(out), read(alone)
    assert ours["freeze_proof"] == one["freeze_proof"]
    for mine, theirs in zip(evaluations(out), evaluations(alone), strict=True):
        assert mine["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-10)
        for name in ("eval_accuracy", "eval_f1", "eval_auc", "eval_confusion"):
            assert mine[name] == theirs[name]
    assert evaluations(out)[0]["eval_loss"] == evaluations(alone)[0]["eval_loss"]  # of the same weights: the same bits
    assert ours["final"]["test_accuracy"] == one["final"]["test_accuracy"]
    assert [(row["name"], row["used"], row["computed_rows"]) for row in ours["cache"]["phases"]] == [
        ("all", False, 0),
        ("head", True, 2 * 13 + 7),
    ]
    sent = ours["distribution"]
    assert (sent["kind"], sent["workers"], sent["replicas"]) == ("multiworker", 2, 2)
    for row, phase in zip(sent["phases"], ours["phases"], strict=True):
        assert 0 < row["bytes_per_step"] - 8 * phase["trained_parameters"] < 200
        assert row["collectives_per_step"] <= 3
    assert one["distribution"] == {"kind": "none", "workers": 1, "replicas": 1, "phases": []}
    assert "2 workers, 2 replicas" in (out / "card.md").read_text()
    for newest in sorted((out / "checkpoints").glob("step-*"))[-2:]:  # as if they had died in the second phase
        newest.unlink()
    code, said, error = call(f"--out={out}", "--resume", "--distribute=none")
    assert code == 0, error
    assert "4 steps trained" in said
    assert "resume: 1 replica now, 2 before: the last bits of the steps may differ" in said
    assert "33 of 33 rows exist" in said
    assert difference(out, alone) <= 1e-10


@pytest.mark.slow
def test_a_stop_of_one_worker_stops_all_and_other_numbers_of_workers_go_on(
    tmp_path: pathlib.Path, data: str, alone: pathlib.Path
) -> None:
    out = tmp_path / "run"
    stopped = run(flags(data, out), kill=Kill(1, "worker 1 of 2", 15))
    assert codes(stopped) == [3, 3], stopped
    assert "stopped by SIGTERM on worker 1 (127.0.0.1:" in read(out)["exit"]["reason"]
    # the signal of the chief, after an evaluation has been shown
    stopped = run([f"--out={out}", "--resume"], 1, kill=Kill(0, "eval   | step:", 15))
    assert codes(stopped) in ([3], [0])
    if codes(stopped) == [3]:
        assert codes(run([f"--out={out}", "--resume"], 3)) == [0, 0, 0]
    assert difference(out, alone) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("path", ["head/kernel", "blocks/0/mlp/up/kernel"])
def test_a_planted_difference_on_one_worker_is_caught_and_named(tmp_path: pathlib.Path, data: str, path: str) -> None:
    """In the second phase, of a variable that trains and of one that is frozen."""
    out = tmp_path / "run"
    found = run(flags(data, out), before=PLANTED.format(path=path))
    assert codes(found) == [1, 1]
    reason = read(out)["exit"]["reason"]
    assert f"{path}" in reason
    assert "on worker 1 (127.0.0.1:" in reason
    assert reason in found[1].stderr
    assert sorted(each.name for each in (out / "checkpoints").iterdir())[-1] == "step-00000002.npz"


@pytest.mark.slow
def test_workers_with_other_flags_or_data_are_refused(tmp_path: pathlib.Path, data: str) -> None:
    copy = tmp_path / "data.npz"
    with np.load(data.removeprefix("--data=npz:")) as file:
        arrays = dict(file)
    np.savez(copy, **arrays | {"train_labels": arrays["train_labels"][::-1]})
    original = pathlib.Path(data.removeprefix("--data=npz:"))
    cases: dict[str, Callable[[int], list[str]]] = {
        "flags: --seed is 4 on worker 0": lambda n: flags(data, tmp_path / "a", *(["--seed=5"] * n)),
        "content (SHA-256)": lambda n: flags(f"--data=npz:{tmp_path / f'link{n}' / 'data.npz'}", tmp_path / "b"),
    }
    for n, place in enumerate((original, copy)):
        (tmp_path / f"link{n}").mkdir()
        shutil.copy(place, tmp_path / f"link{n}" / "data.npz")
    for words, given in cases.items():
        program = PROGRAM.format(before="os.chdir(os.environ['PLACE'])")
        if "content" in words:  # the same flags, in folders with other data
            given = lambda n: flags("--data=npz:data.npz", tmp_path / "b")  # noqa: E731
        found = run_workers(
            lambda n, given=given, program=program: [
                "-c",
                program,
                *given(n),
                "--distribute=multiworker",
                "--worker_timeout=20",
            ],
            2,
            environ=lambda n: {"PLACE": str(tmp_path / f"link{n}")},
            timeout=300,
        )
        assert codes(found) == [2, 2], found
        for each in found:
            assert words in each.stderr
            assert "Traceback" not in each.stderr
        assert not (tmp_path / "a" / "run.json").exists()


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_refused_by_all_workers_at_once(tmp_path: pathlib.Path, data: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    found = run_workers(["-m", "scripts.finetune", *flags(data, out), "--distribute=multiworker"], 2)
    for outcome in found:
        assert outcome.code == 2, outcome
        assert "it holds a run (run.json)" in outcome.stderr
        assert "did not come" not in outcome.stderr
    assert "worker 0 (127.0.0.1:" in found[1].stderr


@pytest.mark.slow
def test_three_logical_devices_make_the_run_of_one(tmp_path: pathlib.Path, data: str, alone: pathlib.Path) -> None:
    out = tmp_path / "three" / "run"
    words = ["-c", PROGRAM.format(before=""), *flags(data, out), "--distribute=mirrored", "--logical_devices=3"]
    (found,) = run_workers(words, 1, timeout=400, environ={"TF_CONFIG": "not even JSON"})
    assert found.code == 0, found.stderr
    assert "distribution: 3 replicas in this process" in found.stdout
    assert difference(out, alone) <= 1e-10
    assert read(out)["distribution"]["replicas"] == 3


@pytest.mark.slow
def test_a_worker_that_is_killed_at_any_moment_stops_the_other_and_the_run_goes_on_exactly(
    tmp_path: pathlib.Path, data: str
) -> None:
    whole = tmp_path / "whole"
    begin = time.monotonic()
    assert codes(run(flags(data, whole))) == [0, 0]
    seconds, draw, stopped = time.monotonic() - begin, random.Random(22), 0
    for number in range(20):
        out, victim = tmp_path / f"run{number}", draw.randrange(2)
        words = flags(data, out, f"--cache_dir={out}.cache")  # of its own, so that it is filled in each run
        found = run(words, kill=Kill(victim, draw.uniform(0.2, 1.0) * seconds))
        if found[victim].code == -signal.SIGKILL:
            stopped += 1
            assert found[1 - victim].code in (0, 1), found  # it may just have ended
            if found[1 - victim].code == 1:
                assert f"worker {victim} (127.0.0.1:" in found[1 - victim].stderr + found[1 - victim].stdout
            assert codes(run([*words, "--resume"])) == [0, 0]
        assert difference(out, whole) == 0.0
        shutil.rmtree(out)
    assert stopped > 10
