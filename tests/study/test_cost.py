"""What a step costs in arithmetic: counted on layers whose multiply-adds are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import models
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.selection.selection import select
from engine.study import cost
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.step import TrainStep


class Net(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tf.Variable(tf.ones([5, 4]))
        self.head = tf.Variable(tf.ones([4, 3]))

    def loss(self, batch: Any, *, training: bool, seeds: Any) -> Loss:
        apply = tf.function(lambda x: tf.nn.relu(x @ self.body) @ self.head)  # a call hides what is in it
        return Loss({"sum": (tf.reduce_sum(apply(batch["image"]), axis=1), None)})


BATCH = {"image": np.ones([2, 5], np.float32), "seeds": np.zeros([2, 2], np.int32)}


@pytest.mark.parametrize(("train", "backward"), [("head", 4 * 3), ("@all", 4 * 3 + 4 * 3 + 5 * 4)])
def test_a_multiply_add_is_two_operations_also_inside_calls(train: str, backward: int) -> None:
    net = Net()
    step = TrainStep(net.loss, optimizers.SGD())
    found = cost.step_cost(step, select(net, train), BATCH)
    assert found.forward == pytest.approx(2e-9 * (5 * 4 + 4 * 3))
    assert found.backward == pytest.approx(2e-9 * backward)
    assert found.backward_ops > 0


def test_of_features_only_what_is_above_the_line_counts() -> None:
    model = models.build_model("cnn:mini", image_shape=(16, 16, 1), outputs=3)
    selection = select(model.network, "@head", statistics=model.statistics)
    step = TrainStep(losses.supervised_loss(model.network), optimizers.SGD())
    batch = {
        "image": np.ones([2, 16, 16, 1], np.float32),
        "label": np.zeros(2, np.int64),
        "seeds": np.zeros([2, 2], np.int32),
    }
    whole = cost.step_cost(step, selection, batch)
    line = cut_step(step, selection, batch)
    assert isinstance(line, FrostLine)
    above = cost.step_cost(step, selection, line.replace_images(batch))
    width = model.network.head.kernel.shape[0]
    assert above.forward == pytest.approx(2e-9 * width * 3)
    assert above.backward == pytest.approx(whole.backward) == pytest.approx(2e-9 * width * 3)
    assert whole.forward > 100 * above.forward


def test_the_machine_is_measured() -> None:
    found = cost.measure_gemm_gflops(128, times=3)
    assert 0 < found["p10"] <= found["median"] <= found["p90"]
