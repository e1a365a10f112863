"""The figures that evaluations compute beside the loss: gathered over batches, workers and devices, and finalised once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import made_by_all

from engine import select
from engine.data import EvalBatches
from engine.data.part import Part
from engine.distribution.distribution import ALONE, Distribution
from engine.models import build_model
from engine.training import gathered, losses
from engine.training.evaluation import Evaluator, Result
from engine.training.gathered import make_figure
from engine.training.metric import Metric
from engine.training.metric_names import MetricError


class Hits(Metric):
    """Counts, other sums, and kept scores at once."""

    name = "hits"
    kept = ("scores",)
    higher_is_better = False

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        right = tf.cast(tf.argmax(outputs, axis=1) == tf.cast(labels, tf.int64), tf.float64)
        return {
            "right": tf.reduce_sum(right),
            "sizes": tf.reduce_sum(tf.abs(tf.cast(outputs, tf.float64)), axis=0),
            "scores": outputs[:, 0],
        }

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Any:
        return [float(sums["right"]), *sums["sizes"].tolist(), *sums["scores"].tolist()]


class Wrong(Metric):
    """What a user might get wrong."""

    name = "wrong"

    def __init__(self, measured: Any, figure: Any = 0.0, kept: tuple[str, ...] = ()) -> None:
        self._measured, self._figure, self.kept = measured, figure, kept

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Any:
        return self._measured(outputs)

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Any:
        return self._figure(sums) if callable(self._figure) else self._figure


def evaluate(metric: Metric, *, size: int = 3, distribution: Distribution = ALONE, count: int = 7) -> Result:
    rng = np.random.default_rng(count)
    part = Part(rng.integers(0, 256, (count, 2, 2, 1), np.uint8), rng.integers(0, 3, count), np.arange(count))
    kernel = tf.Variable(rng.standard_normal((4, 3)), dtype=tf.float32)

    class Linear(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = kernel

        def __call__(self, images: Any) -> Any:
            return tf.reshape(images, [-1, 4]) @ self.kernel

    model = Linear()
    loss_fn = losses.supervised_loss(model, metrics=[metric])
    return Evaluator(loss_fn, distribution=distribution)(select(model, "@all"), EvalBatches(part, batch_size=size))


def test_a_figure_is_that_of_all_examples_however_they_are_batched() -> None:
    one, many = evaluate(Hits(), size=7), evaluate(Hits(), size=2)
    assert one.figures["hits"][0] == many.figures["hits"][0]
    np.testing.assert_allclose(one.figures["hits"], many.figures["hits"], rtol=1e-5)  # float32 products of other shapes
    assert len(one.figures["hits"]) == 1 + 3 + 7
    assert one.lower == ("hits",)


@pytest.mark.parametrize(("count", "workers"), [(11, 2), (3, 3)])
def test_workers_have_the_figures_of_one_to_the_bit(count: int, workers: int) -> None:
    """With 3 examples in batches of 3, two of three workers have none, and must know the metrics all the same."""
    expected = evaluate(Hits(), count=count).figures
    for found in made_by_all(workers, lambda own: evaluate(Hits(), count=count, distribution=own)):
        assert found.figures == expected != {}


def test_a_step_computes_no_figures_and_an_evaluation_keeps_its_loss() -> None:
    class Traced(Hits):
        times = 0

        def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
            Traced.times += 1
            return super().measure(outputs, labels, weights)

    model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3).network
    batch = {"image": tf.zeros([2, 8, 8, 1]), "label": tf.constant([0, 1])}
    loss_fn = losses.supervised_loss(model, metrics=[Traced()])
    assert loss_fn(batch, training=True, seeds=None).measured == {}
    assert Traced.times == 0
    assert list(loss_fn(batch, training=False, seeds=None).measured) == ["hits"]
    plain = Evaluator(losses.supervised_loss(model))(select(model, "@all"), [batch])
    assert Evaluator(loss_fn)(select(model, "@all"), [batch]).loss == plain.loss
    assert plain.figures == {}


@pytest.mark.parametrize(
    ("measured", "figure", "kept", "message"),
    [
        (lambda x: x, 0.0, (), "expected a dict of tensors by name"),
        (lambda x: {}, 0.0, (), "expected a dict of tensors by name"),
        (lambda x: {"a": x[:, 0]}, 0.0, (), "which may depend on the number of examples"),
        (lambda x: {"a": tf.reduce_sum(x)}, 0.0, ("b",), "no 'b', which `kept` lists"),
        (lambda x: {"a": tf.reduce_sum(x)}, 0.0, ("a",), "'a' is a scalar, but `kept`"),
        (lambda x: {"a": tf.constant("text")}, 0.0, (), "string; expected numbers"),
        (lambda x: {"a": 1 / 0}, 0.0, (), "measure raised ZeroDivisionError"),
        (lambda x: {"a": 1.0}, lambda sums: sums["b"], (), "finalise raised KeyError"),
        (lambda x: {"a": 1.0}, [[1], [1, 2]], (), "finalise returned .* expected a number"),
        (lambda x: {"a": 1.0}, None, (), "finalise returned None; expected a number"),
    ],
)
def test_a_metric_that_breaks_the_contract_is_told_how(measured: Any, figure: Any, kept: Any, message: str) -> None:
    with pytest.raises(MetricError, match=f"^metric wrong: .*{message}"):
        evaluate(Wrong(measured, figure, kept))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "MOST_KEPT", 20)
    with pytest.raises(MetricError, match=r"metric hits: .*more than 20 bytes"):
        evaluate(Hits())


def test_a_figure_that_is_not_defined_is_nan() -> None:
    assert np.isnan(make_figure("wrong", Wrong(None, float("nan")), {}))
    assert make_figure("wrong", Wrong(None, np.float32(0.5)), {}) == 0.5
    assert make_figure("wrong", Wrong(None, np.eye(2)), {}) == [[1.0, 0.0], [0.0, 1.0]]
