"""Known graphs with statistics, control flow and gradients in parts (see audit_graphs)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from audit_graphs import (
    ASSIGN,
    UPDATE,
    Known,
    control_flow,
    graph,
    inputs,
    mean_square,
    slots,
    two_layers,
    v1,
    weight,
)


def batch_norm(x: Any, *, trainable: bool = True, training: bool = True) -> Any:
    """As slim does it: statistics through UPDATE_OPS."""
    from tensorflow.python.training.moving_averages import assign_moving_average

    depth = x.shape[-1]
    gamma, beta = (weight(name, [depth], trainable=trainable) for name in ("gamma", "beta"))
    mean, variance = (weight(f"moving_{name}", [depth], trainable=False) for name in ("mean", "variance"))
    if not training:
        return tf.nn.batch_normalization(x, mean, tf.abs(variance), beta, gamma, 1e-3)
    now, spread = tf.nn.moments(x, [0])
    for variable, value in ((mean, now), (variance, spread)):
        update = assign_moving_average(variable, value, 0.9, zero_debias=False)
        v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
    return tf.nn.batch_normalization(x, now, spread, beta, gamma, 1e-3)


def with_batch_norm(*, trainable: bool, training: bool = True, waits: bool = True) -> Any:
    x, y = inputs()
    with v1.variable_scope("layer"):
        hidden = batch_norm(x @ weight("kernel", [3, 4], trainable=trainable), trainable=trainable, training=training)
    loss = mean_square(tf.nn.relu(hidden) @ weight("head", [4, 1]), y)
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS) if waits else []):
        return v1.train.GradientDescentOptimizer(0.1).minimize(loss)


@graph
def batch_norm_that_trains() -> Known:
    train = with_batch_norm(trainable=True)
    statistics = slots("layer/moving_mean", "layer/moving_variance", kind=UPDATE)
    return Known(train, slots("layer/kernel", "layer/gamma", "layer/beta", "head") | statistics)


@graph
def batch_norm_whose_updates_nobody_waits_for() -> Known:
    return Known(
        with_batch_norm(trainable=True, waits=False), slots("layer/kernel", "layer/gamma", "layer/beta", "head")
    )


@graph
def batch_norm_frozen_in_inference_mode() -> Known:
    return Known(with_batch_norm(trainable=False, training=False), slots("head"))


@graph
def batch_norm_without_weights_after_a_kernel_that_trains() -> Known:
    x, y = inputs()
    with v1.variable_scope("layer"):
        value = x @ weight("kernel", [3, 4])
    with v1.variable_scope("norm"):
        hidden = batch_norm(value, trainable=False)
    loss = mean_square(hidden @ weight("head", [4, 1]), y)
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    return Known(train, slots("layer/kernel", "head") | slots("norm/moving_mean", "norm/moving_variance", kind=UPDATE))


def fused_in_a_cond(version: int) -> Known:
    """is_training is fed: statistics are moved through tf.cond, as in old batch_normalization layers."""
    x, y = inputs()
    training = v1.placeholder_with_default(True, [])
    kernel = weight("kernel", [3, 4])
    gamma, mean = weight("bn/gamma", [4]), weight("bn/moving_mean", [4], trainable=False)
    value = x @ kernel
    with control_flow(version):
        now = tf.cond(training, lambda: tf.reduce_mean(value, 0), lambda: tf.convert_to_tensor(mean))
        update = tf.cond(
            training, lambda: tf.identity(v1.assign_sub(mean, 0.1 * (mean - now))), lambda: tf.convert_to_tensor(mean)
        )
    v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
    loss = mean_square(((value - now) * gamma) @ weight("head", [4, 1]), y)
    with tf.control_dependencies([update]):
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    return Known(train, slots("kernel", "bn/gamma", "head") | slots("bn/moving_mean", kind=UPDATE), {"kernel": "yes"})


@graph
def statistics_in_a_cond_of_version_1() -> Known:
    return fused_in_a_cond(1)


@graph
def statistics_in_a_cond_of_version_2() -> Known:
    return fused_in_a_cond(2)


def written_in_a_cond(version: int) -> Known:
    loss, below, _ = two_layers()
    counter = weight("counter", [], trainable=False)
    other = weight("other", [], trainable=False)
    with control_flow(version):
        chosen = tf.cond(
            loss > -1.0,
            lambda: tf.identity(v1.assign_add(counter, 1.0)),
            lambda: tf.identity(v1.assign_add(other, 1.0)),
        )
    with tf.control_dependencies([chosen]):
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss, var_list=[below])
    kinds = slots("below") | slots("counter", "other", kind=ASSIGN)
    return Known(train, kinds, {"below": "yes", "above": "yes", "counter": "none"}, rests=["other"])


@graph
def a_write_in_a_cond_of_version_1() -> Known:
    return written_in_a_cond(1)


@graph
def a_write_in_a_cond_of_version_2() -> Known:
    return written_in_a_cond(2)


def written_in_a_loop(version: int) -> Known:
    """The gradient goes through the loop, and its body counts."""
    x, y = inputs()
    mix, head, count = weight("mix", [3, 3]), weight("head", [3, 1]), weight("count", [], trainable=False)

    def body(number: Any, state: Any) -> Any:
        with tf.control_dependencies([v1.assign_add(count, 1.0)]):
            return number + 1, tf.tanh(state @ mix)

    with control_flow(version):
        _, state = tf.while_loop(lambda number, _: number < 3, body, (tf.constant(0), x))
        loss = mean_square(state @ head, y)
        train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    kinds = slots("mix", "head", "mix/Momentum", "head/Momentum") | slots("count", kind=ASSIGN)
    return Known(train, kinds, {"mix": "yes", "head": "yes", "count": "none"})


@graph
def a_write_in_a_loop_of_version_1() -> Known:
    return written_in_a_loop(1)


@graph
def a_write_in_a_loop_of_version_2() -> Known:
    return written_in_a_loop(2)


def recurrent(version: int) -> Known:
    """A network over time, its steps in TensorArrays."""
    x, y = inputs()
    mix, head = weight("mix", [2, 1]), weight("head", [1, 1])
    with control_flow(version):
        steps = tf.TensorArray(tf.float32, 3).unstack(tf.transpose(x)[:, :, None])
        _, state = tf.while_loop(
            lambda number, _: number < 3,
            lambda number, state: (number + 1, tf.tanh(tf.concat([steps.read(number), state], 1) @ mix)),
            (tf.constant(0), tf.zeros([6, 1])),
        )
        train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(mean_square(state @ head, y))
    return Known(train, slots("mix", "head", "mix/Momentum", "head/Momentum"), {"mix": "yes", "head": "yes"})


@graph
def recurrent_of_version_1() -> Known:
    return recurrent(1)


@graph
def recurrent_of_version_2() -> Known:
    return recurrent(2)


def stopped_in_a_loop(version: int) -> Known:
    x, y = inputs()
    mix, head = weight("mix", [3, 3]), weight("head", [3, 1])
    with control_flow(version):
        _, state = tf.while_loop(
            lambda number, _: number < 2,
            lambda number, state: (number + 1, tf.tanh(state @ tf.stop_gradient(mix))),
            (tf.constant(0), x),
        )
        train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(mean_square(state @ head, y))
    kinds, gradient = slots("head", "head/Momentum"), {"mix": "cut at", "head": "yes"}
    if version == 1:
        return Known(train, kinds, gradient)
    # a While gives zeros, where other graphs give no gradient: so the optimizer takes it, with a slot
    zeros = ("mix", "a zero gradient does not freeze")
    return Known(train, kinds | slots("mix", "mix/Momentum"), gradient, [zeros], rests=["mix", "mix/Momentum"])


@graph
def stopped_in_a_loop_of_version_1() -> Known:
    return stopped_in_a_loop(1)


@graph
def stopped_in_a_loop_of_version_2() -> Known:
    return stopped_in_a_loop(2)


@graph
def a_case_of_branches() -> Known:
    loss, below, _ = two_layers()
    counts = [weight(f"count{n}", [], trainable=False) for n in range(3)]
    chosen = tf.switch_case(tf.constant(1), [lambda c=c: tf.identity(v1.assign_add(c, 1.0)) for c in counts])
    with tf.control_dependencies([chosen]):
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss, var_list=[below])
    return Known(train, slots("below") | slots("count0", "count1", "count2", kind=ASSIGN), rests=["count0", "count2"])


@graph
def a_write_for_a_summary_alone() -> Known:
    loss, below, _ = two_layers()
    seen = weight("seen", [], trainable=False)
    shown = weight("shown", [2])
    summary = v1.summary.scalar("seen", tf.identity(v1.assign_add(seen, 1.0)))
    v1.summary.histogram("shown", shown)
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss, var_list=[below])
    return Known(train, slots("below"), {"shown": "none", "seen": "none"}, others=[(summary, ["seen"])])


@graph
def gradients_accumulated() -> Known:
    loss, *_ = two_layers()
    optimizer = v1.train.MomentumOptimizer(0.1, 0.9)
    pairs = optimizer.compute_gradients(loss)
    sums = [
        v1.get_variable(f"sum/{v.op.name}", v.shape, trainable=False, initializer=v1.zeros_initializer())
        for _, v in pairs
    ]
    add = tf.group(*(v1.assign_add(s, g) for s, (g, _) in zip(sums, pairs, strict=True)), name="add")
    step = optimizer.apply_gradients([(tf.convert_to_tensor(s), v) for s, (_, v) in zip(sums, pairs, strict=True)])
    with tf.control_dependencies([step]):
        train = tf.group(*(v1.assign(s, tf.zeros_like(s)) for s in sums), name="step")
    kinds = slots("below", "above", "below/Momentum", "above/Momentum")
    kinds |= slots("sum/below", "sum/above", kind=ASSIGN)
    return Known(train, kinds, before=add, others=[(add, ["sum/below", "sum/above"])])
