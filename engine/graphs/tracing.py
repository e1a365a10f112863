"""Helpers for tracing functions of batches: tensors, signatures, specs, calls and inlining."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from engine import tensorflow_private


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


def calls_functions(traced: Any) -> bool:
    """Whether a graph calls functions, whose operations are not part of the graph itself."""
    return any(op.type in ("PartitionedCall", "StatefulPartitionedCall") for op in traced.get_operations())


def call_unchecked(function: Any, *arguments: Any) -> Any:
    """Calls a concrete function without its checks, which take as long as all kernels of a step on cached features."""
    return tensorflow_private.call_unchecked(function, tf.nest.flatten(arguments))


def batch_signature(tensors: Mapping[str, Any]) -> Any:
    """Returns a key of names, dtypes and shapes, which does not depend on the batch size."""
    return tuple((name, t.dtype, tuple(t.shape[1:])) for name, t in sorted(tensors.items()))


def batch_specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    """Returns the specs of a batch of any size."""
    return {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name=name) for name, t in tensors.items()}
