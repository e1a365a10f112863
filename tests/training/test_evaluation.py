"""Evaluation: exact means over uneven batches, and the norm at the frost line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import made_by_all

from engine import select
from engine.data import EvalBatches
from engine.data.part import Part
from engine.distribution.distribution import ALONE, Distribution
from engine.frostline.watch import frozen_output_norms
from engine.models import build_model
from engine.training import losses
from engine.training.evaluation import Evaluator, Result


def vit(options: str = "depth=3") -> Any:
    return build_model(f"vit:mini,{options}", image_shape=(8, 8, 1), outputs=4).network


def batches(sizes: list[int], **more: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    total = sum(sizes)
    whole = {"image": rng.standard_normal((total, 8, 8, 1), np.float32), "label": rng.integers(0, 4, total)}
    whole |= {name: value(rng, total) for name, value in more.items()}
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in whole.items()} for size, end in zip(sizes, ends, strict=True)
    ]


def test_means_do_not_depend_on_how_examples_are_batched() -> None:
    model = vit()
    selection = select(model, "@head")
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    weight = {"weight": lambda rng, n: rng.random(n, np.float32)}
    one = evaluator(selection, batches([10], **weight))
    many = evaluator(selection, batches([4, 1, 5], **weight))
    assert many.loss == pytest.approx(one.loss, rel=1e-6)  # float32 products of other shapes
    assert many.metrics["accuracy"] == pytest.approx(one.metrics["accuracy"], rel=1e-6)
    np.testing.assert_array_equal(many.per_example["accuracy"], one.per_example["accuracy"])


def test_evaluation_changes_nothing_and_uses_no_dropout() -> None:
    model = vit("depth=2,dropout=0.5")
    selection = select(model, "@all")
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    before = [v.numpy() for v in model.variables]
    assert evaluator(selection, batches([6])).loss == evaluator(selection, batches([6])).loss
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_frozen_output_norm_is_that_of_the_tensor_below_the_lowest_trained_variable() -> None:
    model = vit()
    (batch,) = batches([5])
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    features = model.features(tf.constant(batch["image"]))[:, 0]
    expected = float(tf.reduce_mean(tf.norm(features, axis=1)))
    assert evaluator(select(model, "@head"), [batch]).frozen_output_norm == pytest.approx(expected, rel=1e-5)


def test_the_frozen_output_norm_moves_only_when_something_below_it_does() -> None:
    model = vit()
    (batch,) = batches([5])
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    selection = select(model, "@head @blocks[-1:]")
    before = evaluator(selection, [batch]).frozen_output_norm
    model.blocks[2].mlp.up.kernel.assign_add(model.blocks[2].mlp.up.kernel)
    assert evaluator(selection, [batch]).frozen_output_norm == before
    model.blocks[1].mlp.up.kernel.assign_add(model.blocks[1].mlp.up.kernel)
    assert evaluator(selection, [batch]).frozen_output_norm != before


def test_there_is_no_frozen_output_when_everything_trains() -> None:
    model = vit()
    evaluator = Evaluator(losses.supervised_loss(model), watch=frozen_output_norms)
    assert evaluator(select(model, "@all"), batches([5])).frozen_output_norm is None


@pytest.mark.parametrize(("count", "workers"), [pytest.param(7, 2, marks=pytest.mark.slow), (3, 3), (33, 2)])
def test_workers_that_share_an_evaluation_all_have_the_result_of_one(count: int, workers: int) -> None:
    """Batches of 3: with 3 examples and 3 workers, two have none; with 33, those that are watched lie on both."""
    model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=3).network
    rng = np.random.default_rng(count)
    part = Part(rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 3, count), np.arange(count))
    selection, batches = select(model, "@head"), EvalBatches(part, batch_size=3)

    def measure(distribution: Distribution) -> Result:
        loss_fn = losses.supervised_loss(model)
        return Evaluator(loss_fn, watch=frozen_output_norms, distribution=distribution)(selection, batches)

    expected = measure(ALONE)
    for found in made_by_all(workers, measure):
        assert (found.loss, found.metrics) == (expected.loss, expected.metrics)
        assert found.frozen_output_norm == expected.frozen_output_norm is not None
        np.testing.assert_array_equal(found.per_example["accuracy"], expected.per_example["accuracy"])
