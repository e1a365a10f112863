"""Element-wise pieces of a model that XLA compiles, each into one pass over memory, within a training step on a CPU.

TensorFlow computes such a piece by one kernel for each operation, and every kernel reads and writes whole tensors; in 16 bits
each also converts its operands. A compiled piece reads its arguments once, computes in float32, and writes its result once.

Pieces are used only above the lowest trained variable, so that the frozen part of a step, evaluations and exports have
TensorFlow's operations alone. XLA compiles a piece for each number of examples that it meets. That is therefore rounded up, by
at most a quarter, to one of few; the results of an example do not depend on it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.tracing import PIECE

# A piece of fewer elements per example is not worth compiling: XLA takes 0.1 CPU seconds, and 2^20 elements gain 4 ms.
_LEAST = 2**16
# The numbers of examples that pieces are compiled for: 1 to 8, 10, 12, 14, 16, 20, 24, ...
_SIZES = np.array(sorted({1, 2, 3} | {m * 2**e for m in (4, 5, 6, 7) for e in range(28)}), np.int32)

_used: contextvars.ContextVar[bool] = contextvars.ContextVar("pieces", default=False)


@contextlib.contextmanager
def scope(used: bool) -> Iterator[None]:
    """Sets whether a step that is traced in a ``with`` block uses compiled pieces; outside of it none are."""
    token = _used.set(used)
    try:
        yield
    finally:
        _used.reset(token)


def pay(x: Any) -> bool:
    """Whether a compiled piece pays for a tensor [B, ...] of this size and dtype, in the step that is being traced."""
    if not _used.get() or x.dtype not in (tf.float32, tf.bfloat16, tf.float16):
        return False
    return (x.shape.rank or 0) > 1 and (x.shape[1:].num_elements() or 0) >= _LEAST


def pad(count: int) -> int:
    """The number of examples that a piece is compiled for when it is called with ``count``."""
    return int(_SIZES[np.searchsorted(_SIZES, count)])


class Piece:
    """A compiled function of tensors [B, ...] of known rank, which returns one tensor with the shape of the first.

    Row i of the result must depend on row i of the arguments alone. The function has no gradient: it is for use within
    ``tf.custom_gradient``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        compiled = tf.function(function, autograph=False, jit_compile=True)

        def piece(*tensors: Any) -> Any:
            count = tf.shape(tensors[0])[0]
            more = tf.reduce_min(tf.where(count <= _SIZES, _SIZES, _SIZES[-1])) - count  # as in pad
            padded = [tf.pad(x, [[0, more]] + [[0, 0]] * (x.shape.rank - 1)) for x in tensors]  # no copy if more is 0
            # not called itself, since that would not compile it while tf.functions run eagerly (graphs.tracing.inlined)
            return compiled.get_concrete_function(*_specs(tensors))(*padded)[:count]

        piece.__name__ = PIECE  # by which a call is known in a graph
        self._function = tf.function(piece, autograph=False)

    def __call__(self, *tensors: Any) -> Any:
        with tf.init_scope():  # one function for all blocks and traces
            function = self._function.get_concrete_function(*_specs(tensors))
        with tensorflow_private.unrecorded():
            return tf.reshape(function(*tensors), tf.shape(tensors[0]))  # the shape of a call is not known in a graph


def _specs(tensors: Iterable[Any]) -> list[Any]:
    return [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in tensors]
