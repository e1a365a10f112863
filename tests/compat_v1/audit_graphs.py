"""Training graphs in TF1 style whose audit is known: what each writes was worked out by hand, and is run by the test.

Each builder makes its graph in the default one and returns what is known of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
rng = np.random.default_rng(0)
X = rng.standard_normal((6, 3)).astype(np.float32)
Y = rng.standard_normal((6, 1)).astype(np.float32)

APPLY, NORM, UPDATE, EMA, ASSIGN = "optimizer apply", "regulariser path", "UPDATE_OPS", "EMA", "assign"


@dataclass
class Known:
    """What is known of a graph.

    Attributes:
        train: the train op.
        kinds: variable -> kinds of its writes, for every variable that is written.
        gradient: variable -> its gradient, where that is told.
        findings: (path, rule) of all findings.
        rests: written, but without effect on its bytes in this run.
        before: an op run a few times before, and the bytes are taken after that.
        others: further (train op, names that it writes).
        notes: beginnings of notes.
    """

    train: Any
    kinds: Mapping[str, Sequence[str]]
    gradient: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[tuple[str, str]] = ()
    rests: Sequence[str] = ()
    before: Any = None
    others: Sequence[tuple[Any, Sequence[str]]] = ()
    initialise: Sequence[Any] = ()


# TensorFlow itself takes no reference variables into functions, If, While and Case.
NOT_BY_REFERENCE = ("_of_version_2", "a_case_of_branches", "a_dynamic_loss_scale", "a_dataset_that_writes")
BUILDERS: dict[str, Callable[[], Known]] = {}


def graph(builder: Callable[[], Known]) -> Callable[[], Known]:
    BUILDERS[builder.__name__] = builder
    return builder


@contextlib.contextmanager
def control_flow(version: int) -> Iterator[None]:
    """Builds tf.cond and tf.while_loop as Switch and Merge (1) or as If and While (2)."""
    if version == 1:
        v1.disable_control_flow_v2()
    try:
        yield
    finally:
        v1.enable_control_flow_v2()


def weight(name: str, shape: Sequence[int], **options: Any) -> Any:
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(seed=len(name)), **options)


def inputs() -> tuple[Any, Any]:
    return v1.placeholder(tf.float32, [None, 3], name="x"), v1.placeholder(tf.float32, [None, 1], name="y")


def mean_square(predicted: Any, wanted: Any) -> Any:
    return tf.reduce_mean(tf.square(predicted - wanted))


def two_layers(*, frozen: bool = False, stopped: bool = False) -> tuple[Any, Any, Any]:
    """(loss, kernels below, kernel above): y = tanh(x @ below) @ above."""
    x, y = inputs()
    below, above = weight("below", [3, 4], trainable=not frozen), weight("above", [4, 1])
    value = tf.stop_gradient(below, name="stopped") if stopped else tf.convert_to_tensor(below)
    return mean_square(tf.tanh(x @ value) @ above, y), below, above


def slots(*names: str, kind: str = APPLY) -> dict[str, list[str]]:
    return {name: [kind] for name in names}


# ---- ordinary graphs: no findings


@graph
def gradient_descent() -> Known:
    loss, *_ = two_layers()
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss, name="train")
    return Known(train, slots("below", "above"), {"below": "yes", "above": "yes"})


@graph
def adam_with_a_step_counter_and_a_decaying_rate() -> Known:
    loss, *_ = two_layers()
    step = v1.train.get_or_create_global_step()
    rate = v1.train.exponential_decay(0.1, step, 2, 0.9)
    train = v1.train.AdamOptimizer(rate).minimize(loss, global_step=step)
    kinds = slots("below", "above", "below/Adam", "below/Adam_1", "above/Adam", "above/Adam_1")
    kinds |= slots("global_step", "beta1_power", "beta2_power", kind=ASSIGN)
    return Known(train, kinds, {"below": "yes", "global_step": "none", "beta1_power": "none"})


@graph
def momentum_with_a_regulariser_of_what_trains() -> Known:
    loss, below, above = two_layers()
    loss += 0.01 * (tf.nn.l2_loss(below) + tf.nn.l2_loss(above))
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    return Known(train, slots("below", "above", "below/Momentum", "above/Momentum"), {"below": "yes", "above": "yes"})


@graph
def clipped_by_the_global_norm_with_a_regulariser_collected() -> Known:
    with v1.variable_scope("", regularizer=lambda v: 0.01 * tf.nn.l2_loss(v)):
        loss, *_ = two_layers()
    loss = tf.add_n([loss, *v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)])
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    clipped, _ = tf.clip_by_global_norm(gradients, 0.1)
    train = optimizer.apply_gradients(zip(clipped, variables, strict=True))
    return Known(train, slots("below", "above"), {"below": "yes", "above": "yes"})


@graph
def not_trainable() -> Known:
    loss, *_ = two_layers(frozen=True)
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    return Known(train, slots("above", "above/Momentum"), {"below": "yes", "above": "yes"})


@graph
def stopped_gradient() -> Known:
    loss, *_ = two_layers(stopped=True)
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    return Known(train, slots("above", "above/Momentum"), {"below": "cut at stopped", "above": "yes"})


@graph
def a_list_of_variables() -> Known:
    loss, _, above = two_layers()
    train = v1.train.AdagradOptimizer(0.1).minimize(loss, var_list=[above])
    return Known(train, slots("above", "above/Adagrad"), {"below": "yes", "above": "yes"})


@graph
def a_getter_that_stops_gradients() -> Known:
    def stopping(getter: Any, name: str, *rest: Any, **options: Any) -> Any:
        value = getter(name, *rest, **options)
        return tf.stop_gradient(value, name="cut") if name.startswith("body/") else value

    x, y = inputs()
    with v1.variable_scope("", custom_getter=stopping):
        with v1.variable_scope("body"):
            hidden = tf.tanh(x @ weight("kernel", [3, 4]) + weight("bias", [4]))
        with v1.variable_scope("head"):
            loss = mean_square(hidden @ weight("kernel", [4, 1]), y)
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    gradient = {"body/kernel": "cut at cut", "body/bias": "cut at cut_1", "head/kernel": "yes"}
    return Known(train, slots("head/kernel"), gradient)


@graph
def features_stopped_on_the_way() -> Known:
    x, y = inputs()
    hidden = tf.tanh(tf.tanh(x @ weight("low", [3, 4])) @ weight("mid", [4, 4]))
    loss = mean_square(tf.stop_gradient(hidden, name="line") @ weight("head", [4, 1]), y)
    train = v1.train.AdamOptimizer(0.1).minimize(loss)
    kinds = slots("head", "head/Adam", "head/Adam_1") | slots("beta1_power", "beta2_power", kind=ASSIGN)
    return Known(train, kinds, {"low": "cut at line", "mid": "cut at line", "head": "yes"})


@graph
def a_way_round_the_stopped_one() -> Known:
    x, y = inputs()
    kernel = weight("kernel", [3, 1])
    value = tf.convert_to_tensor(kernel)
    loss = mean_square(x @ value + x @ tf.stop_gradient(value), y)
    return Known(v1.train.GradientDescentOptimizer(0.1).minimize(loss), slots("kernel"), {"kernel": "yes"})


@graph
def cut_by_rounding() -> Known:
    x, y = inputs()
    kernel, head = weight("kernel", [3, 2]), weight("head", [2, 1])
    loss = mean_square(tf.round(x @ kernel, name="rounded") @ head, y)
    return Known(
        v1.train.GradientDescentOptimizer(0.1).minimize(loss),
        slots("head"),
        {"kernel": "cut at rounded", "head": "yes"},
    )


@graph
def two_towers_that_share_a_scope() -> Known:
    x, y = inputs()
    towers = []
    for part in (x[:3], x[3:]):
        with v1.variable_scope("tower", reuse=v1.AUTO_REUSE):
            towers.append(part @ weight("kernel", [3, 1]) + weight("bias", [1]))
    loss = mean_square(tf.concat(towers, 0), y)
    train = v1.train.RMSPropOptimizer(0.1).minimize(loss)
    kinds = slots(*(f"tower/{name}{slot}" for name in ("kernel", "bias") for slot in ("", "/RMSProp", "/RMSProp_1")))
    return Known(train, kinds, {"tower/kernel": "yes", "tower/bias": "yes"})


@graph
def partitioned() -> Known:
    x, y = inputs()
    with v1.variable_scope("split", partitioner=v1.fixed_size_partitioner(3)):
        kernel = weight("kernel", [3, 4])
    loss = mean_square(tf.tanh(x @ tf.convert_to_tensor(kernel)) @ weight("head", [4, 1], trainable=False), y)
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    parts = [f"split/kernel/part_{n}" for n in range(3)]
    return Known(
        train,
        slots(*parts, *(f"{part}/Momentum" for part in parts)),
        dict.fromkeys(parts, "yes") | {"head": "yes"},
    )


@graph
def two_optimizers_and_their_group() -> Known:
    loss, below, above = two_layers()
    slow = v1.train.GradientDescentOptimizer(0.01).minimize(loss, var_list=[below], name="slow")
    fast = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, var_list=[above], name="fast")
    return Known(
        tf.group(slow, fast, name="both"),
        slots("below", "above", "above/Momentum"),
        others=[(slow, ["below"]), (fast, ["above", "above/Momentum"])],
    )


@graph
def adversaries() -> Known:
    """Two losses, each with variables of its own; one train op is fetched."""
    x, y = inputs()
    with v1.variable_scope("generator"):
        made = x @ weight("kernel", [3, 1])

    def judge(value: Any) -> Any:
        with v1.variable_scope("critic", reuse=v1.AUTO_REUSE):
            return tf.nn.relu(value @ weight("kernel", [1, 4])) @ weight("out", [4, 1])

    real, fake = judge(y), judge(made)
    critic = v1.train.GradientDescentOptimizer(0.1).minimize(
        tf.reduce_mean(fake) - tf.reduce_mean(real), var_list=v1.trainable_variables("critic"), name="critic_step"
    )
    generator = v1.train.AdamOptimizer(0.1).minimize(
        -tf.reduce_mean(fake), var_list=v1.trainable_variables("generator"), name="generator_step"
    )
    mine = ["generator/kernel", "generator/kernel/Adam", "generator/kernel/Adam_1", "beta1_power", "beta2_power"]
    return Known(critic, slots("critic/kernel", "critic/out"), others=[(generator, mine)])


@graph
def averaged_by_control_dependencies() -> Known:
    loss, below, above = two_layers()
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    average = v1.train.ExponentialMovingAverage(0.9)
    with tf.control_dependencies([step]):
        train = average.apply([below, above])
    shadows = slots("below/ExponentialMovingAverage", "above/ExponentialMovingAverage", kind=EMA)
    return Known(train, slots("below", "above") | shadows, others=[(step, ["below", "above"])])


@graph
def averaged_under_another_name_with_the_loss() -> Known:
    loss, below, _ = two_layers()
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with tf.control_dependencies([step]):
        train = v1.train.ExponentialMovingAverage(0.9, name="mean").apply([below, loss])
    kinds = slots("below", "above") | slots("below/mean", kind=EMA)
    extra = [v.op.name for v in v1.global_variables() if "Mean" in v.op.name or "mean" in v.op.name]
    return Known(train, kinds | slots(*extra, kind=EMA))


def looked_up(optimizer: Any, names: Sequence[str], *, kind: str = APPLY) -> Known:
    _, y = inputs()
    table = weight("table", [10, 2])
    rows = tf.nn.embedding_lookup(table, tf.constant([0, 1, 2, 2, 4, 9]))
    train = optimizer.minimize(mean_square(rows @ weight("head", [2, 1], trainable=False), y))
    return Known(train, slots("table") | slots(*(f"table/{name}" for name in names), kind=kind), {"table": "yes"})


@graph
def an_embedding_under_gradient_descent() -> Known:
    return looked_up(v1.train.GradientDescentOptimizer(0.1), [])


@graph
def an_embedding_under_adagrad() -> Known:
    return looked_up(v1.train.AdagradOptimizer(0.1), ["Adagrad"])


@graph
def an_embedding_under_adam() -> Known:
    known = looked_up(v1.train.AdamOptimizer(0.1), ["Adam", "Adam_1"], kind=ASSIGN)
    known.kinds = {**known.kinds, **slots("beta1_power", "beta2_power", kind=ASSIGN)}
    return known


@graph
def a_dynamic_loss_scale() -> Known:
    loss, *_ = two_layers()
    scale = v1.mixed_precision.DynamicLossScale(initial_loss_scale=8.0, increment_period=2)
    optimizer = v1.mixed_precision.MixedPrecisionLossScaleOptimizer(v1.train.MomentumOptimizer(0.1, 0.9), scale)
    train = optimizer.minimize(loss)
    own = [v.op.name for v in v1.global_variables() if "scale" in v.op.name or "good" in v.op.name]
    kinds = slots("below", "above", "below/Momentum", "above/Momentum") | slots(*own, kind=ASSIGN)
    return Known(train, kinds, {"below": "yes"})


@graph
def functions_within_the_graph() -> Known:
    x, y = inputs()
    with v1.variable_scope("", use_resource=True):
        kernel, calls, deep = (
            weight("kernel", [3, 1]),
            weight("calls", [], trainable=False),
            weight("deep", [], trainable=False),
        )
        still = weight("still", [], trainable=False)

    @tf.function(autograph=False)
    def inner() -> Any:
        deep.assign_add(1.0)
        return still * 1.0

    @tf.function(autograph=False)
    def outer(value: Any) -> Any:
        calls.assign_add(1.0)
        return value @ kernel + inner()

    train = v1.train.GradientDescentOptimizer(0.1).minimize(mean_square(outer(x), y))
    return Known(
        train, slots("kernel") | slots("calls", "deep", kind=ASSIGN), {"kernel": "yes", "still": "yes", "calls": "none"}
    )


@graph
def stopped_within_a_function() -> Known:
    x, y = inputs()
    with v1.variable_scope("", use_resource=True):
        kernel, head = weight("kernel", [3, 2]), weight("head", [2, 1])

    @tf.function(autograph=False)
    def body(value: Any) -> Any:
        return tf.stop_gradient(value @ kernel)

    train = v1.train.GradientDescentOptimizer(0.1).minimize(mean_square(body(x) @ head, y))
    return Known(train, slots("head"), {"kernel": "cut at", "head": "yes"})


@graph
def an_optimizer_without_a_kernel() -> Known:
    """As BERT's AdamWeightDecayOptimizer: assignments alone."""
    loss, below, above = two_layers()
    updates = []
    for gradient, variable in zip(tf.gradients(loss, [below, above]), [below, above], strict=True):
        m = v1.get_variable(
            f"{variable.op.name}/adam_m", variable.shape, trainable=False, initializer=v1.zeros_initializer()
        )
        new = 0.9 * m + 0.1 * gradient
        updates += [v1.assign(m, new), v1.assign(variable, variable - 0.1 * (new + 0.01 * variable))]
    return Known(
        tf.group(*updates, name="train"),
        slots("below", "above") | slots("below/adam_m", "above/adam_m", kind=ASSIGN),
        {"below": "yes"},
    )


