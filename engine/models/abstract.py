"""Builds models without allocating their weights: a port only needs the names, shapes and dtypes of the variables."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from engine import tensorflow_private

# Elements; smaller variables (seeds, counters) keep their values, which a model may read while it is built.
_SMALL = 1 << 16


def abstract_variables() -> contextlib.AbstractContextManager[None]:
    """A scope for building a model whose large variables have a handle, a shape and a dtype, but no value.

    Initial values are still drawn, and discarded. Reading the value of a large variable returns an empty array.
    """
    return tf.variable_creator_scope(_without_value)


def _without_value(next_creator: Any, **given: Any) -> Any:
    initial = given["initial_value"]
    value = tf.convert_to_tensor(initial() if callable(initial) else initial, dtype=given.get("dtype"))
    if not value.dtype.is_floating or value.shape.num_elements() < _SMALL:
        return next_creator(**given | {"initial_value": value})
    trainable = given.get("trainable")
    return tensorflow_private.uninitialized_variable(
        shape=value.shape, dtype=value.dtype, trainable=trainable is None or trainable, name=given.get("name")
    )
