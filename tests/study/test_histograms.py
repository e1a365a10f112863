"""Histograms: TensorBoard's files and the picture are there, and looking changes nothing."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from engine import models
from engine.selection.selection import select
from engine.selection.variables import name_variables
from engine.study.histograms import Histograms, compute_gradients
from engine.training import losses, optimizers
from engine.training.step import TrainStep


@pytest.mark.parametrize("micro_batch_size", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_weights_and_gradients_are_collected_and_drawn(tmp_path: pathlib.Path, micro_batch_size: int | None) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = models.build_model("cnn:mini", image_shape=(16, 16, 1), outputs=3)
    variables = name_variables(model.network)
    selection = select(variables, "@all")
    assert selection.moving
    step = TrainStep(losses.supervised_loss(model.network), optimizers.SGD(), micro_batch_size=micro_batch_size)
    batch = {
        "image": np.random.default_rng(0).standard_normal((4, 16, 16, 1), np.float32),
        "label": np.arange(4) % 3,
        "seeds": np.zeros([4, 2], np.int32),
    }
    before = {entry.path: entry.variable.numpy() for entry in variables}
    found = compute_gradients(step, selection, batch)
    for entry in variables:
        np.testing.assert_array_equal(entry.variable.numpy(), before[entry.path])
    assert [g.shape for g in found] == [tuple(e.variable.shape) for e in selection.trained]
    if micro_batch_size is None:  # the gradient is that by which a step moves
        step(selection, batch, learning_rate=0.5)
        for entry, gradient in zip(selection.trained, found, strict=True):
            expected = before[entry.path] - 0.5 * gradient
            np.testing.assert_allclose(entry.variable.numpy(), expected, rtol=1e-5, atol=1e-6)

    pictures = Histograms(tmp_path / "tensorboard")
    for number in (0, 10):
        pictures.add(selection, found, number)
    pictures.draw(tmp_path / "picture.png", "a title")
    pictures.close()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["tensors"]) | set(events.Tags()["histograms"])
    assert {f"{kind}/{e.path}" for kind in ("weights", "gradients") for e in selection.trained} <= tags
