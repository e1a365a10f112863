"""Steps of micro-batches: one trace, accumulators for the selection, weights known before the first gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import build_model
from engine.selection import filters
from engine.selection.variables import name_variables
from engine.training import losses, microbatch, optimizers
from engine.training.losses import Loss, LossError
from engine.training.step import StepError

Values = Callable[[Mapping[str, Any], Any], Any]


def vit() -> Any:
    return build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=4).network


def images(size: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    return {"image": rng.standard_normal((size, 8, 8, 1), np.float32), "label": rng.integers(0, 4, size)}


def line(weights: Values, *, a: Any = None) -> tuple[Any, Any]:
    """The loss a * x with weights of (batch, seeds); a begins at 1."""
    a = tf.Variable(1.0) if a is None else a

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (tf.cast(a, tf.float32) * batch["x"], weights(batch, seeds))})

    return a, loss_fn


X = np.array([1.0, 2.0, 4.0, 8.0, 16.0], np.float32)


# --- the graph ---


def compiled(step: TrainStep) -> list[Any]:
    """The step's compiled functions."""
    found = [value for traced in step._traces._traced.values() for value in traced.values()]
    return [value for value in found if not isinstance(value, microbatch.MicroBatch)]


def every_op(step: TrainStep) -> int:
    """Operations of all graphs of the step's only compiled function."""
    (function,) = compiled(step)
    definition = function.graph.as_graph_def()
    return len(definition.node) + sum(len(f.node_def) for f in definition.library.function)


def test_one_trace_of_one_size_serves_any_number_of_micro_batches() -> None:
    counts = []
    for micro_batch_size in (1, 4):
        model = vit()
        step = TrainStep(losses.supervised_loss(model), optimizers.SGD(), micro_batch_size=micro_batch_size)
        for size in (4, 16, 33):
            step(select(model, "@head"), images(size), learning_rate=1e-3)
        assert step.traces == 1
        counts.append(every_op(step))
    assert counts[0] == counts[1]


def test_accumulators_are_the_selections_gradients_and_scalars() -> None:
    model = vit()
    selection = select(model, "@head @norm")
    step = TrainStep(losses.supervised_loss(model), optimizers.AdamW(), micro_batch_size=2)
    step(selection, images(), learning_rate=1e-3)
    (function,) = compiled(step)
    (loop,) = [op for op in function.graph.get_operations() if op.type in ("While", "StatelessWhile")]
    kept = [t.shape.as_list() for t in loop.outputs if t.dtype.is_floating and t.shape.rank]
    batch = [[None, 8, 8, 1]]  # what the loop only reads
    assert sorted(s for s in kept if s not in batch and s != [1]) == sorted(
        entry.variable.shape.as_list() for entry in selection.trained
    )


def test_accumulators_of_16_bit_variables_have_32_bits() -> None:
    a, loss_fn = line(lambda batch, seeds: None, a=tf.Variable(1.0, dtype=tf.bfloat16))
    step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=1)
    # in bfloat16 256 + 1 is 256: the mean of one 256 and 255 ones would be 1, and it is 1.99609375
    x = np.ones(256, np.float32)
    x[0] = 256.0
    result = step(select([a], ".*"), {"x": x}, learning_rate=1.0)
    assert float(result.grad_norm) == 511 / 256


# --- weights ---


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_weights_may_come_from_the_batch_the_seeds_constants_outside_and_frozen_variables(
    micro_batch_size: int | None,
) -> None:
    outside = tf.constant([1.0, 0.0, 3.0])  # of classes
    table = tf.Variable([2.0, 1.0, 1.0])

    def weights(batch: Mapping[str, Any], seeds: Any) -> Any:
        drawn = tf.cast(seeds[:, 0] % 2 == 0, tf.float32)
        return tf.gather(outside * table, batch["label"]) * batch["w"] * (1.0 + drawn)

    a, loss_fn = line(weights)
    w, label = np.array([1, 2, 1, 1, 1], np.float32), np.array([0, 2, 1, 2, 0])
    seeds = np.array([[0, 5], [1, 5], [2, 5], [3, 5], [4, 5]], np.int32)
    step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)
    selection = select({"a": a, "table": table}, "a")
    step(selection, {"x": X, "w": w, "label": label, "seeds": seeds}, learning_rate=1.0)
    expected = np.array([2, 3, 0, 3, 2]) * w * [2, 1, 2, 1, 2]
    np.testing.assert_allclose(a.numpy(), 1 - (X * expected).sum() / expected.sum(), rtol=1e-6)  # float32


