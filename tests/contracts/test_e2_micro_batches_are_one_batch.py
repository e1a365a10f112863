"""E2: k micro-batches give what one batch gives: uneven last one, weights, two terms, clipping, decay."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.data.batches import TrainBatches
from engine.data.part import Part
from engine.models import build_model
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.optimizer_state import Slots

GRADIENT, WEIGHTS = 5e-6, 1e-10  # the contract: float32 first step; float64 after 10 steps
MICRO, EVEN, UNEVEN, SHORT = 3, 6, 7, 4  # examples: 3+3, 3+3+1, and a last step of 3+1
SELECTIONS = {"head": "@head", "last blocks": "@blocks[-1:] @head", "norms": "@norm", "full": "@all"}


class Case(NamedTuple):
    selection: str
    optimizer: str
    clip: bool
    weighted: bool
    terms: int
    even: bool


PRODUCT = [
    Case(*values)
    for values in itertools.product(
        SELECTIONS, ("adamw", "momentum"), (True, False), (True, False), (1, 2), (True, False)
    )
]
# every two settings of two different factors meet in one of these
PAIRWISE = [
    Case("head", "adamw", False, False, 2, True),
    Case("head", "momentum", True, True, 1, False),
    Case("last blocks", "momentum", True, True, 2, True),
    Case("last blocks", "adamw", False, False, 1, False),
    Case("norms", "momentum", False, True, 2, False),
    Case("norms", "adamw", True, False, 1, True),
    Case("full", "adamw", False, True, 1, False),
    Case("full", "momentum", True, False, 2, True),
]

QUICK = (4, 5)  # of these: every setting but the selections; what they take of the others is less than norms


def loss_of(model: Any, weighted: bool, terms: int) -> Any:
    """A classifier's loss, and with two terms the size of its outputs, with weights of its own."""

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        logits = model(batch["image"], training=training, seeds=seeds)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
        found = {"label": (values, batch["weight"] if weighted else None)}
        if terms == 2:
            found["size"] = (tf.reduce_sum(tf.square(logits), -1), batch["other"] if weighted else None)
        return Loss(found)

    return loss_fn


def batches(count: int, size: int) -> list[dict[str, Any]]:
    """Steps, the last one short. An example in three has no weight."""
    rng = np.random.default_rng(size)
    found = []
    for number in range(count):
        n = SHORT if number == count - 1 > 0 else size
        found.append(
            {
                "image": rng.standard_normal((n, 8, 8, 1)),
                "label": rng.integers(0, 4, n),
                "weight": rng.random(n) * (np.arange(n) % 3 != 1),
                "other": rng.random(n),
            }
        )
    return found


class Side:
    """A model and its step; every ``run`` starts from the same weights."""

    def __init__(self, case: Case, dtype: Any, micro_batch_size: int | None, depth: int) -> None:
        model = build_model(f"vit:mini,depth={depth}", image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
        self.selection = select(model, SELECTIONS[case.selection])
        loss_fn = loss_of(model, case.weighted, case.terms)
        self.step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)
        self.start = [entry.variable.numpy() for entry in self.selection.trained]

    def run(self, case: Case, steps: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """The weights after the steps; and the first slots, which after one step are its gradient."""
        optimizer, rate = optimizer_of(case)
        for entry, value in zip(self.selection.trained, self.start, strict=True):
            entry.variable.assign(value)
        self.step.slots = Slots()
        for batch in steps:
            self.step(self.selection, batch, learning_rate=rate, optimizer=optimizer)
        first = [next(iter(self.step.slots.values[e.path].values())) for e in self.selection.trained]
        return joined([e.variable for e in self.selection.trained]), joined(first)


def optimizer_of(case: Case) -> tuple[optimizers.Optimizer, float]:
    clip = 0.05 if case.clip else None  # gradients here have norms of 0.3 to 30: it always clips
    if case.optimizer == "adamw":
        return optimizers.AdamW(weight_decay=0.05, clip_norm=clip), 1e-3
    return optimizers.Momentum(weight_decay=0.05, clip_norm=clip), 0.02


def joined(tensors: Sequence[Any]) -> np.ndarray:
    return np.concatenate([tensor.numpy().astype(np.float64).ravel() for tensor in tensors])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check(cases: Sequence[Case], *, depth: int) -> None:
    """Of cases with one loss and selection, so that they share traces."""
    for dtype, steps in ((tf.float32, 1), (tf.float64, 10)):
        whole, parts = (Side(cases[0], dtype, size, depth) for size in (None, MICRO))
        for case in cases:
            given = batches(steps, EVEN if case.even else UNEVEN)
            weights, gradient = whole.run(case, given)
            split_weights, split_gradient = parts.run(case, given)
            assert relative(weights, np.concatenate([value.ravel() for value in whole.start])) > 1e-6, case
            if steps == 1:
                assert relative(split_gradient, gradient) < GRADIENT, case
            else:
                assert relative(split_weights, weights) < WEIGHTS, case


def test_the_short_list_holds_every_pair_of_settings() -> None:
    def pairs(cases: Sequence[Case]) -> set[Any]:
        return {(i, j, case[i], case[j]) for case in cases for i, j in itertools.combinations(range(len(case)), 2)}

    assert pairs(PAIRWISE) == pairs(PRODUCT)
    assert len(PRODUCT) == 128


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (number not in QUICK)) for number, case in enumerate(PAIRWISE)],
    ids=str,
)
@pytest.mark.usefixtures("deterministic_ops")
def test_micro_batches_are_one_batch(case: Case) -> None:
    check([case], depth=2 if case.selection == "last blocks" else 1)  # compiling takes the time


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selection", "weighted", "terms"), itertools.product(SELECTIONS, (True, False), (1, 2)), ids=str
)
@pytest.mark.usefixtures("deterministic_ops")
def test_micro_batches_are_one_batch_in_the_whole_product(selection: str, weighted: bool, terms: int) -> None:
    cases = [c for c in PRODUCT if (c.selection, c.weighted, c.terms) == (selection, weighted, terms)]
    assert len(cases) == 8
    check(cases, depth=2)


