"""Each leak of freezing in TF1, as a graph whose findings are known (see audit_graphs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from audit_flow import with_batch_norm
from audit_graphs import APPLY, ASSIGN, NORM, UPDATE, Known, graph, slots, two_layers, v1, weight


@graph
def leak_var_list_overrides_trainable_false() -> Known:
    loss, below, above = two_layers(frozen=True)
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, var_list=[below, above])
    kinds = slots("below", "above", "below/Momentum", "above/Momentum")
    return Known(train, kinds, {"below": "yes"}, [("below", "trains outside the collection")])


@graph
def leak_a_regulariser_moves_what_is_stopped() -> Known:
    loss, below, above = two_layers(stopped=True)
    loss += 0.01 * (tf.nn.l2_loss(below) + tf.nn.l2_loss(above))
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    kinds = slots("above", "above/Momentum") | slots("below", "below/Momentum", kind=NORM)
    return Known(train, kinds, {"below": "cut at stopped"}, [("below", "only a regulariser moves it")])


@graph
def leak_a_regulariser_under_a_global_norm() -> Known:
    loss, below, above = two_layers(stopped=True)
    loss += 0.01 * (tf.nn.l2_loss(below) + tf.nn.l2_loss(above))
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    clipped, _ = tf.clip_by_global_norm(gradients, 0.1)
    train = optimizer.apply_gradients(zip(clipped, variables, strict=True))
    return Known(
        train,
        slots("above") | slots("below", kind=NORM),
        {"below": "cut at stopped", "above": "yes"},
        [("below", "only a regulariser moves it")],
    )


@graph
def leak_a_regulariser_moves_what_no_loss_reads() -> Known:
    loss, *_ = two_layers()
    unused = weight("unused", [3])
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss + tf.nn.l2_loss(unused))
    return Known(
        train,
        slots("below", "above") | slots("unused", kind=NORM),
        {"unused": "none"},
        [("unused", "only a regulariser moves it")],
    )


@graph
def leak_decay_moves_what_is_stopped() -> Known:
    loss, *_ = two_layers(stopped=True)
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with tf.control_dependencies([step]):
        train = tf.group(*(v1.assign_sub(v, 0.01 * v) for v in v1.trainable_variables()), name="decayed")
    kinds = {"above": [APPLY, ASSIGN], "below": [ASSIGN]}
    return Known(train, kinds, {"below": "cut at stopped"}, [("below", "only decay moves it")])


@graph
def leak_statistics_drift_under_a_frozen_layer() -> Known:
    train = with_batch_norm(trainable=False)
    kinds = slots("head") | slots("layer/moving_mean", "layer/moving_variance", kind=UPDATE)
    rule = "statistics move under a frozen layer"
    return Known(train, kinds, findings=[("layer/moving_mean", rule), ("layer/moving_variance", rule)])


def zero_gradients(optimizer: Any, names: Sequence[str], *, masked: bool = False) -> Known:
    loss, below, above = two_layers()
    pairs = optimizer.compute_gradients(loss, [below, above])
    real = optimizer.apply_gradients(pairs, name="real")

    def zero(gradient: Any, variable: Any) -> Any:
        return gradient * tf.zeros(variable.shape) if masked else tf.zeros_like(gradient)

    zeroed = [(zero(g, v) if v is below else g, v) for g, v in pairs]
    with tf.control_dependencies([gradient for gradient, _ in pairs]):  # else below may change before it is read
        train = optimizer.apply_gradients(zeroed, name="zeroed")
    kinds = slots("below", "above", *(f"{v}/{name}" for v in ("below", "above") for name in names))
    return Known(train, kinds, {"below": "yes"}, [("below", "a zero gradient does not freeze")], before=real)


@graph
def leak_zero_gradients_under_momentum() -> Known:
    return zero_gradients(v1.train.MomentumOptimizer(0.1, 0.9), ["Momentum"])


@graph
def leak_gradients_times_a_zero_mask_under_adam() -> Known:
    known = zero_gradients(v1.train.AdamOptimizer(0.1), ["Adam", "Adam_1"], masked=True)
    known.kinds = {**known.kinds, **slots("beta1_power", "beta2_power", kind=ASSIGN)}
    return known


@graph
def leak_zero_gradients_under_ftrl() -> Known:
    known = zero_gradients(v1.train.FtrlOptimizer(0.1), ["Ftrl", "Ftrl_1"])
    known.before, known.rests = None, ["below/Ftrl", "below/Ftrl_1"]
    return known


@graph
def leak_a_saver_over_trainable_variables() -> Known:
    loss, *_ = two_layers(frozen=True)
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    v1.add_to_collection(v1.GraphKeys.SAVERS, v1.train.Saver(v1.trainable_variables()))
    return Known(train, slots("above"), {"below": "yes"}, [("below", "would be lost")])


@graph
def a_saver_over_all_variables() -> Known:
    loss, *_ = two_layers(frozen=True)
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    v1.add_to_collection(v1.GraphKeys.SAVERS, v1.train.Saver(sharded=True))
    return Known(train, slots("above", "above/Momentum"))