@graph
def gradients_made_by_hand() -> Known:
    x, y = inputs()
    kernel = weight("kernel", [3, 1])
    weight("still", [2])
    gradient = tf.matmul(x, x @ kernel - y, transpose_a=True)
    train = v1.train.GradientDescentOptimizer(0.01).apply_gradients([(gradient, kernel)])
    return Known(train, slots("kernel"), {"kernel": "yes", "still": "none"})


@graph
def a_target_network_that_follows() -> Known:
    """Reinforcement learning's soft update: assigned from another variable, stopped, and in the collection."""
    x, y = inputs()
    online, target = weight("online", [3, 1]), weight("target", [3, 1])
    loss = mean_square(x @ online, y + 0.5 * tf.stop_gradient(x @ target, name="fixed"))
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss, var_list=[online])
    with tf.control_dependencies([step]):
        train = v1.assign(target, 0.9 * target + 0.1 * online).op
    return Known(train, slots("online") | slots("target", kind=ASSIGN), {"target": "cut at fixed"})


@graph
def a_gradient_of_the_user() -> Known:
    @tf.custom_gradient
    def clipped(value: Any) -> Any:
        return tf.identity(value), lambda gradient: tf.clip_by_value(gradient, -1.0, 1.0)

    x, y = inputs()
    loss = mean_square(clipped(tf.tanh(x @ weight("below", [3, 4]))) @ weight("above", [4, 1]), y)
    return Known(v1.train.GradientDescentOptimizer(0.1).minimize(loss), slots("below", "above"), {"below": "yes"})


