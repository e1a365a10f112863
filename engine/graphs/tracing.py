"""Tracing functions of batches: tensors, signatures, specs, calls, and functions written out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from engine import tensorflow_private


def batch_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tf.convert_to_tensor(value) for name, value in batch.items() if name != "index"}


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Surrounds tracing: tf.functions that are called are run as Python, their operations land in the caller's graph."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def calls_functions(traced: Any) -> bool:
    """Whether a graph has calls of functions, whose operations it does not show."""
    return any(op.type in ("PartitionedCall", "StatefulPartitionedCall") for op in traced.get_operations())


def call_unchecked(function: Any, *arguments: Any) -> Any:
    """Calls a concrete function without its checks: they take as long as all kernels of a step of features."""
    return tensorflow_private.call_unchecked(function, tf.nest.flatten(arguments))


def signature(tensors: Mapping[str, Any]) -> Any:
    return tuple((name, t.dtype, tuple(t.shape[1:])) for name, t in sorted(tensors.items()))


def specs_of(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name=name) for name, t in tensors.items()}
