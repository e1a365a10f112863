"""The three freezing methods: they obey the selection, and contradictions are errors."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.training import freezing, layers
from compat_v1.training.freezing import METHODS, Freezing, FreezingError
from engine.selection.filters import FilterError

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[3]
L2 = tf.keras.regularizers.l2(0.1)


def small(prefix: str = "") -> Any:
    """Loss of two dense layers and a BatchNorm on four examples."""
    x = tf.constant(np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32))
    y = layers.conv(x, 3, 2, name=f"{prefix}conv")
    y = layers.batch_norm(y, training=True, name=f"{prefix}bn")
    return tf.reduce_mean(tf.square(layers.dense(tf.reduce_mean(y, [1, 2]), 2, name=f"{prefix}head")))


def moved_by(operation: Any) -> set[str]:
    """Names of the variables that three runs of the operation change."""
    variables = v1.global_variables()
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        before = session.run(variables)
        for _ in range(3):
            session.run(operation)
        after = session.run(variables)
    return {v.op.name for v, a, b in zip(variables, before, after, strict=True) if not np.array_equal(a, b)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", [v1.train.GradientDescentOptimizer, v1.train.AdamOptimizer])
def test_what_the_filter_leaves_out_does_not_move_and_has_no_slots(method: str, optimizer: Callable[..., Any]) -> None:
    selection = freezing.resolve_selection(small, "head/.* conv/kernel")
    with tf.Graph().as_default():
        freeze = Freezing(method, selection)
        with freeze.scope():
            loss = small()
        chosen = optimizer(0.1)
        gradients = freeze.compute_gradients(chosen, loss)
        moved = moved_by(chosen.apply_gradients(gradients.applied))
        trained = {"head/kernel", "head/bias", "conv/kernel"}
        names = {variable.op.name for variable in v1.global_variables()}
    assert moved & {"conv/kernel", "conv/bias", "bn/gamma", "bn/beta", "head/kernel", "head/bias"} == trained
    slots = {name.rsplit("/", 1)[0] for name in names if "/Adam" in name}
    assert slots == (trained if optimizer is v1.train.AdamOptimizer else set())
    assert set(gradients.listed) == (
        trained | {"conv/bias", "bn/gamma", "bn/beta"} if method == "stop_gradient" else trained
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_regularizer_reaches_only_what_trains(method: str) -> None:
    def build() -> Any:
        with v1.variable_scope(v1.get_variable_scope(), regularizer=L2):
            return small()

    selection = freezing.resolve_selection(build, "head/.*")
    with tf.Graph().as_default():
        freeze = Freezing(method, selection)
        with freeze.scope():
            loss = build()
        penalties = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        optimizer = v1.train.GradientDescentOptimizer(0.1)
        gradients = freeze.compute_gradients(optimizer, loss + tf.add_n(penalties))
        assert len(penalties) == 2  # head/kernel and head/bias
        assert moved_by(optimizer.apply_gradients(gradients.applied)) == {"head/kernel", "head/bias"}


def test_a_regularizer_that_goes_round_stop_gradient_is_named() -> None:
    selection = freezing.resolve_selection(small, "head/.*")
    with tf.Graph().as_default():
        freeze = Freezing("stop_gradient", selection)
        with freeze.scope():
            loss = small()
        every = tf.add_n([tf.nn.l2_loss(variable) for variable in v1.trainable_variables()])
        with pytest.raises(FreezingError, match=r"4 frozen variable.*conv/kernel.*regulariser"):
            freeze.compute_gradients(v1.train.GradientDescentOptimizer(0.1), loss + every)


@pytest.mark.parametrize("method", METHODS)
def test_a_renamed_scope_does_not_silently_unfreeze(method: str) -> None:
    with pytest.raises(FilterError, match=r"item 1 `haed/.*` matches nothing.*head/"):
        freezing.resolve_selection(small, "haed/.*")
    selection = freezing.resolve_selection(small, "head/.*")
    with tf.Graph().as_default():
        freeze = Freezing(method, selection)
        with freeze.scope(), pytest.raises(FreezingError, match=r"'new_conv/kernel'.*renamed.*conv/kernel"):
            small("new_")


def test_contradictions_of_method_and_graph_are_errors() -> None:
    selection = freezing.resolve_selection(small, "head/.*")
    with pytest.raises(
        FreezingError, match="method='stop' is not a valid method; expected trainable, stop_gradient, var_list"
    ):
        Freezing("stop", selection)
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    with tf.Graph().as_default():  # made before, with another flag: reuse keeps the first
        small()
        with (
            v1.variable_scope(v1.get_variable_scope(), reuse=True),
            Freezing("trainable", selection).scope(),
            pytest.raises(FreezingError, match=r"'conv/kernel'.*trainable=True, which reuse keeps"),
        ):
            small()
    with tf.Graph().as_default():  # the selection trains what was made with trainable=False
        with Freezing("trainable", freezing.resolve_selection(small, "conv/.*")).scope():
            loss = small()
        with pytest.raises(FreezingError, match=r"2 variable\(s\) should train.*head/kernel"):
            Freezing("var_list", selection).compute_gradients(optimizer, loss)
    with tf.Graph().as_default():  # built outside the scope
        loss = small()
        with pytest.raises(FreezingError, match=r"outside Freezing\.scope"):
            Freezing("stop_gradient", selection).compute_gradients(optimizer, loss)
        Freezing("var_list", selection).compute_gradients(optimizer, loss)  # this one needs none
    with tf.Graph().as_default(), Freezing("var_list", selection).scope():
        loss = small()
        with pytest.raises(FreezingError, match=r"does not depend on 2 trained.*head/kernel"):
            Freezing("var_list", selection).compute_gradients(optimizer, tf.constant(1.0) * v1.trainable_variables()[0])
    assert loss is not None


def test_layers_with_an_argument_of_their_own_can_ask() -> None:
    selection = freezing.resolve_selection(small, "@all !conv/.*")
    assert [Freezing(method, selection).trainable("conv/kernel") for method in METHODS] == [False, True, True]
    assert freezing.statistics_move(selection, "bn")
    assert not freezing.statistics_move(freezing.resolve_selection(small, "head/.*"), "bn")
    assert not freezing.statistics_move(freezing.resolve_selection(small, "@all !@stats"), "bn")
    with pytest.raises(FreezingError, match=r"scope='norm' is not the scope of a layer with statistics"):
        freezing.statistics_move(selection, "norm")


@pytest.mark.parametrize("method", METHODS)
def test_partitions_reuse_and_towers_that_share_a_scope(method: str) -> None:
    def towers() -> Any:
        partitioner = v1.fixed_size_partitioner(2)
        with v1.variable_scope("tower", partitioner=partitioner):
            one = small()
        with v1.variable_scope("tower", partitioner=partitioner, reuse=True):
            other = small()
        with v1.variable_scope("tower", partitioner=partitioner, reuse=v1.AUTO_REUSE):
            return one + other + small()

    selection = freezing.resolve_selection(towers, "@all !tower/conv/kernel")  # of all partitions
    with tf.Graph().as_default():
        freeze = Freezing(method, selection)
        with freeze.scope():
            loss = towers()
        weights = [v.op.name for v in v1.get_collection(v1.GraphKeys.GLOBAL_VARIABLES, scope="tower/conv")]
        assert weights == [f"tower/conv/{name}/part_{n}" for name in ("kernel", "bias") for n in (0, 1)]
        optimizer = v1.train.MomentumOptimizer(0.1, 0.9)
        gradients = freeze.compute_gradients(optimizer, loss)
        moved = moved_by(optimizer.apply_gradients(gradients.applied))
    assert not [name for name in moved if name.startswith("tower/conv/kernel")]
    assert {"tower/conv/bias/part_0", "tower/conv/bias/part_1", "tower/head/kernel/part_1"} <= moved


def test_half_of_a_partitioned_variable_cannot_be_frozen_by_a_getter() -> None:
    def build() -> Any:
        with v1.variable_scope("", partitioner=v1.fixed_size_partitioner(2)):
            return small()

    selection = freezing.resolve_selection(build, "head/kernel/part_0 conv/.*")
    with (
        tf.Graph().as_default(),
        Freezing("trainable", selection).scope(),
        pytest.raises(FreezingError, match="some of"),
    ):
        build()


_LEGACY = """
import json, sys
import numpy as np, tensorflow as tf
from compat_v1.training import freezing
v1 = tf.compat.v1
if sys.argv[2] == "1":
    v1.disable_control_flow_v2()
