"""Helpers for tracing functions of batches: tensors, signatures, specs, calls and inlining."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from engine import tensorflow_private

CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
PIECE = "compiled_piece"  # the name of the functions of engine.training.pieces


def batch_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a batch to tensors, without its "index"."""
    return {name: tf.convert_to_tensor(value) for name, value in batch.items() if name != "index"}


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Makes traced code inline the tf.functions that it calls, as plain Python, within a ``with`` block."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def find_calls(ops: Iterable[Any]) -> list[Any]:
    """The calls of functions among operations. A compiled piece does not count: it is as one element-wise operation."""
    return [op for op in ops if op.type in CALLS and not is_piece(op)]


def is_piece(op: Any) -> bool:
    """Whether an operation calls a piece of engine.training.pieces."""
    return op.type in CALLS and f"_{PIECE}_" in op.get_attr("f").name


def calls_functions(traced: Any) -> bool:
    """Whether a graph calls functions, whose operations are not part of the graph itself."""
    return bool(find_calls(traced.get_operations()))


def inline_calls(function: Any) -> Any:
    """Returns a concrete function of one tensor whose graph has the operations of all functions that it calls.

    Calls in loops and branches remain. A function that calls none is returned as it is.
    """
    graph = function.graph
    if not calls_functions(graph):
        return function
    definition = tensorflow_private.inline_calls(function)
    captured = [(inner.op.name, outer) for outer, inner in graph.captures]
    results = [tensor.name for tensor in function.outputs]
    start = graph.inputs[0]

    def call(given: Any) -> list[Any]:
        here = tf.compat.v1.get_default_graph()
        feeds = {name: here.capture(outer) for name, outer in captured} | {start.op.name: given}  # type: ignore[attr-defined]
        return list(tf.graph_util.import_graph_def(definition, input_map=feeds, return_elements=results, name=""))

    spec = tf.TensorSpec(start.shape, start.dtype)
    return tf.function(call, autograph=False).get_concrete_function(spec)


def call_unchecked(function: Any, *arguments: Any) -> Any:
    """Calls a concrete function without its checks, which take as long as all kernels of a step on cached features."""
    return tensorflow_private.call_unchecked(function, tf.nest.flatten(arguments))


def batch_signature(tensors: Mapping[str, Any]) -> Any:
    """Returns a key of names, dtypes and shapes, which does not depend on the batch size."""
    return tuple((name, t.dtype, tuple(t.shape[1:])) for name, t in sorted(tensors.items()))


def batch_specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    """Returns the specs of a batch of any size."""
    return {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name=name) for name, t in tensors.items()}
