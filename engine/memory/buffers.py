"""The lifetimes of a traced function's tensors, and the memory that they take at any batch size."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from engine.graphs.batch_shapes import BatchShapes
from engine.graphs.dataflow import ancestors
from engine.graphs.tracing import is_piece
from engine.training import pieces


def count_saved_bytes(backward: Iterable[Any], batch_size: int) -> int:
    """The bytes saved for the backward pass: tensors with a batch axis that it reads but does not compute."""
    backward = set(backward)
    kept: dict[tuple[int, int], int] = {}
    for op in backward:
        for tensor in op.inputs:
            shape = tensor.shape
            if tensor.op in backward or shape.rank in (None, 0) or shape[0] is not None or not tensor.dtype.is_floating:
                continue
            elements = batch_size * math.prod(length or 1 for length in shape[1:])
            kept[(id(tensor.op), tensor.value_index)] = elements * tensor.dtype.size
    return sum(kept.values())


# Operations whose result shares its operand's bytes, or has none of its own.
_VIEWS = frozenset([
    "Reshape", "Identity", "IdentityN", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient",
    "ReadVariableOp", "Placeholder",
])  # fmt: skip
# Operations whose kernels write the result over an operand that is not read again.
_IN_PLACE = frozenset([
    "Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Square", "Neg", "Exp", "Tanh", "TanhGrad", "Erf", "Erfc",
    "Rsqrt", "RsqrtGrad", "Sqrt", "Relu", "ReluGrad", "Sigmoid", "SigmoidGrad", "BiasAdd", "Softmax", "LogSoftmax",
    "SelectV2", "Select", "MulNoNan", "DivNoNan", "Maximum", "Minimum", "SquaredDifference", "Relu6", "Relu6Grad",
])  # fmt: skip


class Buffers:
    """The lifetimes of a traced function's tensors, and the memory that they take at any batch size.

    Operations are assumed to run one by one in traced order. A tensor is freed after the last operation that reads it,
    and an elementwise kernel reuses the buffer of an operand that is freed then.

    Args:
        traced, inputs, results: the graph, with an open batch axis; its placeholders of examples; what it returns.
        kept: whether results stay until the end; otherwise each is freed after the last operation that reads it. In a
            traced function that is an Identity near the end, so gradients that are summed as they arrive are counted for
            longer than they live, which errs on the safe side.
        shapes: the shapes in the graph, if they have been inferred already.
    """

    def __init__(
        self,
        traced: Any,
        inputs: Sequence[Any],
        results: Sequence[Any],
        *,
        kept: bool,
        shapes: BatchShapes | None = None,
    ) -> None:
        needed = ancestors(results)
        self._ops = [op for op in traced.get_operations() if op in needed]
        shapes = shapes or BatchShapes(traced, inputs, self._ops)
        self._shapes = {
            (op, tensor.value_index): shapes.bound(tensor)
            for op in self._ops
            for tensor in op.outputs
            if tensor.dtype not in (tf.resource, tf.variant, tf.string)
        }
        last: dict[Any, int] = {}
        for number, op in enumerate(self._ops):
            if op.type not in _VIEWS:  # reading the view reads the buffer
                for tensor in op.inputs:
                    last[_buffer(tensor)] = number
        self._ends = {_buffer(tensor): len(self._ops) for tensor in results}
        self._last = last | self._ends if kept else last

    def keep_results(self) -> Buffers:
        """Returns the same buffers with ``kept``, without analysing the graph again."""
        kept = copy.copy(self)
        kept._last = self._last | self._ends
        return kept

    def find_peak(self, batch_size: int) -> int:
        """The largest number of bytes alive at once; variables are not counted."""
        padding = pieces.pad(batch_size) / batch_size
        alive: dict[Any, int] = {}
        going: dict[int, list[Any]] = {}
        now = most = 0
        for number, op in enumerate(self._ops):
            mine = {_buffer(tensor) for tensor in op.inputs}
            free = sorted((alive[key] for key in mine if key in alive and self._last[key] == number), reverse=True)
            copies = int(padding * sum(alive.get(key, 0) for key in mine)) if padding > 1 and is_piece(op) else 0
            for tensor in op.outputs:
                key = _buffer(tensor)
                if op.type in _VIEWS or key in alive or key not in self._shapes:
                    continue
                lengths = (length.each * batch_size + length.fixed for length in self._shapes[key])
                if not (size := math.prod(lengths) * tensor.dtype.size):
                    continue
                alive[key] = size
                going.setdefault(self._last.get(key, number), []).append(key)
                if op.type in _IN_PLACE and size in free:
                    free.remove(size)  # counted once: the operand is freed below
                    most = max(most, now)
                else:
                    most = max(most, now + size + copies)
                now += size
            for key in going.pop(number, ()):
                now -= alive.pop(key)
        return most


def _buffer(tensor: Any) -> Any:
    """The (operation, output number) that owns a tensor's bytes."""
    while tensor.op.type in _VIEWS and tensor.op.inputs and tensor.op.type != "ReadVariableOp":
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor.op, tensor.value_index