# --- randomness, regularisers ---


def trajectory(dtype: Any, micro_batch_size: int | None, steps: int) -> tuple[list[float], np.ndarray]:
    """Losses and last weights with dropout, drop path and augmentation; steps of 7 images, then of 4."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (18, 8, 8, 1), np.uint8)
    part = Part(images, rng.integers(0, 4, 18), np.arange(18))
    data = TrainBatches(part, batch_size=7, seed=3, augment=("flip", "crop", "rotate"))
    spec = "vit:mini,depth=1,dropout=0.2,drop_path=0.3"
    model = build_model(spec, image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
    model.blocks[0].drop_path_rate = 0.3  # of the only block it would be 0
    step = TrainStep(losses.supervised_loss(model), optimizers.AdamW(), micro_batch_size=micro_batch_size)
    selection = select(model, "@all")
    found = [float(step(selection, data.at(number), learning_rate=1e-3).loss) for number in range(steps)]
    return found, joined([entry.variable for entry in selection.trained])


@pytest.mark.parametrize("sizes", [(4,), pytest.param((7, 1), marks=pytest.mark.slow)], ids=str)
@pytest.mark.usefixtures("deterministic_ops")
def test_dropout_drop_path_and_augmentation_do_not_depend_on_the_split(sizes: tuple[int, ...]) -> None:
    whole, weights = trajectory(tf.float64, None, steps=6)
    for size in sizes:  # 2 micro-batches; 1 and 7
        split, split_weights = trajectory(tf.float64, size, steps=6)
        np.testing.assert_allclose(split, whole, rtol=WEIGHTS, err_msg=f"micro-batches of {size}")
        assert relative(split_weights, weights) < WEIGHTS, size


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_the_first_loss_with_randomness_is_that_of_one_batch_in_float32() -> None:
    whole, _ = trajectory(tf.float32, None, steps=1)
    split, _ = trajectory(tf.float32, 1, steps=1)
    np.testing.assert_allclose(split, whole, rtol=1e-6)


def test_a_regulariser_by_path_enters_once_a_step_and_for_the_selection_alone() -> None:
    def trained(micro_batch_size: int | None) -> tuple[np.ndarray, float]:
        a, b = tf.Variable([1.0, -2.0], dtype=tf.float64), tf.Variable([3.0], dtype=tf.float64)

        def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
            values = tf.square(batch["x"] * a[0] + a[1] + b[0])
            return Loss({"t": (values, None)}, regulariser={"a": 3.0 * tf.reduce_sum(a**2), "b": 100.0 * b[0] ** 2})

        step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)
        steps = [
            step(select({"a": a, "b": b}, "a"), {"x": np.linspace(-1, 2, size)}, learning_rate=0.01)
            for size in (5, 5, 3)
        ]
        return a.numpy(), float(steps[-1].loss)

    (whole, loss), (split, split_loss) = trained(None), trained(2)
    np.testing.assert_allclose(split, whole, rtol=1e-14)  # a few roundings of float64
    np.testing.assert_allclose(split_loss, loss, rtol=1e-14)


def test_keras_weight_and_activity_regularisers_enter_once_a_step() -> None:
    def trained(micro_batch_size: int | None) -> np.ndarray:
        keras.utils.set_random_seed(1)
        hidden = keras.layers.Dense(
            4,
            dtype="float64",
            kernel_regularizer=keras.regularizers.L2(0.2),
            activity_regularizer=keras.regularizers.L2(0.1),
        )
        top = keras.layers.Dense(3, dtype="float64", kernel_regularizer=keras.regularizers.L1(0.1))
        model = keras.Sequential([keras.Input((5,), dtype="float64"), hidden, top])
        step = TrainStep(losses.supervised_loss(model), optimizers.Momentum(), micro_batch_size=micro_batch_size)
        rng = np.random.default_rng(0)
        for size in (5, 5, 3):
            batch = {"image": rng.standard_normal((size, 5)), "label": rng.integers(0, 3, size)}
            step(select(model, "@all"), batch, learning_rate=0.1)
        return np.concatenate([weight.ravel() for weight in model.get_weights()])

    assert relative(trained(2), trained(None)) < WEIGHTS
