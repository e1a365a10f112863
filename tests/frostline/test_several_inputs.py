"""The frost line of a model with several inputs: all of them lie below it, and each of them may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine, FrostLineError
from engine.frostline.watch import frozen_output_norms
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator


class Pair(tf.Module):
    """One trunk for two images, and a head on both and a vector: Siamese."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.trunk = tf.Variable(rng.standard_normal((6, 5)).astype(np.float32), name="trunk")
        self.head = tf.Variable(rng.standard_normal((12, 3)).astype(np.float32), name="head")

    def __call__(self, given: Any, *, training: bool = False) -> Any:
        both = [tf.nn.relu(tf.matmul(given[name], self.trunk)) for name in ("left", "right")]
        return tf.matmul(tf.concat([*both, given["extra"]], axis=1), self.head)


def batch(count: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    sizes = {"left": 6, "right": 6, "extra": 2}
    arrays: dict[str, Any] = {n: rng.standard_normal((count, k)).astype(np.float32) for n, k in sizes.items()}
    return arrays | {"label": rng.integers(0, 3, count)}


@pytest.mark.parametrize("micro", [None, 3])
def test_a_step_above_the_line_is_the_whole_step(micro: int | None) -> None:
    model, found = Pair(), []
    selection, start = select(model, "head"), model.head.numpy()
    for cached in (True, False):
        step = TrainStep(losses.supervised_loss(model), optimizers.SGD(), micro_batch_size=micro)
        line = cut_step(step, selection, batch())
        assert isinstance(line, FrostLine), line
        assert line.inputs == ("extra", "left", "right")
        given = line.replace_images(batch()) if cached else batch()
        loss = float(step(selection, given, learning_rate=0.5).loss)
        found.append((loss, model.head.numpy()))
        model.head.assign(start)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_an_evaluation_is_cut_too_and_its_frozen_output_watched() -> None:
    model = Pair()
    step, selection = TrainStep(losses.supervised_loss(model), optimizers.SGD()), select(model, "head")
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    whole = evaluator(selection, [batch()])
    line = cut_step(step, selection, batch())
    assert isinstance(line, FrostLine)
    assert cut_evaluation(evaluator, selection, line, batch()) is None
    above = evaluator(selection, [line.replace_images(batch())], watched=batch())
    assert above.loss == pytest.approx(whole.loss, abs=1e-6)
    assert above.frozen_output_norm == pytest.approx(whole.frozen_output_norm)


def test_a_batch_that_lacks_an_input_is_refused_and_the_digest_tells_inputs_apart() -> None:
    model = Pair()
    line = cut_step(TrainStep(losses.supervised_loss(model), optimizers.SGD()), select(model, "head"), batch())
    assert isinstance(line, FrostLine)
    some = {name: values for name, values in batch().items() if name != "right"}
    with pytest.raises(FrostLineError, match="the batch has no 'right'"):
        line.replace_images(some)

    def exchanged(given: Any, *, training: bool = False) -> Any:
        return model(given | {"left": given["right"], "right": given["left"]})

    step = TrainStep(losses.supervised_loss(exchanged), optimizers.SGD())
    other = cut_step(step, select(model, "head"), batch())
    assert isinstance(other, FrostLine)
    assert other.digest() != line.digest()
