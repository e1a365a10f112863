"""Averages: the recurrence, for the selection alone, counted in steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.distribution.replicas import Replicas
from engine.selection.variables import name_variables
from engine.training import optimizers
from engine.training.ema import Averages, EmaError
from engine.training.losses import Loss

DECAY = 0.9


def made(**settings: Any) -> tuple[dict[str, Any], TrainStep]:
    """Variables a and b with the gradients x and 2 x, and their step."""
    variables = {"a": tf.Variable([1.0, -2.0]), "b": tf.Variable([3.0])}

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (batch["x"] * (tf.reduce_sum(variables["a"]) + 2.0 * variables["b"][0]), None)})

    return variables, TrainStep(loss_fn, optimizers.SGD(), ema=DECAY, **settings)


def batch_of(x: float) -> dict[str, Any]:
    return {"x": np.full(4, x, np.float32)}


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_averages_follow_the_recurrence_bit_by_bit_and_rest_in_skipped_steps(micro_batch_size: int | None) -> None:
    variables, step = made(nonfinite="skip", micro_batch_size=micro_batch_size)
    selection = select(variables, ".*")
    expected = {path: v.numpy() for path, v in variables.items()}
    for x in (1.0, -0.5, np.inf, 0.3, np.nan, 2.0):
        skipped = step(selection, batch_of(x), learning_rate=0.1).skipped
        assert skipped == (not np.isfinite(x))
        for path, variable in variables.items():
            if not skipped:
                expected[path] = expected[path] - np.float32(1 - DECAY) * (expected[path] - variable.numpy())
    for path, average in step.averages.values.items():
        np.testing.assert_array_equal(average.numpy(), expected[path])


def test_averages_exist_for_the_selection_alone() -> None:
    variables, step = made()
    step(select(variables, "b"), batch_of(1.0), learning_rate=0.1)
    assert set(step.averages.values) == {"b"}
    assert step.averages.bytes() == 4


def test_freezing_drops_an_average_and_unfreezing_begins_at_the_variables_value() -> None:
    variables, step = made()
    for text in (".*", "b"):
        step(select(variables, text), batch_of(1.0), learning_rate=0.1)
    assert set(step.averages.values) == {"b"}
    b, now = step.averages.values["b"], variables["a"].numpy()
    step(select(variables, ".*"), batch_of(1.0), learning_rate=0.1)
    assert step.averages.values["b"] is b
    after = variables["a"].numpy()
    np.testing.assert_array_equal(step.averages.values["a"].numpy(), now - np.float32(1 - DECAY) * (now - after))


def trained() -> tuple[dict[str, Any], TrainStep]:
    variables, step = made()
    for x in (1.0, 0.3):
        step(select(variables, "a"), batch_of(x), learning_rate=0.1)
    return variables, step


@pytest.mark.parametrize("fails", [False, True])
def test_averages_stand_in_the_model_for_a_while_and_every_bit_comes_back(fails: bool) -> None:
    variables, step = trained()
    weights = {path: v.numpy() for path, v in variables.items()}
    average = step.averages.values["a"].numpy()
    assert (average != weights["a"]).all()
    try:
        with step.averages.in_place(name_variables(variables)):
            np.testing.assert_array_equal(variables["a"].numpy(), average)
            np.testing.assert_array_equal(variables["b"].numpy(), weights["b"])
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    for path, value in weights.items():
        np.testing.assert_array_equal(variables[path].numpy(), value)
    np.testing.assert_array_equal(step.averages.values["a"].numpy(), average)


def test_arrays_restore_to_the_same_bits_and_go_on_alike() -> None:
    variables, step = trained()
    saved = dict(step.averages.arrays())
    assert set(saved) == {"ema/a"}
    others, other = made()
    for path, variable in variables.items():
        others[path].assign(variable)
    other.averages.restore(name_variables(others), saved)
    for one, of in ((step, variables), (other, others)):
        one(select(of, "a"), batch_of(0.7), learning_rate=0.1)
    np.testing.assert_array_equal(other.averages.values["a"].numpy(), step.averages.values["a"].numpy())
    assert set(other.averages.values) == {"a"}


def test_an_average_of_another_shape_is_refused() -> None:
    variables, step = made()
    with pytest.raises(EmaError, match=r"ema/a: the saved shape is \[3\]; expected \[2\]"):
        step.averages.restore(name_variables(variables), {"ema/a": np.zeros(3, np.float32)})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(EmaError, match=r"expected a number above 0 and below 1"):
        Averages(decay)


class TwoReplicas(Replicas):
    """Two replicas on one device, of which only the copies of variables are used."""

    def __init__(self) -> None:
        self.devices = ("/cpu:0", "/cpu:0")
        self._copies, self._originals, self._compare = {}, {}, None


def test_an_evaluation_gives_all_replicas_the_averages_and_afterwards_the_values_again() -> None:
    """Also where the sum of a variable is that of its average, by which a step finds what has been changed."""
    variables, step = made()
    selection = select(variables, ".*")
    step(selection, batch_of(1.0), learning_rate=0.1)
    step.replicas = replicas = TwoReplicas()
    copies = {path: replicas.variables(variable)[1] for path, variable in variables.items()}
    before = {path: variable.numpy() for path, variable in variables.items()}
    step.averages.values["a"].assign(tf.reverse(variables["a"], [0]))
    averages = {path: average.numpy() for path, average in step.averages.values.items()}
    with step.evaluating(selection.variables):
        for path, copy in copies.items():
            np.testing.assert_array_equal(copy.numpy(), averages[path])
        assert replicas.differing() == []
    for path, copy in copies.items():
        np.testing.assert_array_equal(copy.numpy(), before[path])
    assert replicas.differing() == []
