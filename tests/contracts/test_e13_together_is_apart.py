"""E13: runs of one network that train together do what each does alone: other seeds and rates, stops, phases, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import pytest

from engine import SGD, AdamW, Momentum, TrainStep, select
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.models import build_model
from engine.selection.selection import Selection
from engine.selection.variables import name_variables
from engine.training import losses
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, LoopError, Stage, State, StepRequest
from engine.training.members import Member, Members
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation, Phase
from engine.training.precision import LossScale, parse
from engine.training.schedules import parse as parse_schedule
from engine.training.step_result import NonFiniteError

CLASSES, EXAMPLES, SIZE = 3, 10, 4  # the last step of an epoch has 2 examples


@dataclass(frozen=True)
class Run:
    """What one run trains, and how."""

    train: Sequence[str] = ("@head",)
    optimizer: Optimizer = Momentum()  # noqa: RUF009 - frozen
    learning_rate: float = 0.05
    seed: int = 0
    steps: int = 4
    phase: Mapping[str, Any] = field(default_factory=dict)
    early_stop: int | None = None
    schedule: str = "constant"


def vit(precision: str, options: str = "depth=2") -> Any:
    given: dict[str, Any] = {"dtype": parse(precision).variables, "compute": parse(precision).compute}
    return build_model(f"vit:mini,{options}", image_shape=(8, 8, 1), outputs=CLASSES, **given).network


def vit_with_dropout(precision: str) -> Any:
    return vit(precision, "depth=1,dropout=0.1")


def cnn(precision: str) -> Any:
    """With two BatchNorms, and a dropout of Keras, which has a state of its own."""
    keras.utils.set_random_seed(1)
    given: dict[str, Any] = {"dtype": precision}
    images = keras.Input((8, 8, 1), **given)
    x = keras.layers.Conv2D(4, 3, strides=2, name="stem", **given)(images)
    x = keras.layers.ReLU(**given)(keras.layers.BatchNormalization(name="stem_bn", **given)(x))
    x = keras.layers.Conv2D(4, 2, name="body", **given)(x)
    x = keras.layers.ReLU(**given)(keras.layers.BatchNormalization(name="body_bn", **given)(x))
    x = keras.layers.Dropout(0.2, seed=5, **given)(keras.layers.GlobalAveragePooling2D(**given)(x))
    return keras.Model(images, keras.layers.Dense(CLASSES, name="head", **given)(x))


def dense(precision: str, rate: float = 0.2) -> Any:
    """Two layers and a dropout of Keras: the smallest network."""
    keras.utils.set_random_seed(1)
    given: dict[str, Any] = {"dtype": precision}
    images = keras.Input((8, 8, 1), dtype=parse(precision).variables.name)
    x = keras.layers.Dense(5, "relu", name="body", **given)(keras.layers.Flatten(**given)(images))
    x = keras.layers.Dropout(rate, seed=5, **given)(x) if rate else x
    return keras.Model(images, keras.layers.Dense(CLASSES, name="head", **given)(x))


def dense_without_dropout(precision: str) -> Any:
    return dense(precision, 0.0)


class World:
    """A network with its data, and the step and evaluation of its loss; every run of it begins from the same values."""

    def __init__(self, make: Callable[[str], Any], precision: str, *, cached: bool = False, **settings: Any) -> None:
        self.network, self.dtype = make(precision), parse(precision).variables.as_numpy_dtype
        self.variables, self.cached = name_variables(self.network), cached
        self.first = {name: variable.numpy() for name, variable in self.named().items()}
        self.make_step = lambda: TrainStep(losses.supervised_loss(self.network), SGD(), **settings)
        self.step, self.evaluator = self.make_step(), Evaluator(losses.supervised_loss(self.network))
        self.other = self.make_step()  # for the runs by themselves
        self.lines: dict[Selection, FrostLine] = {}
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((EXAMPLES, 8, 8, 1)).astype(self.dtype)
        self.labels = rng.integers(0, CLASSES, EXAMPLES)

    def named(self) -> dict[str, Any]:
        return {entry.path: entry.variable for entry in self.variables} | self.variables.bookkeeping

    def reset(self, start: Mapping[str, np.ndarray]) -> None:
        for name, variable in self.named().items():
            variable.assign(start.get(name, self.first[name]))

    def start(self, run: Run) -> dict[str, np.ndarray]:
        """A head, and the states of generators, by the seed of the run."""
        rng, found = np.random.default_rng(run.seed), {}
        for path in ("head/kernel", "head/bias"):
            found[path] = (0.1 * rng.standard_normal(self.first[path].shape)).astype(self.dtype)
        for name in self.variables.bookkeeping:
            found[name] = self.first[name] + np.asarray(run.seed, self.first[name].dtype)
        return found

    def batch(self, rows: np.ndarray, seeds: np.ndarray, selection: Selection, step: TrainStep) -> dict[str, Any]:
        found = {"image": self.images[rows], "label": self.labels[rows], "seeds": seeds}
        if not self.cached:
            return found
        if selection not in self.lines:
            line = cut_step(step, selection, found)
            assert isinstance(line, FrostLine), line
            assert cut_evaluation(self.evaluator, selection, line, found) is None
            self.lines[selection] = line
        line = self.lines[selection]
        step.use_micro_batch(selection, line.specs(found), line.suffix)
        return line.replace_images(found)

    def loop(self, run: Run, step: TrainStep, **more: Any) -> tuple[Loop, dict[str, list[Any]]]:
        """A loop of a run, and what happened in it."""
        seen: dict[str, list[Any]] = {"steps": [], "evaluations": [], "ends": []}
        texts = list(enumerate(run.train))
        phases = [Phase(name=f"p{n}", train=text, **({"steps": run.steps} | dict(run.phase))) for n, text in texts]
        stages = [
            Stage(
                phase,
                select(self.variables, phase.train),
                run.optimizer,
                parse_schedule(run.schedule),
                run.learning_rate,
            )
            for phase in phases
        ]
        per_epoch = -(-EXAMPLES // SIZE)

        def batches(stage: Stage, start: int, stop: int) -> Iterator[dict[str, Any]]:
            for number in range(start, stop):
                order = np.random.default_rng([run.seed, number // per_epoch]).permutation(EXAMPLES)
                rows = order[SIZE * (number % per_epoch) :][:SIZE]
                seeds = np.random.default_rng([run.seed, number]).integers(0, 1 << 30, (len(rows), 2), np.int32)
                yield self.batch(rows, seeds, stage.selection, step)

        def evaluate(stage: Stage, steps: int) -> Evaluation:
            batch = self.batch(np.arange(EXAMPLES), np.zeros((EXAMPLES, 2), np.int32), stage.selection, step)
            with step.evaluating(self.variables):
                found = self.evaluator(stage.selection, [batch])
            seen["evaluations"].append(found.loss)
            return Evaluation(steps, stage.phase.name, found.loss, None, None)

        def note(event: Event) -> None:
            if event.kind == "step" and event.result is not None:
                result = event.result
                row = [result.loss, result.grad_norm, *result.metrics.values()]
                seen["steps"].append(
                    [float(value) for value in row] + [event.learning_rate, result.skipped, event.skipped]
                )
            if event.kind == "phase_end":
                assert not any(event.state.proven), event.state.proven
                seen["ends"].append(event.state.step)

        given: dict[str, Any] = {"per_epoch": per_epoch, "evaluate": evaluate, "eval_every": 2, "actions": [note]}
        return Loop(step=step, stages=stages, batches=batches, early_stop=run.early_stop, **given, **more), seen

    def result(
        self, seen: dict[str, list[Any]], step: TrainStep, values: dict[str, np.ndarray], end: str
    ) -> dict[str, Any]:
        return {"seen": seen, "values": values, "slots": dict(step.arrays()), "state": step.state(), "end": end}

    def alone(self, run: Run) -> dict[str, Any]:
        """The run by itself, with traces that no run of several has used."""
        self.reset(self.start(run))
        loop, seen = self.loop(run, step := self.other.sibling())
        try:
            end = loop.run(State()).reason
        except LoopError as error:
            end = str(error)
        return self.result(seen, step, {name: variable.numpy() for name, variable in self.named().items()}, end)

    def together(self, runs: Sequence[Run], *, pause: bool = False) -> tuple[list[dict[str, Any]], list[int]]:
        """All runs at once; and how many trained in each turn. With ``pause`` each sits out some turns."""
        self.reset({})
        members = Members(self.variables, self.step, most_operations=10**6)
        ends: dict[Member, str] = {}
        courses: dict[Member, Any] = {}
        found: dict[Member, dict[str, list[Any]]] = {}
        due: dict[Member, StepRequest] = {}

        def advance(member: Member, go: Callable[[], StepRequest]) -> None:
            try:
                due[member] = go()
            except StopIteration as stop:
                ends[member] = stop.value.reason
            except LoopError as error:
                ends[member] = str(error)

        for run in runs:
            member = members.add(self.start(run))
            loop, found[member] = self.loop(run, member.step, before_reading=member.activate)
            courses[member] = loop.course(State())
        for member, course in courses.items():
            advance(member, course.__next__)
        turns = []
        while due:
            awake = [m for n, m in enumerate(courses) if m in due and not (pause and (len(turns) + n) % 3 == 0)]
            turns.append(len(awake))
            for member, taken in members.train({member: due.pop(member) for member in awake}).items():
                go = courses[member].throw if isinstance(taken, NonFiniteError) else courses[member].send
                advance(member, lambda go=go, taken=taken: go(taken))  # type: ignore[misc]
        return [self.result(found[m], m.step, m.values(self.named()), ends[m]) for m in courses], turns


def check(world: World, runs: Sequence[Run], *, pause: bool = False) -> list[dict[str, Any]]:
    """Asserts that each run ends with the bits that it has alone."""
    together, turns = world.together(runs, pause=pause)
    assert pause or max(turns) == len(runs)
    for run, one in zip(runs, together, strict=True):
        other = world.alone(run)
        assert one["end"] == other["end"]
        assert repr(one["seen"]) == repr(other["seen"])  # it may hold NaN
        assert one["state"] == other["state"]
        for kind in ("values", "slots"):
            assert one[kind].keys() == other[kind].keys()
            assert not [path for path in one[kind] if one[kind][path].tobytes() != other[kind][path].tobytes()]
    return together


RATES = (0.2, 0.05, 0.0125)


def seeds_and_rates(run: Run) -> list[Run]:
    return [replace(run, seed=seed, learning_rate=rate) for seed in (0, 1) for rate in RATES]


FLOATS = [pytest.param("float64", marks=pytest.mark.slow), "float32"]


SLOW = pytest.mark.slow
HEADS = [
    (dense_without_dropout, True),
    pytest.param(vit, True, marks=SLOW),
    pytest.param(vit_with_dropout, False, marks=SLOW),
]


@pytest.mark.parametrize(("make", "cached"), HEADS)
@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.usefixtures("deterministic_ops")
def test_two_seeds_and_three_rates_of_a_head(precision: str, make: Any, cached: bool) -> None:
    check(World(make, precision, cached=cached), seeds_and_rates(Run()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.usefixtures("deterministic_ops")
def test_the_last_block_with_weight_decay_from_cached_features(precision: str) -> None:
    run = Run(train=("@head @blocks[-1]",), optimizer=AdamW(weight_decay=0.1, clip_norm=1.0), schedule="cosine")
    check(World(vit, precision, cached=True), seeds_and_rates(run))


@pytest.mark.parametrize(
    ("precision", "more"),
    [("float32", False), pytest.param("float32", True, marks=SLOW), pytest.param("float64", True, marks=SLOW)],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_batch_norm_that_trains_in_one_run_and_is_frozen_in_another(precision: str, more: bool) -> None:
    """Two that train together, in turn with one that is alone of its kind; with more, two of each kind, and more kinds."""
    moving, held, head = Run(train=("@all",), steps=5), Run(train=("@all !@stats",), steps=5), Run()
    top = Run(train=("head/.* body/.*",), optimizer=AdamW(weight_decay=0.1))
    runs = [moving, held, replace(moving, seed=1)]
    runs += [top, replace(held, learning_rate=0.01), head] if more else []
    world = World(cnn, precision)
    found = check(world, runs)
    for run, one in zip(runs, found, strict=True):
        same = [
            np.array_equal(one["values"][f"{name}/moving_mean"], world.first[f"{name}/moving_mean"])
            for name in ("stem_bn", "body_bn")
        ]
        assert same == ([False, False] if run.train == ("@all",) else [True, True])


@pytest.mark.usefixtures("deterministic_ops")
def test_runs_that_stop_early_end_a_phase_at_a_plateau_or_diverge_while_others_go_on() -> None:
    worse = {"until": "plateau", "patience": 1, "min_delta": 10.0, "max_steps": 8, "steps": None}
    two = ("@head", "@all")
    runs = [
        Run(two, steps=6),
        Run(two, phase=worse),  # its first phase ends after its second evaluation
        Run(two, steps=6, seed=1, learning_rate=1e38, optimizer=SGD()),
        Run(two, steps=6, seed=2, early_stop=1, learning_rate=40.0, optimizer=SGD()),
        Run(two, steps=6, seed=1),
    ]
    found = check(World(dense, "float32"), runs)
    ends = [one["end"].split(" ")[0] for one in found]
    assert ends == ["done", "done", "step", "early_stop", "done"]
    assert "step 2 was not applied; all gradients are finite, but the loss" in found[2]["end"]
    assert found[1]["seen"]["ends"] != found[0]["seen"]["ends"]


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_a_run_that_is_paused_changes_nothing() -> None:
    check(World(dense, "float32"), [Run(("@head", "@all"), seed=seed) for seed in range(3)], pause=True)


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_micro_batches_averages_and_rates() -> None:
    check(World(dense, "float32", micro_batch_size=3, ema=0.9), seeds_and_rates(Run(steps=3)))


@pytest.mark.usefixtures("deterministic_ops")
def test_loss_scales_of_their_own() -> None:
    scale = LossScale(scale=2.0**24, growth_every=2)
    found = check(World(dense, "mixed_float16", loss_scale=scale), [Run(steps=6), Run(("@all",), steps=6)])
    assert len({one["state"]["loss_scale"]["good"] for one in found} | {one["state"]["skipped"] for one in found}) > 1
    assert any(one["state"]["skipped"] for one in found)
