"""The CNN: its variables, its mathematics against numpy, and BatchNorm's two modes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models.cnn import CNN, WIDTHS
from engine.models.layers import BatchNorm
from engine.selection.variables import name_variables
from engine.training import losses, optimizers


def cnn(dtype: Any = tf.float64, channels: int = 1) -> CNN:
    """A CNN with every variable random and every variance positive."""
    network = CNN(channels, 3, dtype=dtype)
    rng = np.random.default_rng(1)
    for entry in name_variables(network):
        value = rng.standard_normal(entry.variable.shape) * 0.3
        entry.variable.assign(np.abs(value) + 0.5 if entry.path.endswith(("variance", "gamma")) else value)
    return network


def images(count: int = 4, size: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, size, size, channels))


def values(network: CNN) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(network)}


def reference(network: CNN, x: np.ndarray, *, training: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits, and each BatchNorm's batch moments."""
    w, moments = values(network), {}
    for stage in range(4):
        kernel, stride = w[f"stages/{stage}/conv/kernel"], 1 if stage == 0 else 2
        side = -(-x.shape[1] // stride)
        before = max((side - 1) * stride + 3 - x.shape[1], 0) // 2  # TensorFlow's SAME: the odd one comes after
        padded = np.pad(x, [(0, 0), (before, 2), (before, 2), (0, 0)])
        y = np.zeros((len(x), side, side, kernel.shape[3]))
        for row in range(side):
            for column in range(side):
                r, c = row * stride, column * stride
                y[:, row, column] = np.tensordot(padded[:, r : r + 3, c : c + 3], kernel, axes=3)
        where = f"stages/{stage}/norm"
        mean, variance = w[f"{where}/moving_mean"], w[f"{where}/moving_variance"]
        if training:
            mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        moments |= {f"{where}/moving_mean": mean, f"{where}/moving_variance": variance}
        y = (y - mean) / np.sqrt(variance + 1e-3) * w[f"{where}/gamma"] + w[f"{where}/beta"]
        x = np.maximum(y, 0)
    return x.mean((1, 2)) @ w["head/kernel"] + w["head/bias"], moments


def test_the_variable_paths_are_exactly_these() -> None:
    stages = [
        f"stages/{n}/{name}"
        for n in range(4)
        for name in ("conv/kernel", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance")
    ]
    entries = list(name_variables(cnn()))
    assert [entry.path for entry in entries] == [*stages, "head/kernel", "head/bias"]
    assert {e.path for e in entries if e.kind == "statistic"} == {path for path in stages if "moving" in path}
    assert {e.path for e in entries if "norm" in e.groups} == {path for path in stages if "norm" in path}


def test_the_number_of_parameters_is_that_of_the_widths() -> None:
    widths = (3, *WIDTHS)
    expected = sum(9 * a * b + 4 * b for a, b in itertools.pairwise(widths)) + WIDTHS[-1] * 3 + 3
    assert name_variables(cnn(channels=3)).parameters == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [8, 9, 13])
def test_the_forward_pass_equals_numpy(size: int, training: bool) -> None:
    network = cnn(channels=3)
    batch = images(size=size, channels=3)
    expected, _ = reference(network, batch, training=training)
    # float64 on both sides; a stage sums up to 576 products, and training divides by small deviations
    np.testing.assert_allclose(network(batch, training=training), expected, atol=1e-11, rtol=1e-11)


def test_training_moves_each_statistic_by_a_tenth_towards_the_batch() -> None:
    network = cnn()
    before = values(network)
    _, moments = reference(network, images(), training=True)
    network(images(), training=True)
    after = values(network)
    assert len(moments) == 8
    for path in before:
        if path in moments:
            expected = 0.9 * before[path] + 0.1 * moments[path]
            np.testing.assert_allclose(after[path], expected, atol=1e-12, rtol=1e-12, err_msg=path)
        else:
            np.testing.assert_array_equal(after[path], before[path])


def test_inference_writes_nothing_and_treats_each_image_alone() -> None:
    network = cnn()
    before = values(network)
    whole = network(images()).numpy()
    for n in range(4):
        np.testing.assert_allclose(network(images()[n : n + 1])[0], whole[n], atol=1e-12, rtol=0)
    for path, value in values(network).items():
        np.testing.assert_array_equal(value, before[path])


def test_a_layer_switched_to_inference_ignores_training() -> None:
    norm = BatchNorm(2, dtype=tf.float64)
    norm.moving_mean.assign([1.0, -1.0])
    norm.moving_variance.assign([4.0, 0.25])
    x = tf.constant(np.random.default_rng(0).standard_normal((5, 3, 3, 2)))
    norm.update_statistics = False
    np.testing.assert_array_equal(norm(x, training=True), norm(x, training=False))
    np.testing.assert_array_equal(norm.moving_mean, [1.0, -1.0])
    expected = (x - [1.0, -1.0]) / np.sqrt(np.array([4.0, 0.25]) + 1e-3)
    np.testing.assert_allclose(norm(x, training=True), expected, atol=1e-13, rtol=1e-13)


def test_normalised_training_outputs_have_mean_beta_and_deviation_gamma() -> None:
    norm = BatchNorm(2, epsilon=1e-12, dtype=tf.float64)
    norm.gamma.assign([2.0, 0.5])
    norm.beta.assign([3.0, -1.0])
    x = tf.constant(np.random.default_rng(0).standard_normal((50, 4, 4, 2)) * 7 + 3)
    found = norm(x, training=True).numpy()
    np.testing.assert_allclose(found.mean((0, 1, 2)), [3.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(found.std((0, 1, 2)), [2.0, 0.5], rtol=1e-12)


def test_statistics_of_a_trained_stage_move_and_of_a_frozen_one_do_not() -> None:
    network = cnn()
    batch = {"image": images(), "label": np.array([0, 1, 2, 0])}
    before = values(network)
    step = TrainStep(losses.supervised_loss(network), optimizers.SGD())
    step(select(network, "stages/3/.* head/.*"), batch, learning_rate=0.1)
    moved = {path for path, value in values(network).items() if (value != before[path]).any()}
    assert moved == {path for path in before if path.startswith(("stages/3/", "head/"))}
