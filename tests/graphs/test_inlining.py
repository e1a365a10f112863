"""A function without calls computes, writes and differentiates as the one with calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from engine.graphs.inlining import inline_calls
from engine.graphs.tracing import CALLS


def test_calls_within_calls_are_replaced_by_what_they_do_in_their_order() -> None:
    factor, log = tf.Variable(3.0), tf.Variable(0.0)

    @tf.function(autograph=False)
    def inner(x: Any) -> Any:
        log.assign(log * 10.0 + 1.0)
        return x, x * factor  # one output is an argument

    @tf.function(autograph=False)
    def outer(x: Any) -> Any:
        same, scaled = inner(x)
        log.assign(log * 10.0 + 2.0)
        return same + scaled, log.read_value()

    @tf.function(autograph=False)
    def whole(batch: Any, power: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(batch["x"])
            y, before = outer(batch["x"])
            log.assign(log * 10.0 + 3.0)
            loss = tf.reduce_sum(y**power)
        return {"loss": loss, "gradient": tape.gradient(loss, batch["x"]), "before": before, "after": log.read_value()}

    function = whole.get_concrete_function({"x": tf.TensorSpec([None])}, tf.TensorSpec([]))
    given = {"x": tf.constant([1.0, 2.0])}, tf.constant(2.0)
    wanted = {name: value.numpy() for name, value in function(*given).items()}
    assert wanted["after"] == 123.0
    log.assign(0.0)
    found = inline_calls(function)
    operations = found.function.graph.get_operations()
    assert any(op.type in CALLS for op in function.graph.get_operations())
    assert not any(op.type in CALLS for op in operations)
    for name, value in found.function(*given).items():
        np.testing.assert_array_equal(value, wanted[name])
    calls = [op for op in function.graph.get_operations() if op.type in CALLS]
    assert {"AssignVariableOp", "Mul"} <= {op.type for op in found.find_copies(calls)}


def test_a_function_to_be_compiled_as_a_whole_stays_a_call() -> None:
    compiled = tf.function(lambda x: x * 2.0, autograph=False, jit_compile=True)
    function = tf.function(lambda batch: compiled(batch["x"]) + 1.0, autograph=False).get_concrete_function(
        {"x": tf.TensorSpec([2])}
    )
    found = inline_calls(function).function
    assert [op.type for op in found.graph.get_operations() if op.type in CALLS]
    np.testing.assert_array_equal(found({"x": tf.constant([1.0, 2.0])}), [3.0, 5.0])
