"""E1: frozen variables, statistics included, do not change; a planted write fails the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.models import build_model
from engine.selection import filters
from engine.selection.proof import digests
from engine.selection.selection import Selection
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.microbatch import StepError
from engine.training.precision import LossScale

CLASSES = 10
EVERYTHING_DECAYS = filters.group("all")
OPTIMIZERS = {
    "sgd": optimizers.SGD(weight_decay=0.1, clip_norm=0.5, decay=EVERYTHING_DECAYS),
    "nesterov": optimizers.Momentum(nesterov=True, weight_decay=0.1, clip_norm=0.5, decay=EVERYTHING_DECAYS),
    "adam": optimizers.Adam(clip_norm=0.5),
    "start": optimizers.SGD(weight_decay=0.1, decay_toward="start", decay=EVERYTHING_DECAYS),
    "adamw": optimizers.AdamW(weight_decay=0.1, layer_decay=0.8, clip_norm=0.5, decay=EVERYTHING_DECAYS),
}


def mobilenet() -> Any:
    backbone = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    dense = keras.layers.Dense(CLASSES, kernel_regularizer="l2")
    return keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.2), dense])


def network(name: str) -> tuple[Any, tuple[int, int, int]]:
    if name == "mobilenet":
        return mobilenet(), (32, 32, 3)
    if name == "cnn":
        return build_model("cnn:mini", image_shape=(28, 28, 1), outputs=CLASSES).network, (28, 28, 1)
    spec = "vit:mini,depth=2,dropout=0.1,drop_path=0.1"
    return build_model(spec, image_shape=(28, 28, 1), outputs=CLASSES).network, (28, 28, 1)


def batch(shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((6, *shape), np.float32),
        "label": rng.integers(0, CLASSES, 6),
        "weight": rng.random(6, np.float32),
    }


def train(step: TrainStep, selection: Selection, shape: tuple[int, int, int], steps: int = 3) -> None:
    for number in range(steps):
        step(selection, batch(shape, number), learning_rate=0.05)


CASES = [
    pytest.param("vit", "head/.*", "adamw", marks=pytest.mark.slow),
    ("vit", "@blocks[-1:] @head !@norm", "nesterov"),
    pytest.param("vit", "patch/.* blocks/0/.*", "adam", marks=pytest.mark.slow),
    ("vit", "@norm @bias", "sgd"),
    ("cnn", "@head", "adamw"),
    pytest.param("cnn", "stages/1/.* @head", "nesterov", marks=pytest.mark.slow),
    ("cnn", "@all !@stats", "adam"),
    ("cnn", "stages/3/.* @head", "start"),
    pytest.param("mobilenet", "@head", "nesterov", marks=pytest.mark.slow),
    pytest.param("mobilenet", "@layers[-20:] @head", "adamw", marks=pytest.mark.slow),
    pytest.param("mobilenet", "@layers[-20:] @head !@stats", "sgd", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "text", "optimizer"), CASES)
@pytest.mark.usefixtures("deterministic_ops")
def test_frozen_variables_keep_every_bit_and_trained_ones_move(name: str, text: str, optimizer: str) -> None:
    model, shape = network(name)
    selection = select(model, text)
    step = TrainStep(losses.supervised_loss(model), OPTIMIZERS[optimizer])
    proof = FreezeProof.begin(selection)
    before = digests([*selection.trained, *selection.moving])
    train(step, selection, shape)
    assert proof.changed(selection) == []
    after = digests([*selection.trained, *selection.moving])
    still = {path for path in before if after[path] == before[path]}
    assert not still, f"selected, and did not move: {sorted(still)}"


@pytest.mark.usefixtures("deterministic_ops")
def test_frozen_variables_stay_through_a_sequence_of_selections() -> None:
    model, shape = network("cnn")
    step = TrainStep(losses.supervised_loss(model), OPTIMIZERS["adamw"])
    for text in ("@head", "@all", "stages/2/.*", "@all !@stats", "@head"):
        selection = select(model, text)
        proof = FreezeProof.begin(selection)
        train(step, selection, shape, steps=2)
        assert proof.changed(selection) == [], text


def plant(inner: Any, write: Any, *, unseen: bool) -> Any:
    """The loss ``inner`` that writes in training too, where the trace shows it or, in a py_function, does not."""

    def without_result() -> None:
        write()

    def planted(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        if unseen:
            tf.py_function(without_result, [], [])
        else:
            write()
        return inner(batch, training=training, seeds=seeds)

    return planted


PLANTED = [
    ("vit", "blocks/1/norm2/beta"),
    ("cnn", "stages/0/norm/moving_mean"),
    pytest.param("mobilenet", "mobilenetv2_0.35_32/bn_Conv1/moving_mean", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "path"), PLANTED)
def test_a_planted_write_to_a_frozen_variable_is_refused_before_it_is_run(name: str, path: str) -> None:
    model, shape = network(name)
    selection = select(model, "@head")
    variable = selection.variables.by_path()[path].variable
    inner, proof = losses.supervised_loss(model), FreezeProof.begin(selection)
    planted = plant(inner, lambda: variable.assign(variable + 1e-7), unseen=False)
    with pytest.raises(StepError, match=f"would change 1 frozen variable.*{path}"):
        train(TrainStep(planted, OPTIMIZERS["adamw"]), selection, shape, steps=1)
    assert proof.changed(selection) == []


@pytest.mark.parametrize(("name", "path"), PLANTED)
def test_a_planted_write_that_the_trace_does_not_show_fails_the_proof(name: str, path: str) -> None:
    model, shape = network(name)
    selection = select(model, "@head")
    variable = selection.variables.by_path()[path].variable
    inner, proof = losses.supervised_loss(model), FreezeProof.begin(selection)
    planted = plant(inner, lambda: variable.assign(variable + 1e-3), unseen=True)
    train(TrainStep(planted, OPTIMIZERS["adamw"]), selection, shape, steps=1)
    assert proof.changed(selection) == [path]


SPLIT_CASES = [
    ("vit", "@blocks[-1:] @head !@norm", "adamw"),
    ("cnn", "stages/[23]/.* @head", "nesterov"),
    pytest.param("mobilenet", "@layers[-20:] @head !@stats", "adamw", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "text", "optimizer"), SPLIT_CASES)
@pytest.mark.usefixtures("deterministic_ops")
def test_frozen_variables_stay_through_micro_batches_averages_and_skipped_steps(
    name: str, text: str, optimizer: str
) -> None:
    model, shape = network(name)
    selection = select(model, text)
    step = TrainStep(
        losses.supervised_loss(model), OPTIMIZERS[optimizer], micro_batch_size=2, ema=0.9, loss_scale=LossScale()
    )
    proof = FreezeProof.begin(selection)
    for number in range(5):  # 3 micro-batches each; steps 0 and 3 are not finite
        given = batch(shape, number)
        given["weight"] += 0.1
        if number in (0, 3):
            given["image"][3, 0, 0, 0] = np.inf  # reaches statistics; a relu6 makes it finite again
            given["weight"][3] = np.inf
        before = digests([*selection.trained, *selection.moving])
        assert step(selection, given, learning_rate=0.05).skipped == (number in (0, 3))
        after = digests([*selection.trained, *selection.moving])
        same = {path for path in before if after[path] == before[path]}
        assert same == (set(before) if number in (0, 3) else set())
        assert proof.changed(selection) == []
    with step.averages.in_place(selection.variables):
        assert proof.changed(selection) == [], "averages of frozen variables"
    assert set(step.averages.values) == {entry.path for entry in selection.trained}
    assert step.skipped == 2
