"""Old conditions become If: same values to the bit, same gradients, on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from old_graphs import Old, assert_same, cond, random, variable

v1 = tf.compat.v1
SIDES = (True, False)


@pytest.mark.parametrize("resource", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_switch_between_training_and_inference(resource: bool) -> None:
    def build(is_training: Any, x: Any) -> Any:
        gamma = variable("gamma", 3, resource=resource)
        mean = variable("mean", 3, resource=resource, seed=2)

        def batch() -> Any:
            return tf.reduce_mean(x, 0), tf.math.reduce_variance(x, 0)

        mu, var = cond(is_training, batch, lambda: (tf.identity(mean), tf.square(mean) + 1.0))
        y = gamma * (x - mu) / tf.sqrt(var + 1e-3)
        dropped = cond(is_training, lambda: y * 2.0, lambda: y)
        return dropped, mu

    new = assert_same(Old(build, *({"is_training": side, "x": random(5, 3)} for side in SIDES)), tape=True)
    assert sum(node.op == "StatelessIf" for node in new.definition.node) == 2, "one If for both moments"


def test_conditions_in_conditions() -> None:
    def build(p: Any, q: Any, x: Any) -> Any:
        w = variable("w", 3)

        def yes() -> Any:
            y = x * w
            return cond(q, lambda: tf.sin(y) * w, lambda: cond(p, lambda: y + x, lambda: y)) + x

        def no() -> Any:
            return cond(q, lambda: x, lambda: tf.cos(x) * w)

        return cond(p, yes, no), cond(p, lambda: 1.0, lambda: 2.0)

    assert_same(Old(build, *({"p": p, "q": q, "x": random(3)} for p in SIDES for q in SIDES)))


def test_conditions_in_loops_and_loops_in_conditions() -> None:
    def build(p: Any, x: Any) -> Any:
        w = variable("w", 3, 3)
        v = variable("v", 3, resource=False)

        def grow(y: Any) -> Any:
            def body(i: Any, z: Any) -> Any:
                even = tf.equal(i % 2, 0)
                z = cond(even, lambda: tf.tanh(z @ w), lambda: cond(p, lambda: z * v, lambda: z + x))
                return i + 1, z

            return tf.while_loop(lambda i, z: i < 5, body, [0, y])[1]

        return cond(p, lambda: grow(x) + v, lambda: grow(x * 2.0)), grow(x)

    assert_same(Old(build, *({"p": side, "x": random(2, 3)} for side in SIDES)))


def test_asserts_in_a_branch_that_nothing_reads() -> None:
    def build(p: Any, x: Any) -> Any:
        check = cond(p, lambda: v1.assert_less(x, np.float64(50)), lambda: tf.no_op())
        with tf.control_dependencies([check]):
            return x * 2.0

    new = assert_same(Old(build, *({"p": side, "x": random(3)} for side in SIDES)))
    assert "If" in new.kinds()
    function = new.function()
    function(tf.constant(False), tf.constant(random(3) + 1000))
    with pytest.raises(tf.errors.InvalidArgumentError, match="assert"):
        function(tf.constant(True), tf.constant(random(3) + 1000))


def test_the_merge_tells_which_side_was_taken() -> None:
    def build(p: Any, x: Any) -> Any:
        no, yes = tf.raw_ops.Switch(data=x, pred=p)
        merged, index = tf.raw_ops.Merge(inputs=[tf.sin(no), tf.cos(yes)])
        return merged * tf.cast(index + 1, tf.float64), index

    assert_same(Old(build, *({"p": side, "x": random(3)} for side in SIDES)), tape=True)


def test_conditions_without_contexts_in_turn_and_across() -> None:
    """As optimized graphs have them: the condition itself in every Switch."""

    def choose(condition: Any, no: Any, yes: Any) -> Any:
        first, _ = tf.raw_ops.Switch(data=no, pred=condition)
        _, second = tf.raw_ops.Switch(data=yes, pred=condition)
        return tf.raw_ops.Merge(inputs=[tf.sin(first), second * 2.0])[0]

    def build(p: Any, q: Any, x: Any) -> Any:
        a = choose(p, x, x + 1.0)
        b = choose(q, x, a)  # q waits for p
        c = choose(q, x * 3.0, x)
        d = choose(p, c, x)  # p waits for q
        return a, b, c, d, choose(p, d, b)

    assert_same(Old(build, *({"p": p, "q": q, "x": random(3)} for p in SIDES for q in SIDES)))


def test_an_array_that_is_written_on_one_side() -> None:
    def build(p: Any, x: Any) -> Any:
        array = tf.TensorArray(tf.float64, 2, element_shape=[3]).write(0, x)
        array = cond(p, lambda: array.write(1, x * 2.0), lambda: array.write(1, x + 1.0))
        return array.stack()

    assert_same(Old(build, *({"p": side, "x": random(3)} for side in SIDES)), tape=True)


def test_a_random_branch_draws_what_it_drew() -> None:
    def build(p: Any, x: Any) -> Any:
        return cond(p, lambda: x * tf.random.uniform([3], dtype=tf.float64, seed=3), lambda: x)

    assert_same(Old(build, *({"p": side, "x": random(3)} for side in SIDES)))


def test_an_embedding_in_a_branch() -> None:
    def build(p: Any, ids: Any) -> Any:
        table = variable("table", 5, 3)
        return cond(p, lambda: tf.nn.embedding_lookup(table, ids), lambda: tf.zeros([2, 3], tf.float64))

    assert_same(Old(build, *({"p": side, "ids": np.int32([3, 3])} for side in SIDES)), tape=True)


def test_the_results_of_one_condition_share_what_they_drew() -> None:
    """Also if one of them comes from constants alone, which are tied to the condition in another way."""

    def build(p: Any, x: Any) -> Any:
        def yes() -> Any:
            drawn = tf.random.uniform([3], dtype=tf.float64, seed=3)
            return drawn, drawn * x, tf.constant(1.0), x

        return cond(p, yes, lambda: (x, x, tf.constant(2.0), x * 2.0))

    new = assert_same(Old(build, *({"p": side, "x": random(3)} for side in SIDES)))
    assert sum(node.op in ("If", "StatelessIf") for node in new.definition.node) == 1
