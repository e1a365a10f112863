"""E1 and E2 of a step that XLA compiles whole, with whole networks; tests/training/test_compiling.py has a tiny one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.models import build_model
from engine.training import losses, optimizers
from engine.training.precision import LossScale

GRADIENT, WEIGHTS = 5e-6, 1e-10  # as E2

CASES = {
    "vit": ("vit:mini,depth=1,dropout=0.1,drop_path=0.2", "@blocks @head !@norm"),
    "cnn": ("cnn:mini", "stages/[23]/.* @head !@stats"),
}


def batch(size: int, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([size, number])
    return {
        "image": rng.standard_normal((size, 8, 8, 1)),
        "label": rng.integers(0, 4, size),
        "weight": rng.random(size) * (np.arange(size) % 3 != 1),
        "seeds": rng.integers(0, 2**31, (size, 2)).astype(np.int32),
    }


def train(name: str, dtype: Any, sizes: list[int], **settings: Any) -> tuple[TrainStep, np.ndarray, np.ndarray]:
    """The step, the moments after it and the weights: of the gradient up to a factor, where there is one step."""
    spec, train = CASES[name]
    network = build_model(spec, image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
    selection = select(network, train)
    step = TrainStep(losses.supervised_loss(network), optimizers.AdamW(weight_decay=0.05, clip_norm=0.5), **settings)
    proof = FreezeProof.begin(selection)
    for number, size in enumerate(sizes):
        step(selection, batch(size, number), learning_rate=1e-3)
    assert proof.changed(selection) == []
    moments = [step.slots.values[entry.path]["m"] for entry in selection.trained]
    return step, joined(moments), joined([entry.variable for entry in selection.trained])


def joined(variables: Any) -> np.ndarray:
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in variables])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("deterministic_ops")
def test_a_compiled_step_in_parts_is_one_batch_without_xla(name: str) -> None:
    _, expected, _ = train(name, tf.float32, [7], jit_compile="off")
    for size in (None, 3):
        step, found, _ = train(name, tf.float32, [7], jit_compile="on", micro_batch_size=size)
        assert relative(found, expected) < GRADIENT, size
        assert step.traces == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("deterministic_ops")
def test_ten_compiled_steps_in_float64_are_those_without_xla(name: str) -> None:
    sizes = [7] * 9 + [4]  # the last one short
    _, _, expected = train(name, tf.float64, sizes, jit_compile="off")
    step, _, found = train(name, tf.float64, sizes, jit_compile="on", micro_batch_size=3)
    assert relative(found, expected) < WEIGHTS
    assert step.traces == 1


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_a_compiled_step_in_float16_that_is_not_finite_moves_no_statistic_either() -> None:
    network = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=4, compute=tf.float16).network
    selection = select(network, "stages/[23]/.* @head")
    assert selection.moving
    step = TrainStep(
        losses.supervised_loss(network),
        optimizers.AdamW(),
        micro_batch_size=3,
        loss_scale=LossScale(),
        jit_compile="on",
    )
    proof = FreezeProof.begin(selection)
    for number in range(4):
        given = batch(7, 0)
        given["image"] = given["image"].astype(np.float32)
        given["weight"] = np.ones(7, np.float32)
        given["image"][3, 0, 0, 0] = np.inf if number in (1, 2) else 0.0
        before = {e.path: e.variable.numpy().tobytes() for e in selection.variables}
        assert step(selection, given, learning_rate=1e-2).skipped == (number in (1, 2))
        moved = {e.path for e in selection.variables if e.variable.numpy().tobytes() != before[e.path]}
        assert moved == (set() if number in (1, 2) else {e.path for e in (*selection.trained, *selection.moving)})
        assert proof.changed(selection) == []
    assert (step.traces, step.skipped) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["elementwise", "blocks"])
@pytest.mark.usefixtures("deterministic_ops")
def test_what_a_compiled_step_recomputes_changes_nothing(mode: str) -> None:
    _, expected, _ = train("vit", tf.float32, [7], jit_compile="off")
    _, found, _ = train("vit", tf.float32, [7], jit_compile="on", remat=mode)
    assert relative(found, expected) < GRADIENT
