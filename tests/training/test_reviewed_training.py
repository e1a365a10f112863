"""Faults that a review of the losses and records found, each with the right answer."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from engine.training.dense_losses import compute_dice
from engine.training.loop import State
from engine.training.loss_names import LossError, parse_losses
from engine.training.phases import Evaluation
from engine.training.task_terms import find_compute


def test_a_loss_of_ones_own_may_not_drop_the_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviewed_loss.py").write_text(
        "import tensorflow as tf\nfrom engine.training.loss_kinds import Values\n"
        "def drops(outputs, labels, weights):\n    return Values(tf.square(outputs[:, 0] - labels), None, {})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (loss,) = parse_losses("py:reviewed_loss:drops")
    compute = find_compute(loss)
    outputs, labels = tf.ones([3, 1]), tf.zeros([3])
    assert compute(outputs, labels, None).weights is None
    with pytest.raises(LossError, match="it was given weights, and returned values without"):
        compute(outputs, labels, tf.constant([1.0, 1.0, 0.0]))
    sys.modules.pop("reviewed_loss")


def test_classes_that_the_data_lack_need_no_weight() -> None:
    rng = np.random.default_rng(0)
    logits, labels = tf.constant(rng.standard_normal((2, 4, 4, 4)), tf.float32), rng.integers(0, 2, (2, 4, 4))
    some = compute_dice(logits, tf.constant(labels), class_weights=(1.0, 2.0))
    every = compute_dice(logits, tf.constant(labels), class_weights=(1.0, 2.0, 9.0, 9.0))
    np.testing.assert_array_equal(some[0], every[0])
    with pytest.raises(LossError, match="5 weights for a model with 4 classes"):
        compute_dice(logits, tf.constant(labels), class_weights=(1.0,) * 5)


def test_a_checkpoint_keeps_the_tables_of_the_last_evaluation_alone() -> None:
    table = [[1, 2], [3, 4]]
    evaluations = [Evaluation(n, "p", 1.0, 0.5, None, {"confusion": table, "f1": 0.5}) for n in (1, 2, 3)]
    state = State(step=3, evaluations=evaluations)
    found = State.from_json(json.loads(json.dumps(state.to_json())))
    assert [sorted(each.figures) for each in found.evaluations] == [["f1"], ["f1"], ["confusion", "f1"]]