@graph
def dropout_under_a_named_scope() -> Known:
    with tf.name_scope("tower_0"):
        x, y = inputs()
        hidden = tf.nn.dropout(x @ weight("below", [3, 4]), rate=0.2, seed=1)
        loss = mean_square(hidden @ weight("above", [4, 1]), y)
    with tf.name_scope("train"):
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    return Known(train, slots("below", "above"), {"below": "yes", "above": "yes"})


@graph
def a_weighted_sum_of_losses_scaled_by_a_placeholder() -> Known:
    loss, below, above = two_layers()
    v1.losses.add_loss(loss)
    decay = v1.placeholder_with_default(0.01, [])
    total = 2.0 * tf.add_n([loss, 0.5 * tf.reduce_mean(tf.square(above))]) + decay * tf.nn.l2_loss(below)
    return Known(v1.train.GradientDescentOptimizer(0.1).minimize(total), slots("below", "above"), {"below": "yes"})


@graph
def a_bias_that_is_all_of_the_output() -> Known:
    x, y = inputs()
    loss = tf.reduce_mean((x @ weight("kernel", [3, 1]) + weight("bias", [1])) - y)
    return Known(
        v1.train.GradientDescentOptimizer(0.1).minimize(loss), slots("kernel", "bias"), {"kernel": "yes", "bias": "yes"}
    )


