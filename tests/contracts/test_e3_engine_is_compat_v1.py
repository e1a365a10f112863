"""E3: the engine and the three TF1 freezing methods train alike; the methods among themselves to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.training import models as v1_models
from compat_v1.training.freezing import METHODS, Freezing
from compat_v1.training.session_loop import SessionLoop
from engine import TrainStep, select
from engine.models import build_model
from engine.training import losses, optimizers

LOSS, GRADIENT, TRAJECTORY = 1e-6, 5e-6, 1e-10  # the contract: float32 first step; float64 after 50 steps
STEPS, EXAMPLES = 50, 10

MODELS = {"vit": "vit:mini,depth=2,dropout=0.1", "cnn": "cnn:mini"}
# "below": what trains lies below something frozen
SELECTIONS = {
    "vit": {"head": "@head", "below": "patch/.* blocks/0/.* head/.* !@bias"},
    "cnn": {"head": "@head stages/3/.*", "below": "@all !stages/[12]/.*"},
}
RATES = {"sgd": 0.05, "momentum": 0.02, "adam": 1e-3}
# Every other optimizer, and what TF1 does not have by itself, built from its operations; with a learning rate.
OTHERS = {
    "rmsprop,momentum=0.9,epsilon=0.01": 1e-3,
    "rmsprop,centered,epsilon=0.01": 1e-3,
    "adagrad": 0.01,
    "adadelta,epsilon=1e-4": 0.05,
    "ftrl,l1=1e-4,l2_shrinkage=1e-3,beta=0.1": 0.05,
    "momentum,nesterov": 0.02,
    "sgd,clip_norm=0.3,weight_decay=0.1,layer_decay=0.7": 0.05,
    "adamw,clip_norm=0.3,weight_decay=0.1,layer_decay=0.7": 1e-3,
    "adagrad,clip_norm=0.3,weight_decay=0.1": 0.01,
}


class Case(NamedTuple):
    model: str
    selection: str
    optimizer: str
    parts: int


ALL = [Case(*case) for case in itertools.product(MODELS, ("head", "below"), RATES, (1, 4))]
SHORT = [
    Case("vit", "below", "adam", 4),
    Case("vit", "head", "sgd", 1),
    Case("cnn", "below", "momentum", 1),
    Case("cnn", "head", "adam", 4),
]


class Run(NamedTuple):
    losses: list[float]
    weights: dict[str, np.ndarray]


def steps(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        {
            "image": rng.standard_normal((EXAMPLES, 8, 8, 1)),
            "label": rng.integers(0, 4, EXAMPLES),
            "seeds": rng.integers(0, 2**31, (EXAMPLES, 2)).astype(np.int32),
        }
        for _ in range(count)
    ]


class Sides:
    """The engine's network and the TF1 graphs of the three methods, all from the same weights."""

    def __init__(self, case: Case, dtype: Any) -> None:
        self.dtype, self.rate = dtype, (RATES | OTHERS)[case.optimizer]
        self.optimizer = optimizers.build_optimizer(case.optimizer)
        self.network = build_model(MODELS[case.model], image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
        self.selection = select(self.network, SELECTIONS[case.model][case.selection])
        self.start = {entry.path: entry.variable.numpy() for entry in self.selection.variables}
        self.micro_batch_size = None if case.parts == 1 else -(-EXAMPLES // case.parts)

    def engine(self, batches: list[Mapping[str, Any]], optimizer: optimizers.Optimizer | None = None) -> Run:
        step = TrainStep(
            losses.supervised_loss(self.network), optimizer or self.optimizer, micro_batch_size=self.micro_batch_size
        )
        found = [float(step(self.selection, batch, learning_rate=self.rate).loss) for batch in batches]
        weights = {entry.path: entry.variable.numpy() for entry in self.selection.variables}
        for entry in self.selection.variables:
            entry.variable.assign(self.start[entry.path])
        return Run(found, weights | dict(step.slots.arrays()))

    def v1(self, method: str, batches: list[Mapping[str, Any]], optimizer: optimizers.Optimizer | None = None) -> Run:
        loss_fn = losses.supervised_loss(v1_models.translate_network(self.network, self.selection))
        freezing = Freezing(method, self.selection)
        with SessionLoop(
            loss_fn, freezing, optimizer or self.optimizer, batches[0], micro_batch_size=self.micro_batch_size
        ) as loop:
            loop.assign(self.start)
            found = [float(loop.step(batch, learning_rate=self.rate).loss) for batch in batches]
            slots = {
                name.replace("/Momentum", "/momentum"): loop.session.run(
                    loop.built.updates.first.get_slot(v, "momentum")
                )
                for name, v in (
                    (f"optimizer/{e.path}/Momentum", loop.built.variables[e.path]) for e in self.selection.trained
                )
                if loop.built.updates.first.get_slot_names() == ["momentum"]
            }
            return Run(found, dict(loop.values()) | slots)


def relative(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], names: list[str]) -> float:
    one, other = (np.concatenate([np.ravel(side[name]).astype(np.float64) for name in names]) for side in (a, b))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def same_bits(a: Run, b: Run) -> None:
    assert a.losses == b.losses
    for name, value in a.weights.items():
        assert value.tobytes() == b.weights[name].tobytes(), name


def first_step(case: Case) -> None:
    """float32: the loss, and the gradient, which is what Momentum's accumulator holds after one step."""
    sides, batches = Sides(case, tf.float32), steps(1)
    momentum = optimizers.Momentum()
    engine = sides.engine(batches, momentum)
    runs = [sides.v1(method, batches, momentum) for method in METHODS]
    gradient = [f"optimizer/{entry.path}/momentum" for entry in sides.selection.trained]
    for run in runs:
        assert run.losses[0] == pytest.approx(engine.losses[0], rel=LOSS)
        assert relative(run.weights, engine.weights, gradient) < GRADIENT
        same_bits(run, runs[0])


def fifty_steps(case: Case) -> None:
    sides, batches = Sides(case, tf.float64), steps(STEPS)
    engine = sides.engine(batches)
    runs = [sides.v1(method, batches) for method in METHODS]
    paths = list(sides.start)
    moving = [entry.path for entry in (*sides.selection.trained, *sides.selection.moving)]
    assert relative(engine.weights, sides.start, moving) > 1e-4, "nothing was trained"
    for run in runs:
        np.testing.assert_allclose(run.losses, engine.losses, rtol=TRAJECTORY)
        assert relative(run.weights, engine.weights, paths) < TRAJECTORY
        for entry in sides.selection.frozen:
            assert run.weights[entry.path].tobytes() == sides.start[entry.path].tobytes(), entry.path
        same_bits(run, runs[0])


def test_the_short_list_holds_every_optimizer_and_each_model_with_every_selection_and_number_of_parts() -> None:
    for other in ("selection", "parts"):
        assert {(c.model, getattr(c, other)) for c in SHORT} == {(c.model, getattr(c, other)) for c in ALL}
    assert {c.optimizer for c in SHORT} == set(RATES)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (case.selection == "below" or case.model == "vit"))
        for case in SHORT
    ],
    ids=str,
)
@pytest.mark.usefixtures("deterministic_ops")
def test_fifty_steps_of_the_engine_are_those_of_each_tf1_method(case: Case) -> None:
    fifty_steps(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(Case("vit", "below", "momentum", 4), marks=pytest.mark.slow), Case("cnn", "below", "momentum", 1)],
    ids=str,
)
@pytest.mark.usefixtures("deterministic_ops")
def test_the_first_step_in_float32_is_the_engines(case: Case) -> None:
    first_step(case)


# tests/compat_v1/training/test_train_op.py does the same on a tiny network, unmarked.
OTHER_CASES = [Case("vit", "below", optimizer, 4 - 3 * (n % 2)) for n, optimizer in enumerate(OTHERS)]


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER_CASES, ids=str)
@pytest.mark.usefixtures("deterministic_ops")
def test_every_other_optimizer_and_clipping_and_decays_train_as_each_tf1_method(case: Case) -> None:
    fifty_steps(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case not in SHORT], ids=str)
@pytest.mark.usefixtures("deterministic_ops")
def test_all_other_cases(case: Case) -> None:
    fifty_steps(case)
    first_step(case)
