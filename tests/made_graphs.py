"""Small networks in the style of TensorFlow 1, written to a .meta with a checkpoint beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.training import moving_averages

v1 = tf.compat.v1
SIZE, CLASSES = 6, 4


def dense(x: Any, units: int, name: str, dtype: Any) -> Any:
    with v1.variable_scope(name):
        shape = (int(x.shape[-1]), units)
        kernel = v1.get_variable("kernel", shape, dtype, v1.glorot_uniform_initializer(seed=1, dtype=dtype))
        bias = v1.get_variable("bias", units, dtype, v1.zeros_initializer(dtype))
        return v1.nn.bias_add(v1.matmul(x, kernel), bias)


def batch_norm(x: Any, training: Any, dtype: Any, *, form: str, name: str = "bn") -> Any:
    """``form``: "plain" computes by itself, "fused" by the kernel, "debiased" with a zero-debiased mean,
    "in_place" has its updates run with the layer, and in no collection; "in_branch" has them in a branch of their own.

    ``training`` is a Python bool or a bool tensor.
    """
    size = int(x.shape[-1])
    with v1.variable_scope(name):
        gamma = v1.get_variable("gamma", size, dtype, v1.ones_initializer(dtype))
        beta = v1.get_variable("beta", size, dtype, v1.zeros_initializer(dtype))
        mean = v1.get_variable("moving_mean", size, dtype, v1.zeros_initializer(dtype), trainable=False)
        variance = v1.get_variable("moving_variance", size, dtype, v1.ones_initializer(dtype), trainable=False)

        def use_batch() -> tuple[Any, Any, Any]:
            if form == "fused":
                maps = x[:, None, None, :]
                y, now_mean, now_variance = v1.nn.fused_batch_norm(maps, gamma, beta, epsilon=1e-3)
                return y[:, 0, 0, :], now_mean, now_variance
            now_mean, now_variance = v1.nn.moments(x, [0])
            return _normalise(x, now_mean, now_variance, beta, gamma), now_mean, now_variance

        def use_moving() -> tuple[Any, Any, Any]:
            if form == "fused":
                maps = x[:, None, None, :]
                y = v1.nn.fused_batch_norm(maps, gamma, beta, mean, variance, epsilon=1e-3, is_training=False)[0]
                return y[:, 0, 0, :], tf.identity(mean), tf.identity(variance)
            return _normalise(x, mean, variance, beta, gamma), tf.identity(mean), tf.identity(variance)

        if isinstance(training, bool):
            y, now_mean, now_variance = use_batch() if training else use_moving()
        else:
            y, now_mean, now_variance = v1.cond(training, use_batch, use_moving)
        updates: list[Any] = []
        if training is not False:
            debias = form == "debiased"
            for moving, now, zero_debias in ((mean, now_mean, debias), (variance, now_variance, False)):
                update = _average(moving, now, training if form == "in_branch" else None, zero_debias=zero_debias)
                updates.append(update)
                if form != "in_place":
                    v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
        if form == "in_place":
            with tf.control_dependencies(updates):
                y = tf.identity(y)
        return y


def _average(moving: Any, now: Any, training: Any, *, zero_debias: bool) -> Any:
    """The update of a moving average; in a branch, where it depends on ``training``."""

    def update() -> Any:
        return moving_averages.assign_moving_average(moving, now, 0.9, zero_debias=zero_debias)

    return update() if training is None else v1.cond(training, update, lambda: tf.identity(moving))


def _normalise(x: Any, mean: Any, variance: Any, beta: Any, gamma: Any) -> Any:
    return v1.nn.batch_normalization(x, mean, variance, beta, gamma, tf.constant(1e-3, x.dtype))


def write_graph(
    folder: pathlib.Path,
    network: Callable[[Any, Any], Any],
    *,
    dtype: Any = tf.float64,
    optimizer: str = "adam",
    resource: bool = True,
    train: str | None = None,
    functional: bool = False,
    shape: tuple[int, ...] = (SIZE,),
    seed: int = 0,
) -> pathlib.Path:
    """Writes ``model.meta`` and its checkpoint; ``network(x, dtype)`` gives logits [B, CLASSES].

    The train op updates the variables whose names begin with ``train`` (all by default) with a rate of 0.01, and runs the
    update operations. ``functional`` writes branches and loops as TensorFlow 2 does.
    """
    graph = tf.Graph()
    before = v1.control_flow_v2_enabled(), v1.resource_variables_enabled()
    (v1.enable_control_flow_v2 if functional else v1.disable_control_flow_v2)()
    try:
        with graph.as_default():
            v1.set_random_seed(seed)
            v1.get_variable_scope().set_use_resource(resource)
            x = v1.placeholder(dtype, [None, *shape], name="x")
            label = v1.placeholder(tf.int32, [None], name="label")
            logits = tf.identity(network(x, dtype), name="logits")
            each = v1.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=logits, name="each")
            loss = tf.reduce_mean(each, name="loss")
            variables = [v for v in v1.trainable_variables() if train is None or v.name.startswith(train)]
            pairs = _optimizer(optimizer, dtype).compute_gradients(loss, variables)
            updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
            with tf.control_dependencies(updates):
                step = _optimizer(optimizer, dtype).apply_gradients(pairs, name="train")
            v1.add_to_collection(v1.GraphKeys.TRAIN_OP, step)
            saver = v1.train.Saver(v1.global_variables())
            with v1.Session(graph=graph) as session:
                session.run(v1.global_variables_initializer())
                rng = np.random.default_rng(seed)
                for variable in v1.global_variables():  # nothing is zero or one, so that everything counts
                    if variable.dtype.base_dtype == dtype and not _is_slot(variable.name):
                        value = session.run(variable)
                        variable.load(value + 0.1 * rng.random(value.shape), session)
                saver.save(session, str(folder / "model"))
    finally:
        (v1.enable_control_flow_v2 if before[0] else v1.disable_control_flow_v2)()
    return folder / "model.meta"


def _is_slot(name: str) -> bool:
    return any(word in name for word in ("Adam", "Momentum", "_power", "local_step", "biased"))


def _optimizer(name: str, dtype: Any) -> Any:
    def number(value: float) -> Any:
        return np.float64(value) if dtype == tf.float64 else value

    if name == "adam":
        return v1.train.AdamOptimizer(number(0.01), number(0.9), number(0.999), number(1e-8))
    if name == "momentum":
        return v1.train.MomentumOptimizer(number(0.01), number(0.9))
    return v1.train.GradientDescentOptimizer(number(0.01))


def batches(
    count: int, *, size: int = 5, shape: tuple[int, ...] = (SIZE,), dtype: Any = np.float64
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [
        {
            "image": rng.standard_normal((size, *shape)).astype(dtype),
            "label": rng.integers(0, CLASSES, size).astype(np.int32),
            "seeds": rng.integers(0, 2**31 - 1, (size, 2)).astype(np.int32),
        }
        for _ in range(count)
    ]