def test_weights_that_depend_on_the_model_are_refused_with_micro_batches() -> None:
    a = tf.Variable(1.0, name="a")
    a, loss_fn = line(lambda batch, seeds: tf.nn.relu(batch["x"] * a), a=a)
    with pytest.raises(
        StepError, match=r"term 't': its weights depend on the variable a; .*multiply the values instead"
    ):
        TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=2)(select({"a": a}, ".*"), {"x": X}, learning_rate=1.0)
    TrainStep(loss_fn, optimizers.SGD())(select({"a": a}, ".*"), {"x": X}, learning_rate=1.0)  # one piece knows them


def test_weights_drawn_from_a_generators_state_are_refused_with_micro_batches() -> None:
    a, loss_fn = line(lambda batch, seeds: tf.random.uniform(tf.shape(batch["x"])))
    with pytest.raises(StepError, match=r"depend on random numbers \(RandomUniform\)"):
        TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=2)(select([a], ".*"), {"x": X}, learning_rate=1.0)


def test_weights_that_depend_on_the_rest_of_the_batch_are_an_error_that_changes_nothing() -> None:
    a, loss_fn = line(lambda batch, seeds: batch["w"] / tf.reduce_max(batch["w"]))
    given = {"x": X, "w": np.array([1, 2, 3, 4, 5], np.float32)}
    step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=2)
    with pytest.raises(LossError, match="the weight of an example must not depend on other examples"):
        step(select([a], ".*"), given, learning_rate=1.0)
    assert (float(a), step.steps) == (1.0, 0)
    TrainStep(loss_fn, optimizers.SGD())(select([a], ".*"), given, learning_rate=1.0)  # one piece is the whole batch
    assert float(a) != 1.0


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_a_term_without_weight_in_a_step_is_left_out_and_counted(micro_batch_size: int | None) -> None:
    a = tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"always": (a * batch["x"], None), "rarely": (100 * a * batch["x"], batch["w"])})

    step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)
    x = np.array([1.0, 2.0, 3.0], np.float32)
    zero, one = np.zeros(3, np.float32), np.array([0, 0, 1], np.float32)
    left_out = [step(select([a], ".*"), {"x": x, "w": w}, learning_rate=1.0).left_out for w in (zero, one, zero)]
    assert left_out == [("rarely",), (), ("rarely",)]
    assert step.left_out == {"rarely": 2}
    assert step.skipped == 0
    assert float(a) == 1 - 2 - (2 + 300) - 2


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_step_in_which_nothing_has_a_weight_moves_nothing(micro_batch_size: int | None) -> None:
    a, loss_fn = line(lambda batch, seeds: batch["w"])
    decaying = optimizers.Momentum(weight_decay=0.1, decay=filters.group("all"))
    step = TrainStep(loss_fn, decaying, micro_batch_size=micro_batch_size, ema=0.5)
    selection = select([a], ".*")
    step(selection, {"x": X, "w": np.ones(5, np.float32)}, learning_rate=0.1)  # sets momentum in flight
    before = float(a), dict(step.arrays())
    result = step(selection, {"x": X, "w": np.zeros(5, np.float32)}, learning_rate=0.1)
    assert (float(a), dict(step.arrays())) == before
    assert result.skipped
    assert result.left_out == ("t",)
    assert (step.steps, step.skipped, step.left_out) == (2, 1, {"t": 1})


