"""Where a step stops being finite: the operation and the variable that are named, and the masks that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import models
from engine.audit.nonfinite import Finding, first_nonfinite
from engine.selection.selection import select
from engine.selection.variables import name_variables
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.step import TrainStep
from engine.training.step_result import NonFiniteError


class Net(tf.Module):
    """Two layers, and something between them."""

    def __init__(self, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first = tf.Variable(tf.eye(3))
        self.second = tf.Variable(tf.ones([3, 1]))
        self.between = between

    def loss(self, batch: Any, *, training: bool, seeds: Any) -> Loss:
        x = self.between(batch["image"] @ self.first)
        return Loss({"sum": (tf.squeeze(x @ self.second, -1), None)})


def look(net: Net, images: Any, *, micro_batch_size: int | None = None) -> Finding | None:
    batch = {"image": np.asarray(images, np.float32), "seeds": np.zeros([len(images), 2], np.int32)}
    selection = select(net, "@all")
    step = TrainStep(net.loss, optimizers.SGD(), micro_batch_size=micro_batch_size)
    micro = step.micro_batch(selection, batch)
    return first_nonfinite(micro, selection, batch, micro_batch_size=micro_batch_size)


def test_a_finite_step_has_nothing_to_find() -> None:
    assert look(Net(tf.nn.relu), np.ones([2, 3])) is None


def test_the_first_operation_is_named_and_the_variable_read_before_it() -> None:
    found = look(Net(tf.exp), [[1.0, 2.0, 3.0], [1.0, 1000.0, 3.0]])
    assert found is not None
    assert (found.kind, found.part, found.variable, found.bad, found.of) == ("Exp", "forward", "first", 1, 6)
    assert "Exp, forward, after the variable first): 1 of 6 elements" in found.describe()


def test_what_is_wrong_only_in_the_gradient_is_found_there() -> None:
    found = look(Net(tf.sqrt), [[0.0, 1.0, 1.0]])  # sqrt(0) is 0, its derivative is not finite
    assert found is not None
    assert (found.part, found.kind) == ("backward", "SqrtGrad")


def test_an_infinite_mask_that_is_swallowed_is_not_accused() -> None:
    def masked(x: Any) -> Any:
        weights = tf.nn.softmax(tf.where([[True, False, True]], x, tf.fill(tf.shape(x), -np.inf)))
        return tf.math.log(weights - 1.0) * 1.0  # every logarithm of a negative number is nan

    found = look(Net(masked), np.ones([2, 3]))
    assert found is not None
    assert found.kind == "Log"
    assert look(Net(lambda x: tf.nn.softmax(tf.where([[True, False, True]], x, -np.inf))), np.ones([2, 3])) is None


def test_an_input_and_a_variable_are_accused_themselves() -> None:
    found = look(Net(tf.nn.relu), [[1.0, np.nan, 1.0]])
    assert found is not None
    assert (found.kind, found.op, found.variable) == ("input", "image", "")
    assert found.describe() == "'image' in the batch is not finite: 1 of 3 elements"
    net = Net(tf.nn.relu)
    net.second.assign([[1.0], [np.inf], [1.0]])
    found = look(net, np.ones([2, 3]))
    assert found is not None
    assert (found.kind, found.variable) == ("variable", "second")
    assert "the variable second itself" in found.describe()


def test_each_micro_batch_is_looked_at() -> None:
    images = np.ones([5, 3])
    images[4] = 1000.0
    found = look(Net(tf.exp), images, micro_batch_size=2)
    assert found is not None
    assert (found.kind, found.bad, found.of) == ("Exp", 3, 3)


def test_a_refused_step_of_a_real_model_is_explained_and_nothing_moves() -> None:
    model = models.build_model("cnn:mini", image_shape=(16, 16, 1), outputs=3)
    variables = name_variables(model.network)
    selection = select(variables, "@all")
    step = TrainStep(losses.supervised_loss(model.network), optimizers.SGD())
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((4, 16, 16, 1), np.float32),
        "label": np.zeros(4, np.int64),
        "seeds": np.zeros([4, 2], np.int32),
    }
    kernel = next(entry for entry in variables if entry.path == "stages/2/conv/kernel")
    kernel.variable.assign(kernel.variable * 3e38)
    before = {entry.path: entry.variable.numpy() for entry in variables}
    with pytest.raises(NonFiniteError):
        step(selection, batch, learning_rate=0.1)
    found = first_nonfinite(step.micro_batch(selection, batch), selection, batch)
    assert found is not None
    assert found.variable == "stages/2/conv/kernel"
    for entry in variables:
        np.testing.assert_array_equal(entry.variable.numpy(), before[entry.path])
