"""E1, E2 and E4 of a network with two outputs, whose labels are missing for some examples; E5 is in recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from two_tasks import LOSS, TwoOutputs, make_batch

from engine import FreezeProof, TrainStep, select
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.selection import filters
from engine.selection.selection import Selection
from engine.training import losses, optimizers
from engine.training.microbatch import StepError

FIRST, GRADIENT, TRAJECTORY = 1e-6, 5e-6, 1e-10  # the contracts: float32 first step; float64 trajectories
HEADS = "head/.*"
CASES = {  # what trains, and the losses that count
    "both heads": (HEADS, None),
    "one head by its loss": ("head/species/.*", ("species",)),
    "everything by one loss": ("head/age/.* trunk/.*", ("age",)),
}


def make_step(dtype: Any, train: str, names: tuple[str, ...] | None, **options: Any) -> tuple[TrainStep, Selection]:
    model = TwoOutputs(dtype)
    optimizer = optimizers.AdamW(weight_decay=0.1, clip_norm=0.5, decay=filters.group("all"))
    step = TrainStep(losses.supervised_loss(model, LOSS), optimizer, **options)
    return step, replace(select(model, train), losses=names)


def joined(tensors: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(tensor, np.float64).ravel() for tensor in tensors])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def values(selection: Selection) -> np.ndarray:
    return joined([entry.variable for entry in selection.trained])


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case != "one head by its loss")) for case in CASES]
)
@pytest.mark.usefixtures("deterministic_ops")
def test_what_is_frozen_keeps_every_bit_and_what_trains_moves(case: str) -> None:
    step, selection = make_step(tf.float32, *CASES[case], ema=0.9, micro_batch_size=3)
    proof, before = FreezeProof.begin(selection), values(selection)
    for number in range(3):
        result = step(selection, make_batch(8, seed=number), learning_rate=0.05)
        assert np.isfinite(float(result.loss))
    assert proof.changed(selection) == []
    assert (values(selection) != before).all()


def test_a_step_in_which_a_task_has_no_labels_leaves_its_term_out() -> None:
    step, selection = make_step(tf.float64, HEADS, None)
    batch = make_batch(6, dtype=np.float64)
    batch["weight/age"][:] = 0.0
    batch["label/age"][:] = np.nan
    alone, age = make_step(tf.float64, "head/species/.*", ("species",))
    result = step(selection, batch, learning_rate=0.1)
    assert result.left_out == ("age",)
    assert float(result.terms["age"]) == 0.0
    assert float(result.loss) == float(alone(age, batch, learning_rate=0.1).loss)


@pytest.mark.parametrize("case", ["both heads", pytest.param("everything by one loss", marks=pytest.mark.slow)])
def test_uneven_micro_batches_are_one_batch(case: str) -> None:
    for dtype, steps in ((tf.float32, 1), (tf.float64, 10)):
        found = []
        for size in (None, 3):
            step, selection = make_step(dtype, *CASES[case], micro_batch_size=size)
            for number in range(steps):
                step(selection, make_batch(7, seed=number, dtype=dtype.as_numpy_dtype), learning_rate=1e-2)
            gradient = joined([next(iter(step.slots.values[e.path].values())) for e in selection.trained])
            found.append((values(selection), gradient))
        (whole, gradient), (parts, split) = found
        assert relative(split, gradient) < (GRADIENT if steps == 1 else TRAJECTORY)
        assert steps == 1 or relative(parts, whole) < TRAJECTORY


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) for case in ("both heads", "one head by its loss")]
)
@pytest.mark.usefixtures("deterministic_ops")
def test_a_step_from_features_is_one_from_images(case: str) -> None:
    for dtype, steps in ((tf.float32, 1), (tf.float64, 50)):
        found = []
        for cached in (False, True):
            step, selection = make_step(dtype, *CASES[case])
            given: list[Mapping[str, Any]] = [
                make_batch(8, seed=number, dtype=dtype.as_numpy_dtype) for number in range(steps)
            ]
            if cached:
                line = cut_step(step, selection, given[0])
                assert isinstance(line, FrostLine), line
                assert [tensor.shape for tensor in line.tensors] == [(4,)]  # one set of features for both heads
                given = [line.replace_images(batch) for batch in given]
            shown = [float(step(selection, batch, learning_rate=1e-2).loss) for batch in given]
            found.append((np.array(shown), values(selection)))
        bound = FIRST if steps == 1 else TRAJECTORY
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=bound)
        assert relative(found[1][1], found[0][1]) < bound


def test_a_head_whose_loss_does_not_count_is_refused_with_what_to_write() -> None:
    step, selection = make_step(tf.float32, HEADS, ("species",))
    with pytest.raises(
        StepError,
        match=r"losses=species: these do not depend on 1 trained variable.*head/age/kernel; write losses=species,age, or leave",
    ):
        step(selection, make_batch(4), learning_rate=0.1)