@graph
def examples_that_are_constants() -> Known:
    kernel = weight("kernel", [3, 1])
    loss = mean_square(tf.constant(X) @ kernel, tf.constant(Y)) + 0.1 * tf.nn.l2_loss(kernel)
    return Known(
        v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss), slots("kernel", "kernel/Momentum"), {"kernel": "yes"}
    )


@graph
def no_examples_at_all() -> Known:
    kernel = weight("kernel", [3])
    train = v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(kernel)))
    return Known(train, slots("kernel"), {"kernel": "yes"})


@graph
def a_dataset_that_writes() -> Known:
    with v1.variable_scope("", use_resource=True):
        kernel, read = weight("kernel", [3, 1]), weight("read", [], trainable=False)

    def count(x: Any, y: Any) -> Any:
        with tf.control_dependencies([read.assign_add(1.0)]):
            return tf.identity(x), y

    data = tf.data.Dataset.from_tensors((X, Y)).repeat().map(count)
    iterator = v1.data.make_initializable_iterator(data)
    x, y = iterator.get_next()
    train = v1.train.GradientDescentOptimizer(0.1).minimize(mean_square(x @ kernel, y))
    return Known(
        train, slots("kernel") | slots("read", kind=ASSIGN), {"kernel": "yes"}, initialise=[iterator.initializer]
    )
