"""Models without memory: what a port needs of a model is the names, shapes and dtypes of its variables."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from engine import tensorflow_private

_SMALL = 1 << 16  # elements: what a model may want to read while it is built (seeds, counters) stays real


def outline() -> contextlib.AbstractContextManager[None]:
    """Surrounds the building of a model: its large variables get a handle, a shape and a dtype, but no value.

    Initial values are still drawn, one variable at a time, and forgotten. Such a model can be named,
    selected from and ported into a file; reading a large variable's value gives an empty array.
    """
    return tf.variable_creator_scope(_without_value)


def _without_value(next_creator: Any, **given: Any) -> Any:
    initial = given["initial_value"]
    value = tf.convert_to_tensor(initial() if callable(initial) else initial, dtype=given.get("dtype"))
    if not value.dtype.is_floating or value.shape.num_elements() < _SMALL:
        return next_creator(**given | {"initial_value": value})
    trainable = given.get("trainable")
    return tensorflow_private.uninitialized_variable(
        shape=value.shape,
        dtype=value.dtype,
        trainable=True if trainable is None else trainable,
        name=given.get("name"),
    )
