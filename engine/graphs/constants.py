"""Constants of a graph that is only read: what a TensorProto declares is checked before memory is taken for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

MOST_BYTES = 1 << 31  # in one tensor, and in all constants together; a GraphDef itself cannot be larger


def measure_constant(tensor: Any) -> tuple[int, str]:
    """Returns the bytes that a TensorProto unpacks to, and what is wrong with it, "" if nothing."""
    try:
        dtype = tf.as_dtype(tensor.dtype)
    except TypeError:
        return 0, f"a constant of the unknown dtype {tensor.dtype}"
    if dtype.base_dtype in (tf.resource, tf.variant):
        return 0, f"a constant {dtype.name} reaches objects of this process"
    dims = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or any(dim < 0 for dim in dims):
        return 0, f"a constant of the invalid shape {dims}"
    each = dtype.size or 1
    size = math.prod(dims) * each
    if size > MOST_BYTES:
        return 0, f"a constant of shape {dims} {dtype.name}; at most {MOST_BYTES:,} bytes are allowed"
    if tensor.tensor_content and len(tensor.tensor_content) != size:
        return 0, f"a constant of shape {dims} {dtype.name} with {len(tensor.tensor_content)} bytes, not {size}"
    return size, ""


def shape_of_constant(tensor: Any) -> tuple[int, ...]:
    """Returns the shape that a TensorProto declares."""
    return tuple(int(dim.size) for dim in tensor.tensor_shape.dim)


def read_constant(tensor: Any) -> np.ndarray:
    """Returns the values of a TensorProto of numbers; raises ValueError if it declares what it does not hold.

    Quantised types (``quint8`` and the like) are returned as the integers that they are.
    """
    _, problem = measure_constant(tensor)
    if problem:
        raise ValueError(problem)
    try:
        array = tf.make_ndarray(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"a constant that contradicts itself ({error})") from None
    if array.shape != shape_of_constant(tensor):
        raise ValueError(f"a constant of {array.size} values for the shape {list(shape_of_constant(tensor))}")
    return array.view(array.dtype[0]) if array.dtype.names else array
