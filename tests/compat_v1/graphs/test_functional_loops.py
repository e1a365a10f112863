"""Old loops become While: same values to the bit, same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from old_graphs import New, Old, assert_same, random, variable

v1 = tf.compat.v1


@pytest.mark.parametrize("resource", [True, False])
def test_a_loop_of_products(resource: bool) -> None:
    def build(x: Any) -> Any:
        w = variable("w", 4, 4, resource=resource)
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y @ w)), [0, x])

    new = assert_same(Old(build, {"x": random(3, 4)}), tape=True, compiled=resource)
    assert "StatelessWhile" in new.kinds()


def test_loops_in_loops_share_invariants_and_have_several_exits() -> None:
    def build(x: Any, n: Any) -> Any:
        w = variable("w", 4, 4)
        b = variable("b", 4, resource=False, seed=2)

        def outer(i: Any, y: Any, total: Any) -> Any:
            def inner(j: Any, z: Any) -> Any:
                return j + 1, tf.tanh(z @ w + b * tf.cast(i, tf.float64)) + x

            count, z = tf.while_loop(lambda j, z: j < i + 1, inner, [0, y], parallel_iterations=1)
            return i + 1, z, total + tf.reduce_sum(z) * tf.cast(count, tf.float64)

        last, y, total = tf.while_loop(lambda i, *rest: i < n, outer, [0, x, tf.constant(0.0, tf.float64)])
        return last, y * total, total

    assert_same(Old(build, *({"x": random(3, 4), "n": np.int32(n)} for n in (3, 0))))


def test_a_variable_that_only_the_condition_or_nothing_reads() -> None:
    def build(x: Any) -> Any:
        def body(i: Any, unused: Any, same: Any, y: Any) -> Any:
            return i + 1, unused * 2.0, same, y * same + tf.cast(i, tf.float64)

        return tf.while_loop(lambda i, *rest: i < 4, body, [0, x, x + 1.0, x])[3]

    new = assert_same(Old(build, {"x": random(3)}), tape=True)
    (loop,) = [node for node in new.definition.node if "While" in node.op]
    assert len(loop.attr["T"].list.type) == 5, "the unused variable is left out"


def test_a_growing_variable_and_a_limit_of_iterations() -> None:
    def build(x: Any) -> Any:
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 2]))
        loop = tf.while_loop(
            lambda i, y: tf.reduce_sum(y) < 1e9,
            lambda i, y: (i + 1, tf.concat([y, y[-1:] * 2.0], 0)),
            (0, x),
            shape_invariants=shapes,
            maximum_iterations=3,
        )
        return loop[1]

    assert_same(Old(build, {"x": random(1, 2)}))


def test_what_a_loop_waits_for_is_kept() -> None:
    def build(x: Any) -> Any:
        with tf.control_dependencies([v1.assert_less(x, np.float64(100))]):
            x = tf.identity(x)

        def body(i: Any, y: Any) -> Any:
            check = v1.assert_less(i, 50)
            with tf.control_dependencies([check]):
                return i + 1, tf.sin(y) + x

        return tf.while_loop(lambda i, y: i < 3, body, [0, x])[1]

    new = assert_same(Old(build, {"x": random(3)}), tape=True)
    assert "While" in new.kinds()
    with pytest.raises(tf.errors.InvalidArgumentError, match="assert"):
        new.function()(tf.constant(random(3) + 1000))


def test_a_random_loop_draws_what_it_drew() -> None:
    def build(x: Any) -> Any:
        def body(i: Any, y: Any) -> Any:
            return i + 1, y + tf.random.uniform([3], dtype=tf.float64, seed=5)

        return tf.while_loop(lambda i, y: i < 3, body, [0, x], parallel_iterations=1)[1]

    assert_same(Old(build, {"x": random(3)}))


def test_embeddings_are_looked_up_in_a_loop() -> None:
    for resource in (True, False):

        def build(ids: Any, x: Any, resource: bool = resource) -> Any:
            table = variable("table", 5, 3, resource=resource)

            def body(i: Any, y: Any) -> Any:
                return i + 1, tf.tanh(y + tf.nn.embedding_lookup(table, ids[i]))

            return tf.while_loop(lambda i, y: i < 4, body, [0, x])[1]

        assert_same(Old(build, {"ids": np.int32([[1, 2], [0, 1], [4, 4], [1, 1]]), "x": random(2, 3)}), tape=resource)


def test_map_and_scan_and_fold() -> None:
    def build(x: Any) -> Any:
        w = variable("w", 3, 3)
        mapped = tf.map_fn(lambda row: tf.linalg.matvec(w, row), x)
        scanned = v1.scan(lambda last, row: tf.tanh(last + row), mapped, initializer=x[0])
        folded = v1.foldl(lambda last, row: last * row, scanned)
        return mapped, scanned, folded

    assert_same(Old(build, {"x": random(4, 3)}))


def test_arrays_outside_of_loops() -> None:
    def build(x: Any) -> Any:
        first = tf.TensorArray(tf.float64, 4, clear_after_read=False).unstack(x)
        second = tf.TensorArray(tf.float64, 0, dynamic_size=True, element_shape=[3], infer_shape=True)
        second = second.write(0, first.read(2) * 2.0).write(3, x[0]).write(1, x[1]).write(2, first.read(2))
        third = tf.TensorArray(tf.float64, 2, infer_shape=False).split(x, [1, 3])
        joined = tf.TensorArray(tf.float64, 2, infer_shape=False).write(0, x[:1] ** 2.0).write(1, third.read(1))
        scattered = tf.TensorArray(tf.float64, 4).scatter([3, 1, 0, 2], x)
        larger = tf.TensorArray(tf.float64, 6, element_shape=[3], clear_after_read=False).unstack(x)
        return (
            *(second.stack(), joined.concat(), scattered.gather([1, 3]), second.size(), third.read(0), third.size()),
            *(larger.stack(), larger.gather(tf.range(0, 4)), larger.size()),
        )

    assert_same(Old(build, {"x": random(4, 3)}))


def test_shapes_are_known_after_loops_and_branches_and_in_them() -> None:
    def build(p: Any, x: Any) -> Any:
        def body(i: Any, y: Any, z: Any) -> Any:
            row = array.read(i)
            return i + 1, v1.cond(p, lambda: y + row, lambda: y), tf.concat([z, z[:1]], 0)

        array = tf.TensorArray(tf.float64, 3).unstack(x)
        shapes = (tf.TensorShape([]), tf.TensorShape([4]), tf.TensorShape([None, 4]))
        _, y, z = tf.while_loop(lambda i, *rest: i < 3, body, (0, x[0], x), shape_invariants=shapes)
        return y, z, v1.cond(p, lambda: z[:1], lambda: x), tf.map_fn(lambda row: row * 2.0, x)

    new = New(Old(build, {"p": True, "x": random(3, 4)}))
    function = tf.function(new.outputs, input_signature=new.specs, autograph=False).get_concrete_function()
    assert [each.shape.as_list() for each in function.outputs] == [[4], [None, 4], [None, 4], [3, 4]]


def test_shapes_that_contradict_what_never_runs_are_left_unknown() -> None:
    """The first turn of the loop would not fit, but there is none; the inner loop must not keep its shape."""

    def build(n: Any, x: Any) -> Any:
        def body(i: Any, y: Any) -> Any:
            inner = tf.while_loop(lambda j, z: j < 2, lambda j, z: (j + 1, z * 2.0), [0, y])[1]
            return i + 1, tf.ensure_shape(tf.concat([inner, inner], 0), [8])

        loop = tf.while_loop(
            lambda i, y: i < n, body, (0, x), shape_invariants=(tf.TensorShape([]), tf.TensorShape(None))
        )
        return loop[1]

    assert_same(Old(build, {"n": np.int32(0), "x": random(3)}, {"n": np.int32(0), "x": random(3)}))