def build():
    x = tf.constant(np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32))
    y = v1.layers.conv2d(x, 5, 3, name="conv", kernel_regularizer=tf.keras.regularizers.l2(0.1))
    y = v1.layers.batch_normalization(y, training=sys.argv[1] == "@all !dense/.*", name="bn")
    y = v1.layers.dense(tf.reshape(y, [4, 6, 30]), 7, name="dense")
    y, _ = v1.nn.dynamic_rnn(v1.nn.rnn_cell.LSTMCell(6, name="lstm"), y, dtype=tf.float32, scope="rnn")
    return tf.reduce_mean(tf.square(v1.layers.dense(y[:, -1], 3, name="head")))
found = {}
selection = freezing.resolve_selection(build, sys.argv[1])
for method in freezing.METHODS:
    with tf.Graph().as_default():
        freeze = freezing.Freezing(method, selection)
        with freeze.scope():
            loss = build()
        optimizer = v1.train.AdamOptimizer(0.1)
        train = optimizer.apply_gradients(freeze.compute_gradients(optimizer, loss).applied)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            variables = v1.global_variables()
            before = session.run(variables)
            for _ in range(3):
                session.run(train)
            after = session.run(variables)
        moved = [v.op.name for v, a, b in zip(variables, before, after) if not np.array_equal(a, b)]
        slots = [v.op.name for v in optimizer.variables()]
        found[method] = sorted(set(moved) - set(slots)), sorted(n for n in slots if n.endswith("/Adam"))
print(json.dumps({"moved": found, "trained": [e.path for e in selection.trained]}))
"""


@pytest.mark.parametrize(
    ("train", "control_flow"),
    [
        ("head/.*", 1),
        pytest.param("@all !dense/.*", 2, marks=pytest.mark.slow),
        pytest.param("conv/.* rnn/lstm/bias", 2, marks=pytest.mark.slow),
        pytest.param("bn/gamma rnn/.*", 1, marks=pytest.mark.slow),
    ],
)
def test_layers_of_tf1_without_such_an_argument_are_frozen_too(train: str, control_flow: int) -> None:
    """dense, conv2d, batch_normalization and an LSTMCell in dynamic_rnn, of tf-keras: in a process of its own."""
    pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")
    done = subprocess.run(
        [sys.executable, "-c", _LEGACY, train, str(control_flow)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for method, (moved, slots) in found["moved"].items():
        assert moved == sorted(found["trained"]), method
        assert slots == sorted(f"{name}/Adam" for name in found["trained"]), method
