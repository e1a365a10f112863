"""When the tensors of a traced function come and go: what they take at any batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from engine.graphs.dataflow import ancestors


def saved_bytes(backward: Iterable[Any], batch_size: int) -> int:
    """Bytes of tensors with a batch axis that the backward pass reads and did not make: what is kept for it."""
    backward = set(backward)
    kept: dict[tuple[int, int], int] = {}
    for op in backward:
        for tensor in op.inputs:
            shape = tensor.shape
            if tensor.op in backward or shape.rank in (None, 0) or shape[0] is not None or not tensor.dtype.is_floating:
                continue
            elements = batch_size
            for length in shape[1:]:
                elements *= length or 1
            kept[(id(tensor.op), tensor.value_index)] = elements * tensor.dtype.size
    return sum(kept.values())


# The same bytes under another name, or no bytes of their own.
_VIEWS = frozenset(
    [
        "Reshape",
        "Identity",
        "IdentityN",
        "ExpandDims",
        "Squeeze",
        "StopGradient",
        "PreventGradient",
        "ReadVariableOp",
        "Placeholder",
    ]
)


# Kernels that write their result over an operand that nobody else needs.
_IN_PLACE = frozenset(
    [
        "Add",
        "AddV2",
        "AddN",
        "Sub",
        "Mul",
        "RealDiv",
        "Square",
        "Neg",
        "Exp",
        "Tanh",
        "TanhGrad",
        "Erf",
        "Erfc",
        "Rsqrt",
        "RsqrtGrad",
        "Sqrt",
        "Relu",
        "ReluGrad",
        "Sigmoid",
        "SigmoidGrad",
        "BiasAdd",
        "Softmax",
        "LogSoftmax",
        "SelectV2",
        "Select",
        "MulNoNan",
        "DivNoNan",
        "Maximum",
        "Minimum",
        "SquaredDifference",
        "Relu6",
        "Relu6Grad",
    ]
)


# A prime that is no dimension of any model: a size that it divides has the batch in it.
_PRIME = 8191


class Sizes(NamedTuple):
    """Bytes of a tensor: ``each`` for every example of the batch, or ``fixed``."""

    each: int
    fixed: int

    def at(self, batch_size: int) -> int:
        return self.each * batch_size + self.fixed


class Buffers:
    """When the tensors of a traced function come and go: what they take at any batch size.

    Operations are taken in the order in which they were traced, which is that of a sequential run;
    a tensor goes when the last that reads it is done. Where an elementwise kernel can write over an
    operand that goes, it does.

    Args:
        traced: the graph, its batch axis open.
        inputs: its placeholders of examples.
        results: tensors that it returns.
        kept: whether results stay until the end; else each goes with the last operation that reads it. In a traced
            function that is an Identity near the end: so gradients that are added up as they come are counted longer
            than they live, which errs on the safe side.
    """

    def __init__(self, traced: Any, inputs: Sequence[Any], results: Sequence[Any], *, kept: bool) -> None:
        needed = ancestors(results)
        self._ops = [op for op in traced.get_operations() if op in needed]
        self._sizes = _sizes(traced, self._ops, inputs)
        last: dict[Any, int] = {}
        for number, op in enumerate(self._ops):
            if op.type not in _VIEWS:  # who reads the view reads the buffer
                for tensor in op.inputs:
                    last[_buffer(tensor)] = number
        if kept:
            last |= {_buffer(tensor): len(self._ops) for tensor in results}
        self._last = last

    def peak(self, batch_size: int) -> int:
        """The most bytes that are alive at once; variables are not counted."""
        alive: dict[Any, int] = {}
        going: dict[int, list[Any]] = {}
        now = most = 0
        for number, op in enumerate(self._ops):
            mine = {_buffer(tensor) for tensor in op.inputs}
            free = sorted((alive[key] for key in mine if key in alive and self._last[key] == number), reverse=True)
            for tensor in op.outputs:
                key = _buffer(tensor)
                if key in alive or op.type in _VIEWS:
                    continue
                size = self._sizes[key].at(batch_size)
                if not size:
                    continue
                alive[key] = size
                now += size
                going.setdefault(self._last.get(key, number), []).append(key)
                if op.type in _IN_PLACE and size in free:
                    now -= size  # counted once: the operand goes below
                    free.remove(size)
                    most = max(most, now)
                    now += size
                else:
                    most = max(most, now)
            for key in going.pop(number, ()):
                now -= alive.pop(key)
        return most


def _buffer(tensor: Any) -> Any:
    """The (operation, output) whose bytes a tensor shows."""
    while tensor.op.type in _VIEWS and tensor.op.inputs and tensor.op.type != "ReadVariableOp":
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor.op, tensor.value_index


def _sizes(traced: Any, ops: Sequence[Any], inputs: Sequence[Any]) -> dict[Any, Sizes]:
    """Bytes of every tensor: the graph's shapes are inferred again with a batch of ``_PRIME`` examples."""
    definition = traced.as_graph_def()
    with tf.Graph().as_default() as again:
        fed = {tensor.name: tf.compat.v1.placeholder(tensor.dtype, [_PRIME, *tensor.shape[1:]]) for tensor in inputs}
        for op in ops:  # reading a variable: its shape is known here, and not to a graph without the variable
            if op.type == "ReadVariableOp":
                fed[op.outputs[0].name] = tf.compat.v1.placeholder(op.outputs[0].dtype, op.outputs[0].shape)
        tf.graph_util.import_graph_def(definition, input_map=fed, name="")
    found: dict[Any, Sizes] = {}
    for op in ops:
        for tensor in op.outputs:
            if tensor.dtype in (tf.resource, tf.variant, tf.string) or op.type == "ReadVariableOp":
                found[op, tensor.value_index] = Sizes(0, 0)
                continue
            name = tensor.name
            shape = tensor.shape if name in fed else again.get_tensor_by_name(name).shape
            size = tensor.dtype.size
            for length in shape.as_list() if shape.rank is not None else []:
                size *= length if length is not None else 1
            found[op, tensor.value_index] = Sizes(size // _PRIME, 0) if size % _PRIME == 0 else Sizes(0, size)
    return found
