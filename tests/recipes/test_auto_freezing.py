"""Runs whose frost line moves up by itself: decisions, their resume to the bit, caches above the line, and the proof."""

from __future__ import annotations

import itertools
import json
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import FinetuneConfig, InputError, finetune
from engine.feature_cache import decision
from engine.files import Npz
from engine.recipes import plan
from engine.recipes.finetune import RunResult
from engine.recipes.listener import Listener
from engine.recipes.reopen import open_run
from engine.runs import picture, records
from engine.selection.levels import find_freezable
from engine.training import checkpoint
from engine.training.checkpoint import RunState
from engine.training.loop import Event

STEPS, EPOCH = 15, 3


class Layers(tf.Module):
    """Four dense layers and a head: traced in no time."""

    def __init__(self, image_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        draws = np.random.default_rng(3)
        sizes = [int(np.prod(image_shape)), 6, 6, 6, 6]
        self.a, self.b, self.c, self.d = (
            tf.Variable(draws.normal(0, size**-0.5, (size, width)), dtype=tf.float64)
            for size, width in itertools.pairwise(sizes)
        )
        self.head = tf.Variable(draws.normal(0, 0.3, (6, outputs)), dtype=tf.float64)

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        x = tf.cast(tf.reshape(images, [tf.shape(images)[0], -1]), self.head.dtype)
        for kernel in (self.a, self.b, self.c, self.d):
            x = tf.nn.tanh(x @ kernel)
        return x @ self.head


class Killed(BaseException):
    """As if the process had been killed: nothing is written any more."""


class Killing(Listener):
    """Keeps what it hears; ``after`` so many steps it kills the run, or stops it politely."""

    def __init__(self, *, after: int | None = None, politely: bool = False) -> None:
        self.after, self.politely, self.step, self.lines = after, politely, -1, [""]

    def say(self, line: str) -> None:
        self.lines.append(line)

    def handle(self, event: Event) -> None:
        if event.kind == "step":
            self.step = event.state.step
            if self.step == self.after and not self.politely:
                raise Killed

    def should_stop(self) -> bool:
        return self.politely and self.step == self.after


class Runs:
    def __init__(self, folder: pathlib.Path, data: pathlib.Path) -> None:
        self.folder, self.data, self.lines = folder, data, [""]
        self.whole = self.train("whole")
        self.said = self.lines

    def config(self, name: str, **given: Any) -> FinetuneConfig:
        fields: dict[str, Any] = {
            "model": "py:layers_code:make",
            "precision": "float64",
            "weights": "none",
            "data": f"npz:{self.data}",
        }
        fields |= {"train_examples": 24, "batch_size": 8, "steps": STEPS, "eval_every": 2, "checkpoint_every": 2}
        fields |= {"optimizer": "adamw", "learning_rate": 0.02, "log_every": 1, "keep": 9, "cache": "off"}
        fields |= {"auto_freeze": "threshold=0.6,patience=1", "out": str(self.folder / name)}
        return FinetuneConfig(**(fields | given))

    def train(self, name: str, *, listener: Killing | None = None, **given: Any) -> RunResult:
        listener = listener or Killing()
        self.lines = listener.lines
        return finetune(self.config(name, **given), listener=listener)

    def arrays(self, name: str) -> dict[str, bytes]:
        """The last checkpoint of a run."""
        found = checkpoint.list_checkpoints(self.folder / name / "checkpoints")[0]
        with Npz(found) as npz:
            return {name: npz.read(name).tobytes() for name in npz.names() if name != "state.json"}

    def metrics(self, name: str, kind: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in row.items() if key != "examples_per_second"}
            for row in rows
            if row["kind"] == kind
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        patch.setitem(
            sys.modules,
            "layers_code",
            types.SimpleNamespace(make=Layers),
        )
        yield Runs(tmp_path_factory.mktemp("runs"), small_data)


def test_parts_freeze_from_the_input_on_and_every_decision_is_told(runs: Runs) -> None:
    run = runs.whole.run
    moves, phases = run["auto_freeze"]["moves"], run["phases"]
    assert len(moves) >= 2
    frozen = [part for move in moves for part in move["parts"]]
    assert frozen == list("abcd"[: len(frozen)])
    assert [row["name"] for row in phases] == ["train", *(move["phase"] for move in moves)]
    edges = [0, *(move["step"] for move in moves), STEPS]
    assert [(row["from_step"], row["to_step"]) for row in phases] == list(itertools.pairwise(edges))
    assert [row["reason"] for row in phases] == ["auto_freeze"] * len(moves) + ["steps"]
    assert all(row["freeze_proof"]["verified"] for row in phases)
    assert [row["freeze_proof"]["variables"] for row in phases] == [
        0,
        *itertools.accumulate(len(m["parts"]) for m in moves),
    ]
    assert phases[-1]["trained"][-1] == "head"
    assert runs.metrics("whole", "freeze") == [{"kind": "freeze"} | move for move in moves]
    for move in moves:
        assert any(line.startswith(f"freeze | step {move['step']}: {move['parts'][0]}") for line in runs.said)


def test_the_decisions_follow_from_the_measurements_of_the_run(runs: Runs) -> None:
    found = runs.whole.run["auto_freeze"]
    largest: dict[str, float] = {}
    steps = {move["step"]: move for move in found["moves"]}
    for step, plasticity in found["measured"]:
        for part, value in plasticity.items():
            largest[part] = max(largest.get(part, 0.0), value)
        stalled = [value <= 0.6 * largest[part] for part, value in plasticity.items()]
        count = next((n for n, is_still in enumerate(stalled) if not is_still), len(stalled))
        if step < STEPS:
            assert count == len(steps[step]["parts"] if step in steps else [])
    assert [step for step, _ in found["measured"]] == [2, 4, 6, 8, 10, 12, 14, 15][: len(found["measured"])]


def test_the_schedule_and_the_slots_of_what_still_trains_go_on(runs: Runs) -> None:
    rows = runs.metrics("whole", "train")
    cosine = [0.01 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], cosine, rtol=1e-12)
    with Npz(checkpoint.list_checkpoints(runs.folder / "whole/checkpoints")[0]) as npz:
        assert int(npz.read("optimizer/head/t")) == STEPS
        moves = runs.whole.run["auto_freeze"]["moves"]
        kept = [name for name in npz.names() if name.startswith(("optimizer/", "auto_freeze/"))]
        assert not any(f"/{part}" in name for name in kept for move in moves for part in move["parts"])