@pytest.mark.parametrize(
    ("micro_batch_size", "bad"),
    [(None, np.nan), (2, -1.0), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((None, -1.0), (2, np.nan)))],
)
def test_a_negative_weight_is_an_error_that_changes_nothing(micro_batch_size: int | None, bad: float) -> None:
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=4).network
    selection = select(model, "stages/3/.*")
    assert selection.moving
    step = TrainStep(losses.supervised_loss(model), optimizers.Momentum(), micro_batch_size=micro_batch_size)
    variables = name_variables(model)
    before = [entry.variable.numpy() for entry in variables]
    weight = np.array([1, 1, 1, 1, 1, bad], np.float32)
    with pytest.raises(LossError, match="'softmax': a weight is negative or not a number; weights must be at least 0"):
        step(selection, images() | {"weight": weight}, learning_rate=0.1)
    for entry, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(entry.variable.numpy(), value, err_msg=entry.path)
    assert (step.steps, step.skipped, set(step.slots.t.values())) == (0, 0, {0})


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_negative_weight_of_a_metric_alone_changes_nothing_either(micro_batch_size: int | None) -> None:
    a = tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (a * batch["x"], None)}, metrics={"m": (batch["x"], -batch["x"])})

    with pytest.raises(LossError, match="'m': a weight is negative"):
        TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)(
            select([a], ".*"), {"x": X}, learning_rate=1.0
        )
    assert float(a) == 1.0


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_value_of_an_example_without_weight_does_not_matter(micro_batch_size: int | None) -> None:
    a = tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (a * batch["x"] + batch["noise"], batch["w"])})

    batch = {
        "x": X,
        "noise": np.array([0, np.nan, 0, np.inf, 0], np.float32),
        "w": np.array([1, 0, 1, 0, 2], np.float32),
    }
    result = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=micro_batch_size)(
        select([a], ".*"), batch, learning_rate=1.0
    )
    assert float(result.loss) == (1 + 4 + 32) / 4
    assert float(a) == 1 - (1 + 4 + 32) / 4


@pytest.mark.parametrize("kind", ["mse", "sigmoid"])
def test_a_missing_label_without_weight_does_not_matter(kind: str) -> None:
    shift = tf.Variable(1.0)
    label = np.array([0, np.nan, 1], np.float32)
    step = TrainStep(losses.supervised_loss(lambda image: image + shift, kind), optimizers.SGD())
    batch = {"image": np.ones((3, 1), np.float32), "label": label, "weight": np.array([1, 0, 1], np.float32)}
    result = step(select([shift], ".*"), batch, learning_rate=1e-6)
    assert not result.skipped
    present = {name: value[[0, 2]] for name, value in batch.items()}
    shift.assign(1.0)
    again = TrainStep(losses.supervised_loss(lambda image: image + shift, kind), optimizers.SGD())
    assert float(again(select([shift], ".*"), present, learning_rate=1e-6).grad_norm) == float(result.grad_norm)


# --- sizes ---


def test_micro_batches_larger_than_the_step_are_one() -> None:
    a, loss_fn = line(lambda batch, seeds: None)
    result = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=1000)(
        select([a], ".*"), {"x": X[:4]}, learning_rate=1.0
    )
    assert (float(result.loss), float(a)) == (15 / 4, 1 - 15 / 4)


@pytest.mark.parametrize("size", [0, -1])
def test_micro_batches_without_examples_are_refused(size: int) -> None:
    with pytest.raises(StepError, match=f"micro_batch_size={size}: expected at least 1"):
        TrainStep(lambda batch, *, training, seeds: Loss({}), optimizers.SGD(), micro_batch_size=size)


def test_a_variable_that_is_looked_up_has_a_dense_gradient_in_micro_batches() -> None:
    table = tf.Variable(tf.ones([5, 2]))

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (tf.reduce_sum(tf.gather(table, batch["row"]), -1), None)})

    step = TrainStep(loss_fn, optimizers.SGD(), micro_batch_size=3)
    step(select([table], ".*"), {"row": np.array([0, 2, 2, 2])}, learning_rate=1.0)
    np.testing.assert_array_equal(table.numpy()[:, 0], [0.75, 1, 0.25, 1, 1])
