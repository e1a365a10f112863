"""E1 and E2 of a step that XLA compiles whole, for two tasks with missing labels, texts, boxes and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from label_kinds import KINDS, masks, texts

from engine import FreezeProof, TrainStep, select
from engine.selection import filters
from engine.training import losses, optimizers

GRADIENT, WEIGHTS = 5e-6, 1e-10  # as E2


def train(kind: Any, dtype: Any, sizes: list[int], **settings: Any) -> tuple[TrainStep, np.ndarray, np.ndarray]:
    """The step, and the first moments and the weights after it; what is frozen must have kept its bits."""
    model, loss, batch = kind(dtype)
    selection = select(model, "@all !embeddings/.*" if kind is texts else "head.*")
    rule = optimizers.AdamW(weight_decay=0.05, clip_norm=0.5, decay=filters.group("all"))
    step = TrainStep(losses.supervised_loss(model, loss), rule, **settings)
    proof = FreezeProof.begin(selection)
    for number, size in enumerate(sizes):
        assert np.isfinite(float(step(selection, batch(size, number), learning_rate=1e-3).loss))
    assert proof.changed(selection) == []
    moments = [step.slots.values[entry.path]["m"] for entry in selection.trained]
    return step, joined(moments), joined([entry.variable for entry in selection.trained])


def joined(variables: Any) -> np.ndarray:
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in variables])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("kind", [masks, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[:3])])
@pytest.mark.usefixtures("deterministic_ops")
def test_a_compiled_step_in_uneven_parts_is_one_batch_without_xla(kind: Any) -> None:
    _, expected, _ = train(kind, tf.float32, [7], jit_compile="off")
    step, found, _ = train(kind, tf.float32, [7], jit_compile="on", micro_batch_size=3)
    assert np.linalg.norm(expected) > 1e-3
    assert relative(found, expected) < GRADIENT
    assert step.traces == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("deterministic_ops")
def test_ten_compiled_steps_in_float64_are_those_without_xla(kind: Any) -> None:
    sizes = [7] * 9 + [4]  # the last one short
    _, _, expected = train(kind, tf.float64, sizes, jit_compile="off")
    _, _, found = train(kind, tf.float64, sizes, jit_compile="on", micro_batch_size=3)
    assert relative(found, expected) < WEIGHTS
