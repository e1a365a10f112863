"""Dataflow on small graphs whose answers are counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine.frostline.watch import find_frontier
from engine.graphs import dataflow, op_kinds
from engine.memory import buffers
from engine.memory.buffers import Buffers


def traced(function: Callable[..., Any], *shapes: list[int | None]) -> Any:
    """The graph of a function, and its inputs and results."""
    specs = [tf.TensorSpec(shape, tf.float32, name=f"in{n}") for n, shape in enumerate(shapes)]
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    return concrete.graph, concrete.graph.inputs[: len(shapes)], concrete.graph.outputs


def names(ops: Any) -> set[str]:
    return {op.name for op in ops}


# --- what depends on what ---


def by_data_and_control() -> Any:
    with tf.Graph().as_default() as made:
        a, b = tf.constant(1.0, name="a"), tf.constant(2.0, name="b")
        c = tf.add(a, 1.0, name="c")
        with tf.control_dependencies([c]):
            d = tf.identity(b, name="d")
        tf.identity(d, name="e")
        tf.identity(b, name="beside")
    return made


def test_ancestors_are_what_a_tensor_needs_by_data_or_control() -> None:
    made = by_data_and_control()
    assert names(dataflow.ancestors([made.get_tensor_by_name("e:0")])) == {"a", "b", "c", "c/y", "d", "e"}
    assert names(dataflow.ancestors([made.get_tensor_by_name("beside:0")])) == {"b", "beside"}
    assert dataflow.ancestors([]) == set()


def test_dependents_are_what_needs_a_tensor_by_data_or_control() -> None:
    made = by_data_and_control()
    assert names(dataflow.dependents(made, [made.get_tensor_by_name("a:0")])) == {"c", "d", "e"}
    assert names(dataflow.dependents(made, [made.get_tensor_by_name("b:0")])) == {"d", "e", "beside"}
    assert dataflow.dependents(made, [made.get_tensor_by_name("e:0")]) == set()


def test_random_is_what_draws_from_a_state_of_its_own() -> None:
    def draws(x: Any) -> Any:
        stateless = tf.random.stateless_uniform([2], [1, 2]) + tf.random.experimental.stateless_shuffle(x, [1, 2])
        return stateless + tf.random.uniform([2]) + tf.random.normal([2]) + tf.random.shuffle(x)

    made, _, _ = traced(draws, [2])
    found = {op.type for op in made.get_operations() if op_kinds.is_random(op.type)}
    assert found == {"RandomUniform", "RandomStandardNormal", "RandomShuffle"}


def test_a_copy_is_fed_where_asked_reads_outside_constants_and_leaves_the_rest() -> None:
    outside = tf.constant([10.0, 20.0])
    scale = tf.Variable(3.0)

    def function(x: Any, y: Any) -> Any:
        return tf.square(x) * scale + outside, tf.exp(y)

    concrete = tf.function(function, autograph=False).get_concrete_function(*[tf.TensorSpec([None], tf.float32)] * 2)
    wanted, beside = concrete.graph.outputs
    captured = {id(inner): outer for outer, inner in concrete.graph.captures}

    @tf.function(autograph=False)
    def copied(value: Any) -> Any:
        (found,) = dataflow.copy_tensors([wanted], {id(concrete.graph.inputs[0]): value} | captured)
        kinds.extend(op.type for op in found.graph.get_operations())
        return found

    kinds: list[str] = []
    np.testing.assert_array_equal(copied(tf.constant([1.0, 2.0])), [13.0, 32.0])
    assert "Square" in kinds
    assert "Exp" not in kinds
    scale.assign(0.0)
    np.testing.assert_array_equal(copied(tf.constant([1.0, 2.0])), outside)  # it reads the variable, not a value
    assert beside.op.type


def test_a_copy_holds_what_happens_by_control() -> None:
    def function(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "planted")]):
            return tf.identity(x)

    made, (x,), (wanted,) = traced(function, [None])
    copied = tf.function(lambda value: dataflow.copy_tensors([wanted], {id(x): value})[0], autograph=False)
    np.testing.assert_array_equal(copied(tf.constant([1.0])), [1.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="planted"):
        copied(tf.constant([-1.0]))
    assert made


def test_a_copy_leaves_out_reads_that_are_only_waited_for() -> None:
    read, waited, counted = tf.Variable(2.0), tf.Variable(3.0), tf.Variable(0.0)

    def function(x: Any) -> Any:  # tf.function has the result wait for every read and write
        tf.square(waited)
        counted.assign_add(1.0)
        tf.square(counted)  # this read waits for the write itself
        return x * read

    concrete = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([], tf.float32))
    feeds = {id(inner): outer for outer, inner in concrete.graph.captures}
    (wanted,) = concrete.graph.outputs
    copied = tf.function(
        lambda value: dataflow.copy_tensors([wanted], feeds | {id(concrete.graph.inputs[0]): value})[0], autograph=False
    ).get_concrete_function(tf.TensorSpec([], tf.float32))
    captured = {id(outer) for outer, _ in copied.graph.captures}
    assert captured == {id(read.handle), id(counted.handle)}
    assert float(copied(tf.constant(5.0))) == 10.0
    assert float(counted) == 1.0  # the write behind the read was not lost


def test_the_frontier_is_found_through_views_and_once() -> None:
    frozen, trained = tf.Variable(tf.ones([4, 4])), tf.Variable(tf.ones([4, 4]))

    def function(x: Any) -> Any:
        invariant = tf.matmul(x, frozen, name="invariant")
        two_views = tf.identity(tf.reshape(invariant, [-1, 2, 2])), tf.reshape(invariant, [-1, 4])
        return tf.matmul(tf.reshape(two_views[0], [-1, 4]), trained) + tf.matmul(two_views[1], trained)

    made, inputs, _ = traced(function, [None, 4])
    varying = dataflow.captured_handles(made, [trained])
    assert [tensor.op.name for tensor in find_frontier(made, varying=varying, inputs=inputs)] == ["invariant"]
    # with nothing frozen before it, the frontier is the input itself
    both = dataflow.captured_handles(made, [trained, frozen])
    assert find_frontier(made, varying=both, inputs=inputs) == [inputs[0]]


def test_what_does_not_depend_on_the_input_is_not_at_the_frontier() -> None:
    frozen, trained = tf.Variable(tf.ones([4])), tf.Variable(tf.ones([4]))
    made, inputs, _ = traced(lambda x: tf.exp(x) * (trained + tf.exp(frozen)), [None, 4])
    varying = dataflow.captured_handles(made, [trained])
    assert [tensor.op.type for tensor in find_frontier(made, varying=varying, inputs=inputs)] == ["Exp"]
    assert find_frontier(made, varying=varying, inputs=inputs)[0].shape.as_list() == [None, 4]


# --- bytes ---


def peak(function: Any, shape: list[int | None], batch: int, *, kept: bool = False) -> int:
    made, inputs, results = traced(function, shape)
    return Buffers(made, inputs, results, kept=kept).find_peak(batch)


# variables, which are not counted
NARROW, WIDE = tf.Variable(tf.ones([8, 4])), tf.Variable(tf.ones([8, 16]))
BACK, ROW, COLUMN = (tf.Variable(tf.ones(shape)) for shape in ([16, 4], [16], [8, 1]))


def test_of_a_chain_of_products_two_neighbours_are_alive_at_once() -> None:
    # [B, 8] fed -> [B, 16] -> [B, 4]: 64 + 16 bytes an example; the fed batch is not counted
    for batch in (1, 3, 100):
        assert peak(lambda x: tf.matmul(tf.matmul(x, WIDE), BACK), [None, 8], batch) == 80 * batch


def test_elementwise_work_writes_over_an_operand_that_goes() -> None:
    assert peak(lambda x: tf.exp(tf.tanh(tf.matmul(x, WIDE))), [None, 8], 5) == 64 * 5


def test_elementwise_work_does_not_write_over_what_is_read_later() -> None:
    def function(x: Any) -> Any:
        hidden = tf.matmul(x, WIDE)
        return tf.exp(hidden) * hidden

    assert peak(function, [None, 8], 5) == 2 * 64 * 5


def test_elementwise_work_does_not_write_over_an_operand_of_another_size() -> None:
    # a column [B, 1] is spread over [B, 16]
    assert peak(lambda x: tf.matmul(x, COLUMN) + ROW, [None, 8], 5) == (4 + 64) * 5


def test_views_have_no_bytes_of_their_own_and_keep_what_they_show() -> None:
    def function(x: Any) -> Any:
        hidden = tf.matmul(x, WIDE)
        shown = tf.reshape(tf.identity(hidden), [-1, 4, 4])
        other = tf.matmul(x, NARROW)  # made while ``hidden`` is only reached through its view
        return tf.reduce_sum(shown, 1) * other

    # hidden 64, other 16, the sum 16; and the 4 bytes that say which axis is summed
    assert peak(function, [None, 8], 7) == 96 * 7 + 4


def test_results_stay_until_the_end_or_go_when_nothing_reads_them() -> None:
    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8])
        results = [tf.exp(x), tf.tanh(x)]  # 32 bytes an example each
    assert Buffers(made, [x], results, kept=True).find_peak(3) == 2 * 32 * 3
    assert Buffers(made, [x], results, kept=False).find_peak(3) == 32 * 3


def test_what_no_result_needs_is_not_counted() -> None:
    def function(x: Any) -> Any:
        tf.matmul(x, WIDE)
        return tf.matmul(x, NARROW)

    assert peak(function, [None, 8], 3) == 16 * 3


def test_variables_and_their_reads_are_not_counted_and_casts_of_them_are() -> None:
    kernel = tf.Variable(tf.ones([8, 16]))
    assert peak(lambda x: tf.matmul(x, kernel), [None, 8], 3) == 64 * 3
    half = peak(lambda x: tf.matmul(tf.cast(x, tf.float16), tf.cast(kernel, tf.float16)), [None, 8], 3)
    assert half == (8 * 2 + 16 * 2) * 3 + 8 * 16 * 2  # whatever the batch, 8 x 16 halves


def test_bytes_kept_for_the_backward_pass_are_those_it_reads_and_did_not_make() -> None:
    kernel = tf.Variable(tf.ones([8, 16]))

    def function(x: Any) -> Any:
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(tf.tanh(tf.matmul(x, kernel)))
        forward.extend(tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(y, kernel)

    forward: list[Any] = []
    made, _, _ = traced(function, [None, 8])
    backward = [op for op in made.get_operations() if op not in set(forward)]
    # x of the product, and what tanh gave
    assert buffers.count_saved_bytes(backward, 10) == (8 + 16) * 4 * 10
