"""E5 in the library: a step that is saved and restored goes on with the bits of one that was not."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from engine import TrainStep, select
from engine.models import build_model
from engine.selection.variables import name_variables
from engine.training import checkpoint, losses, optimizers
from engine.training.losses import Loss
from engine.training.precision import LossScale
from engine.training.step_result import NonFiniteError

PHASES = ["@head", "@head", "@head", "stages/3/.* @head", "stages/3/.* @head", "stages/3/.* @head", "stages/3/.* @head"]


def made(**settings: Any) -> tuple[Any, TrainStep]:
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3).network
    inner = losses.supervised_loss(model)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        loss = inner(batch, training=training, seeds=seeds)
        return loss._replace(terms=loss.terms | {"rarely": (loss.terms["softmax"][0], batch["sometimes"])})

    step = TrainStep(
        loss_fn,
        optimizers.Adam(),
        micro_batch_size=2,
        loss_scale=LossScale(2.0**8, growth_every=2),
        ema=0.8,
        **settings,
    )
    return model, step


def batch_at(number: int) -> dict[str, Any]:
    """Steps 1, 4 and 5 are not finite; in even ones the second term has no weight."""
    rng = np.random.default_rng(number)
    images = rng.standard_normal((5, 8, 8, 1), np.float32)
    if number in (1, 4, 5):
        images[2] = np.inf
    sometimes = np.full(5, number % 2, np.float32)
    return {"image": images, "label": rng.integers(0, 3, 5), "sometimes": sometimes}


def train(model: Any, step: TrainStep, start: int, stop: int) -> list[tuple[float, float, bool]]:
    found = []
    for number in range(start, stop):
        result = step(select(model, PHASES[number]), batch_at(number), learning_rate=1e-2)
        found.append((float(result.loss), result.loss_scale, result.skipped))
    return found


def everything(model: Any, step: TrainStep) -> dict[str, bytes]:
    arrays = {entry.path: entry.variable.numpy() for entry in name_variables(model)} | dict(step.arrays())
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.usefixtures("deterministic_ops")
def test_a_restored_step_goes_on_with_the_same_bits_scale_averages_and_counts(tmp_path: pathlib.Path) -> None:
    whole, step = made()
    expected = train(whole, step, 0, len(PHASES))
    assert {skipped for *_, skipped in expected} == {True, False}
    assert {scale for _, scale, _ in expected} == {256.0, 128.0, 64.0}
    stop = 5  # in the second phase, between two skipped steps
    first, saving = made()
    train(first, saving, 0, stop)
    state = json.loads(json.dumps(saving.state()))  # as a checkpoint stores it
    saved = checkpoint.save(tmp_path, stop, variables=name_variables(first), arrays=saving.arrays, state=state)
    second, resumed = made()
    found, variables = checkpoint.read(saved), name_variables(second)
    checkpoint.restore(found, variables)
    resumed.restore(variables, found.state, found.arrays)
    assert resumed.state() == saving.state()
    rest = train(second, resumed, stop, len(PHASES))
    np.testing.assert_array_equal(np.array(rest), np.array(expected[stop:]))
    assert everything(second, resumed) == everything(whole, step)
    assert resumed.state() == step.state()
    assert step.state() == {
        "steps": 7,
        "skipped": 3,
        "skipped_in_row": 0,
        "left_out": {"rarely": 4},
        "loss_scale": {"scale": step.loss_scale.scale, "good": step.loss_scale.good},
    }


def test_skipped_steps_in_a_row_are_counted_across_a_resume() -> None:
    model, step = made(give_up=2)
    selection = select(model, "@head")
    assert step(selection, batch_at(1), learning_rate=1e-2).skipped
    _, resumed = made(give_up=2)
    resumed.loss_fn = step.loss_fn
    resumed.restore(name_variables(model), step.state(), dict(step.arrays()))
    with pytest.raises(NonFiniteError, match=r"2 steps in a row were skipped, the last with loss scale 128"):
        resumed(selection, batch_at(1), learning_rate=1e-2)