def test_until_the_first_move_the_run_is_the_one_without_it_to_the_bit(runs: Runs) -> None:
    first = runs.whole.run["auto_freeze"]["moves"][0]["step"]
    plain = runs.train("plain", auto_freeze=None, train="@all")
    never = runs.train("never", auto_freeze="threshold=1e-9")
    assert runs.metrics("plain", "train")[:first] == runs.metrics("whole", "train")[:first]
    assert runs.metrics("plain", "train") == runs.metrics("never", "train")
    assert never.run["auto_freeze"]["moves"] == []
    assert len(plain.run["phases"]) == len(never.run["phases"]) == 1
    own, other = runs.arrays("never"), runs.arrays("plain")
    assert {name: own[name] for name in own if not name.startswith("auto_freeze/")} == other
    assert not any(name.startswith("auto_freeze/") for name in other)
    state = checkpoint.read_newest(runs.folder / "plain/checkpoints", warn=print)
    assert state is not None
    assert "auto_freeze" not in state.state


@pytest.mark.parametrize(
    "kills", ["once", *(pytest.param(how, marks=pytest.mark.slow) for how in ("often", "politely"))]
)
def test_a_run_that_ends_again_and_again_decides_and_ends_as_if_it_had_not(runs: Runs, kills: str) -> None:
    name, politely = f"resumed_{kills}", kills == "politely"
    first, second = (move["step"] for move in runs.whole.run["auto_freeze"]["moves"][:2])
    for after in [second + 1] if kills == "once" else sorted({1, first - 1, first, first + 1, second, second + 1}):
        listener = Killing(after=after, politely=politely)
        if politely:
            assert runs.train(name, listener=listener, resume=True).code == 3
        else:
            with pytest.raises(Killed):
                runs.train(name, listener=listener, resume=True)
    result = runs.train(name, resume=True)
    assert runs.arrays(name) == runs.arrays("whole")
    for kind in ("train", "eval", "freeze"):
        assert runs.metrics(name, kind) == runs.metrics("whole", kind)
    for key in ("phases", "auto_freeze", "final", "freeze_proof", "exit"):
        assert result.run[key] == runs.whole.run[key], key


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model were so large that nothing but its work counted, so that caches pay."""
    for name in ("_PREPARING", "_WRITTEN", "_READ"):
        monkeypatch.setattr(decision, name, 0)


@pytest.mark.usefixtures("as_if_large")
def test_above_the_line_a_cache_is_used_and_changes_nothing(runs: Runs) -> None:
    cached = runs.train("cached", cache="auto", cache_dir=str(runs.folder / "exact"))
    one, other = runs.whole.run["auto_freeze"], cached.run["auto_freeze"]
    assert [move["cached"] for move in other["moves"]] == [True] * len(one["moves"])
    assert [move["parts"] for move in other["moves"]] == [move["parts"] for move in one["moves"]]
    assert cached.run["cache"]["used"]
    assert any(line.startswith("cache  | above_a: used") for line in runs.lines)
    for row, same in zip(runs.metrics("cached", "train"), runs.metrics("whole", "train"), strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("as_if_large")
def test_a_resume_does_not_decide_otherwise_because_caches_exist(runs: Runs) -> None:
    given: dict[str, Any] = {"cache": "auto", "cache_dir": str(runs.folder / "features")}
    whole = runs.train("caching", **given)
    with pytest.raises(Killed):
        runs.train("killed", listener=Killing(after=whole.run["auto_freeze"]["moves"][1]["step"] + 1), **given)
    resumed = runs.train("killed", resume=True, **given)
    assert resumed.run["auto_freeze"] == whole.run["auto_freeze"]
    assert runs.arrays("killed") == runs.arrays("caching")


def test_a_checkpoint_is_a_weights_file_and_can_be_opened(runs: Runs) -> None:
    whole = checkpoint.list_checkpoints(runs.folder / "whole/checkpoints")
    first = next(path for path in reversed(whole) if any(n.startswith("auto_freeze/") for n in Npz(path).names()))
    result = runs.train("from_checkpoint", weights=str(first), steps=1, auto_freeze=None, train="@head")
    with Npz(first) as npz:
        assert result.task.variables.by_path()["a"].variable.numpy().tobytes() == npz.read("a").tobytes()
    opened = open_run(runs.folder / "whole", checkpoint="last")
    assert {e.path: e.variable.numpy().tobytes() for e in opened.variables}.items() <= runs.arrays("whole").items()


def test_a_run_that_stops_early_decides_nothing_more(runs: Runs) -> None:
    rule = {"auto_freeze": "threshold=0.999,patience=2", "learning_rate": 1e-9, "eval_every": 1}  # stalls at step 3
    result = runs.train("early", **rule, monitor="eval_accuracy", early_stop=3)
    assert result.reason == "early_stop"
    assert result.run["steps"] == 3
    assert not result.run["auto_freeze"]["moves"]
    assert [row["name"] for row in result.run["phases"]] == [stage.phase.name for stage in result.stages]


def test_a_resume_with_another_rule_or_another_model_is_refused(runs: Runs) -> None:
    with pytest.raises(InputError, match=r"--auto_freeze: 'threshold=0\.6,patience=1' in the checkpoint, 'on' now"):
        runs.train("whole", resume=True, auto_freeze="on")
    with pytest.raises(InputError, match=r"--auto_freeze: 'threshold=0\.6,patience=1' in the checkpoint, None now"):
        runs.train("whole", resume=True, auto_freeze=None)
    found = checkpoint.read_newest(runs.folder / "whole/checkpoints", warn=print)
    assert found is not None
    for broken in ({"moves": [{"step": 1}]}, {"moves": [], "measured": 3}, []):
        with pytest.raises(checkpoint.CheckpointError, match="does not hold the state of a run"):
            RunState.read(
                checkpoint.Checkpoint(found.path, found.step, {**found.state, "auto_freeze": broken}, found.arrays)
            )


def test_what_can_not_happen_is_said_before_the_first_step(runs: Runs) -> None:
    dry = {"dry_run": True}
    runs.train("dry", **dry, auto_freeze="patience=9", train="@all")
    assert any("freeze:  a, b, c and d, in this order" in line for line in runs.lines)
    assert any("15 steps with an evaluation every 2 are too few" in line for line in runs.lines)
    runs.train("dry", **dry, train="@head")
    assert any("--auto_freeze will freeze nothing" in line for line in runs.lines)
    assert find_freezable(runs.whole.task.variables, "@all", "follow")[0].name == "a"


def test_the_copies_that_it_compares_are_forecast(runs: Runs) -> None:
    task = runs.whole.task
    plain, own = (plan.surroundings(runs.config("x", auto_freeze=rule), task) for rule in (None, "on"))
    assert plain.copies == 0
    assert own.copies == 2 * 8 * task.variables.parameters


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"phase": ("train=@head",)}, "it decides the phases itself; leave out --phase"),
        ({"plan": "depth", "memory_budget": "4GB"}, "--plan=depth decides what trains too"),
        ({"cache": "require"}, "the first phase trains from images"),
        ({"auto_freeze": "off"}, "leave the flag out"),
    ],
)
def test_flags_that_contradict_it_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        FinetuneConfig(**({"auto_freeze": "on"} | given))
    assert str(refused.value).startswith("auto_freeze=")


@pytest.mark.parametrize(
    "given",
    [{}, pytest.param({"ema": 0.9, "micro_batches": 2, "precision": "mixed_bfloat16"}, marks=pytest.mark.slow)],
    ids=["plain", "averages, micro-batches and 16 bits"],
)
def test_statistics_of_frozen_parts_stay(runs: Runs, given: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "model": "cnn:mini",
        "train": "@all @stats",
        "steps": 4,
        "eval_every": 1,
        "precision": "float32",
    }
    result = runs.train(f"statistics_{len(given)}", rates="@head=0.02", **(fields | given))
    assert result.code == 0
    assert len(result.run["auto_freeze"]["moves"]) >= 1
    first, last = result.run["phases"][0], result.run["phases"][-1]
    assert last["freeze_proof"]["verified"]
    assert len(first["moving"]) == 8  # a mean and a variance in each stage
    assert last["freeze_proof"]["variables"] == 4 * 5
    assert not last["moving"]


@pytest.mark.slow
def test_replicas_decide_as_one_device_does(finetune: Any, small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = ["--model=cnn:mini", "--weights=none", f"--data=npz:{small_data}", "--train_examples=24", "--batch_size=8"]
    flags += [
        "--train=@all !@stats",
        "--steps=5",
        "--eval_every=1",
        "--auto_freeze=threshold=0.6,patience=1",
        "--optimizer=sgd",
        "--cache=off",
    ]
    moves = []
    for name, more in (("one", ["--distribute=none"]), ("two", ["--distribute=mirrored", "--logical_devices=2"])):
        finetune(*flags, f"--out={tmp_path / name}", *more)
        run = json.loads((tmp_path / name / "run.json").read_text())
        assert run["freeze_proof"]["verified"]
        moves.append([(move["step"], move["parts"]) for move in run["auto_freeze"]["moves"]])
    assert moves[0] == moves[1] != []
