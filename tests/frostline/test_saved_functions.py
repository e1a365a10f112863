"""The frost line in a SavedModel: it lies inside the functions of the file, not around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.frostline.watch import frozen_output_norms
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator


class TwoConvolutions(tf.Module):
    """What is saved: two convolutions and a classifier, in one function that calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.low = tf.Variable(tf.random.stateless_normal([3, 3, 3, 4], [1, 2]) / 5.0)
        self.high = tf.Variable(tf.random.stateless_normal([3, 3, 4, 4], [3, 4]) / 6.0)
        self.head = tf.Variable(tf.random.stateless_normal([4, 3], [5, 6]) / 2.0)

    @tf.function
    def features(self, x: Any) -> Any:
        return tf.nn.relu(tf.nn.conv2d(x, self.low, 2, "SAME"))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    def serve(self, x: Any) -> Any:
        return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(self.features(x), self.high, 1, "SAME")), [1, 2]) @ self.head


class Loaded(tf.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.net = tf.saved_model.load(folder)

    def __call__(self, x: Any) -> Any:
        return self.net.serve(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(TwoConvolutions(), path)
    return path


def batch(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((6, 8, 8, 3), np.float32), "label": rng.integers(0, 3, 6)}


@pytest.mark.parametrize(
    ("text", "below", "bytes_each"),
    [
        pytest.param("net/head", ["net/high", "net/low"], 16, marks=pytest.mark.slow),
        ("net/hi.* net/head", ["net/low"], 256),
    ],
)
def test_the_line_lies_between_the_frozen_and_the_trained_part_of_one_function(
    folder: str, text: str, below: list[str], bytes_each: int
) -> None:
    found = []
    for cached in (False, True):
        model = Loaded(folder)
        selection, loss_fn = select(model, text), losses.supervised_loss(model)
        step, evaluator = TrainStep(loss_fn, optimizers.Adam()), Evaluator(loss_fn, watch=frozen_output_norms)
        line = cut_step(step, selection, batch(0))
        assert isinstance(line, FrostLine)
        assert (sorted(line.frozen_below), line.bytes) == (below, bytes_each)
        assert cut_evaluation(evaluator, selection, line, batch(0)) is None
        batches = [line.replace_images(batch(seed)) if cached else batch(seed) for seed in range(3)]
        steps = [float(step(selection, given, learning_rate=0.01).loss) for given in batches]
        found.append([*steps, evaluator(selection, batches, watched=batch(0)).loss])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("text", ["net/head", "net/hi.* net/head"])
def test_the_norm_of_a_frozen_part_inside_a_function_is_watched(folder: str, text: str) -> None:
    model = Loaded(folder)
    selection, loss_fn = select(model, text), losses.supervised_loss(model)
    evaluator = Evaluator(loss_fn, watch=frozen_output_norms)
    images = tf.constant(batch(0)["image"])
    found = evaluator(selection, [batch(0), batch(1)])
    out = tf.nn.relu(tf.nn.conv2d(images, model.net.low, 2, "SAME"))
    if text == "net/head":
        out = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(out, model.net.high, 1, "SAME")), [1, 2])
    norms = np.sqrt(np.sum(np.square(out.numpy().reshape(6, -1).astype(np.float64)), 1))
    assert evaluator(selection, [batch(0)]).frozen_output_norm == pytest.approx(norms.mean(), rel=1e-6)
    assert evaluator(selection, [batch(1)], watched=batch(0)).frozen_output_norm == pytest.approx(
        norms.mean(), rel=1e-6
    )
    assert found.loss == Evaluator(loss_fn)(selection, [batch(0), batch(1)]).loss
    assert evaluator(select(model, "@all"), [batch(0)]).frozen_output_norm is None
    model.net.low.assign(model.net.low * 2)
    assert evaluator(selection, [batch(0)]).frozen_output_norm == pytest.approx(2 * norms.mean(), rel=1e-6)
