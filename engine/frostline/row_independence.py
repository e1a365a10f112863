"""Checks that a row of a tensor depends on its example alone, by running that example among others.

Three small batches are run: [a, b], [a, c] and [c, a, b]. The row of a must not change between the first and the second
(another neighbour), and by no more than rounding between the first and the third (another position and batch size).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from engine.errors import InputError

# Relative tolerances: another batch size uses other kernels, and 4e-7 was measured on a ViT in float32.
_ROUNDING = {tf.float64: 1e-9, tf.float32: 1e-5, tf.bfloat16: 5e-2, tf.float16: 1e-2}


class RowIndependenceError(InputError):
    """The frozen part cannot be run on synthetic examples."""


def find_mixing(compute: Callable[..., Sequence[Any]], rows: Sequence[int], examples: Sequence[Any]) -> list[int]:
    """The positions of the tensors with rows that depend on more than their own example.

    Args:
        compute: a function from examples [B, ...] to tensors [k * B, ...], with k for each tensor in ``rows``.
        examples: for each argument of ``compute`` a tensor, or a spec, with its shape and dtype.

    Raises:
        RowIndependenceError: the function fails on synthetic examples.
    """
    try:
        results = [[np.asarray(value) for value in compute(*probe)] for probe in _probes(examples)]
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0] if error.message else type(error).__name__
        raise RowIndependenceError(f"the frozen part cannot be run on synthetic examples: {reason}") from None
    return [number for number, (k, *values) in enumerate(zip(rows, *results, strict=True)) if _mixes(k, values)]


def _mixes(rows: int, values: Sequence[np.ndarray]) -> bool:
    if any(value.ndim < 1 or len(value) != count * rows for value, count in zip(values, (2, 2, 3), strict=True)):
        return True
    dtype = tf.as_dtype(values[0].dtype)
    one, two, three = (_finite(v).reshape(len(v) // rows, -1) for v in values)
    exact = 8 * float(ml_dtypes.finfo(values[0].dtype).eps) if dtype.is_floating else 0.0
    if np.max(np.abs(one[0] - two[0]), initial=0.0) > exact * np.max(np.abs(one), initial=0.0):
        return True
    return bool(np.linalg.norm(one - three[1:]) > _ROUNDING.get(dtype, 0.0) * np.linalg.norm(one))


def _finite(value: np.ndarray) -> np.ndarray:
    wide = value.astype(np.float64)
    return np.where(np.isfinite(wide), wide, 0.0)


def _probes(examples: Sequence[Any]) -> list[list[Any]]:
    """[a, b], [a, c] and [c, a, b] of each input; b and c are far apart, so that mixing shows."""
    rng = np.random.default_rng(0)
    return [list(arrays) for arrays in zip(*[_probe(rng, given) for given in examples], strict=True)]


def _probe(rng: np.random.Generator, given: Any) -> list[np.ndarray]:
    shape = given.shape.as_list()[1:]
    if None in shape:
        raise RowIndependenceError(
            f"an input of shape {given.shape}: all axes except the batch axis must have a fixed size"
        )
    if given.dtype.is_floating:
        a, b, c = rng.standard_normal((3, *shape))
        b, c = b * 2.0 - 1.0, c * 0.5 + 2.0
    else:
        a, b, c = rng.integers(0, 256 if given.dtype == tf.uint8 else 2, (3, *shape))
    return [np.stack(rows).astype(given.dtype.as_numpy_dtype) for rows in ([a, b], [a, c], [c, a, b])]
