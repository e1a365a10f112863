"""E1, E2 and E4 for boxes around objects; test_e5_of_new_labels.py has E5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from label_kinds import boxes

from engine import FreezeProof, TrainStep, select
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.selection import filters
from engine.training import losses, optimizers
from engine.training.detection_metric import AveragePrecision
from engine.training.evaluation import Evaluator

FIRST, GRADIENT, TRAJECTORY = 1e-6, 5e-6, 1e-10  # the contracts: float32 first step; float64 trajectories
pytestmark = pytest.mark.usefixtures("deterministic_ops")


def joined(variables: Any) -> np.ndarray:
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in variables])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def train(
    dtype: Any, sizes: list[int], *, text: str = "head.*", micro: int | None = None, cached: bool = False
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """The losses, the gradient of the first step up to a factor, and the changes of what trains."""
    model, loss, batch = boxes(dtype)
    selection = select(model, text)
    rule = optimizers.AdamW(weight_decay=0.05, clip_norm=0.5, decay=filters.group("all"))
    step = TrainStep(losses.supervised_loss(model, loss), rule, micro_batch_size=micro)
    proof, line = FreezeProof.begin(selection), None
    variables = [entry.variable for entry in selection.trained]
    start, found, gradient = joined(variables), [], np.zeros(0)
    for number, size in enumerate(sizes):
        given: Any = batch(size, number)
        if cached and line is None:
            line = cut_step(step, selection, given)
            assert isinstance(line, FrostLine), line
            assert [tuple(tensor.shape) for tensor in line.tensors] == [(4, 4, 6)]
        given = given if line is None else line.replace_images(given)
        found.append(float(step(selection, given, learning_rate=1e-2).loss))
        if not number:
            gradient = joined([step.slots.values[entry.path]["m"] for entry in selection.trained])
    assert proof.changed(selection) == []
    moved = joined(variables) - start
    assert np.linalg.norm(moved) > 1e-3
    return found, gradient, moved


def test_e1_what_is_frozen_keeps_every_bit_with_decay_clipping_and_micro_batches() -> None:
    train(tf.float32, [5, 5, 3], micro=2)


def test_e2_micro_batches_with_and_without_objects_are_one_batch() -> None:
    whole, parts = (train(tf.float32, [7], text="@all", micro=micro) for micro in (None, 3))
    assert relative(parts[1], whole[1]) < GRADIENT
    whole, parts = (train(tf.float64, [7] * 9 + [4], text="@all", micro=micro) for micro in (None, 3))
    assert relative(parts[2], whole[2]) < TRAJECTORY
    np.testing.assert_allclose(parts[0], whole[0], rtol=TRAJECTORY)


def test_e4_steps_from_features_are_those_from_images() -> None:
    plain, kept = (train(tf.float32, [7], cached=cached) for cached in (False, True))
    np.testing.assert_allclose(kept[0], plain[0], rtol=FIRST)
    assert relative(kept[1], plain[1]) < FIRST
    plain, kept = (train(tf.float64, [7] * 50, cached=cached) for cached in (False, True))
    np.testing.assert_allclose(kept[0], plain[0], rtol=TRAJECTORY)
    assert relative(kept[2], plain[2]) < TRAJECTORY


def test_e4_an_evaluation_from_features_has_the_precision_of_one_from_images() -> None:
    model, loss, batch = boxes(tf.float64)
    given, selection = batch(9, 0), select(model, "head.*")
    line = cut_step(TrainStep(losses.supervised_loss(model, loss), optimizers.SGD()), selection, given)
    assert isinstance(line, FrostLine), line
    evaluator = Evaluator(losses.supervised_loss(model, loss, metrics=[AveragePrecision()]))
    assert cut_evaluation(evaluator, selection, line, given) is None
    ours, theirs = evaluator(selection, [line.replace_images(given)]), evaluator(selection, [given])
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert ours.figures == pytest.approx(theirs.figures, rel=1e-12)
    assert 0 <= theirs.figures["ap50"] <= 1
