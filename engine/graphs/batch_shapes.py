"""How the shapes in a traced function depend on the batch size B, and what its operations cost per example.

A graph traced with an unknown batch size does not record where the batch went: [None, 384] may have B or 197 B rows.
Its shapes are therefore inferred again at two batch sizes, from which each length is found as ``each * B + fixed``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

_SIZES = (8191, 7919)  # primes that are not a dimension of any model
SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank"])
_GIVEN = "batch_shapes/given"  # a name that no analysed graph uses
_ELEMENT = 0.02  # multiply-adds per element: small enough to decide only between cuts of equal bytes
_CONTROL_FLOW_MACS = 10**9  # high: a loop or a branch is recomputed only where nothing else can be cut


class Length(NamedTuple):
    """The length of one axis: ``each * B + fixed``."""

    each: int
    fixed: int


Shape = tuple[Length, ...]


class BatchShapes:
    """The shapes in a traced graph as functions of the batch size. Call it with a tensor to get its shape.

    Args:
        graph: the graph, traced with an unknown batch size.
        inputs: its placeholders of examples, whose first axis is the batch.
        ops: the operations to analyse, which must include all that they depend on; None analyses the whole graph.
    """

    def __init__(self, graph: Any, inputs: Sequence[Any], ops: Collection[Any] | None = None) -> None:
        ops = graph.get_operations() if ops is None else ops
        whole, names = graph.as_graph_def(), {op.name for op in ops}
        definition = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
        definition.node.extend(node for node in whole.node if node.name in names)
        for node in definition.node:
            node.attr.pop("_class", None)  # colocation with operations that are not analysed
        self._again = [_inferred(ops, definition, inputs, size) for size in _SIZES]

    def __call__(self, tensor: Any) -> Shape | None:
        """Returns the shape of one of the graph's tensors, or None if it cannot be known."""
        at = [found(tensor) for found in self._again]
        if any(shape is None for shape in at) or len({len(shape) for shape in at}) != 1:
            return _guessed(tensor)
        lengths = []
        for one, other in zip(*at, strict=True):
            if one is None or other is None:
                return _guessed(tensor)
            each, rest = divmod(one - other, _SIZES[0] - _SIZES[1])
            if rest:
                return None
            lengths.append(Length(each, one - each * _SIZES[0]))
        return tuple(lengths)

    def bound(self, tensor: Any) -> Shape:
        """Returns a shape for counting bytes: a length that does not grow linearly is rounded up to a multiple of B.

        A length that could not be inferred counts 1, and so does a tensor of unknown rank.
        """
        lengths = []
        for one, other in zip(*(found(tensor) or () for found in self._again), strict=False):
            if one is None or other is None:
                lengths.append(Length(0, 1))
                continue
            each, rest = divmod(one - other, _SIZES[0] - _SIZES[1])
            lengths.append(Length(-(-one // _SIZES[0]), 0) if rest else Length(each, one - each * _SIZES[0]))
        return tuple(lengths)

    def certain(self, tensor: Any) -> bool:
        """Whether every length was inferred at both sizes."""
        return all(found(tensor) is not None and None not in found(tensor) for found in self._again)

    def rows(self, tensor: Any) -> tuple[int, tuple[int, ...]] | None:
        """Returns k and the remaining lengths of a tensor of shape [k * B, ...]; None for any other tensor."""
        shape = self(tensor)
        if not shape or shape[0].fixed or shape[0].each < 1 or any(length.each for length in shape[1:]):
            return None
        return shape[0].each, tuple(length.fixed for length in shape[1:])

    def follows(self, tensor: Any) -> bool:
        """Whether any length of the tensor grows with the batch; True if that is not known."""
        shape = self(tensor)
        return shape is None or any(length.each for length in shape)

    def crossed(self, tensor: Any) -> bool:
        """Whether two or more lengths of the tensor grow with the batch, as in a [B, B] similarity matrix."""
        return sum(bool(length.each) for length in self(tensor) or ()) > 1

    def elements(self, tensor: Any) -> int:
        """Returns the approximate number of elements per example; 0 if it is not known."""
        return math.prod(self.lengths(tensor)) // _SIZES[0] if self(tensor) is not None else 0

    def macs(self, op: Any) -> int:
        """Returns the multiply-adds per example of a matrix product or convolution, forward or backward; else 0."""
        try:
            return int(_COUNTS[op.type](self, op)) if op.type in _COUNTS else 0
        except (IndexError, ValueError):  # an operand of unknown shape
            return 0

    def work(self, op: Any) -> float:
        """Returns the cost of recomputing an operation for one example, in multiply-adds."""
        if has_functions(op):
            return _CONTROL_FLOW_MACS
        return self.macs(op) + _ELEMENT * sum(self.elements(output) for output in op.outputs)

    def lengths(self, tensor: Any) -> list[int]:
        """Returns the lengths of a tensor at a large batch size; raises ValueError if the shape is not known."""
        shape = self(tensor)
        if shape is None:
            raise ValueError(tensor.name)
        return [length.each * _SIZES[0] + length.fixed for length in shape]


def has_functions(op: Any) -> bool:
    """Whether an operation runs functions of the graph's library, as calls, branches and loops do."""
    return any(value.WhichOneof("value") == "func" or value.list.func for value in op.node_def.attr.values())


def _inferred(ops: Collection[Any], definition: Any, inputs: Sequence[Any], size: int) -> Any:
    """A function from a tensor to its lengths for ``size`` examples, or to None; an unknown length is None as well."""
    batch = {id(tensor) for tensor in inputs}
    known = {}
    with tf.Graph().as_default() as again:
        for op in ops:
            for tensor in op.outputs:
                if id(tensor) in batch:
                    shape_now = [size, *tensor.shape[1:]]
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, shape_now, name=_GIVEN)
                elif op.inputs and any(source.dtype == tf.resource for source in op.inputs) and not has_functions(op):
                    # a read of a variable: its shape is known here, but not in a graph without the variable
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=_GIVEN)
        tf.graph_util.import_graph_def(definition, input_map=known, name="")
    analysed = {op.name for op in ops}

    def shape(tensor: Any) -> tuple[int | None, ...] | None:
        if tensor.op.name not in analysed:
            return None
        found = known[tensor.name].shape if tensor.name in known else again.get_tensor_by_name(tensor.name).shape
        return None if found.rank is None else tuple(found.as_list())

    return shape


def _guessed(tensor: Any) -> Shape | None:
    """The shape in the trace itself, with an unknown first length taken to be B. Callers that rely on it must check."""
    shape = tensor.shape.as_list() if tensor.shape.rank else []
    if not shape or shape[0] is not None or None in shape[1:]:
        return None
    return (Length(1, 0), *(Length(0, length) for length in shape[1:]))


def _matmul(shapes: BatchShapes, op: Any) -> int:
    """The elements of the result times the length that is summed over."""
    attribute = next(name for name in ("transpose_a", "adj_x") if name in op.node_def.attr)
    left, out = shapes.lengths(op.inputs[0]), shapes.lengths(op.outputs[0])
    return math.prod(out) * left[-2 if op.get_attr(attribute) else -1] // _SIZES[0]


def _conv(shapes: BatchShapes, op: Any) -> int:
    """The elements of the output (or its gradient) times the lengths of the filter that are summed over."""
    output = op.inputs[2] if "Backprop" in op.type else op.outputs[0]
    kernel = op.outputs[0] if "BackpropFilter" in op.type else op.inputs[1]
    summed = shapes.lengths(kernel)[: -2 if op.type.startswith("Depthwise") else -1]
    return shapes.elements(output) * math.prod(summed)


def _einsum(shapes: BatchShapes, op: Any) -> int:
    """The product of the lengths of all letters."""
    terms = op.get_attr("equation").decode().partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        lengths |= dict(zip(term, shapes.lengths(tensor), strict=True))
    return math.prod(lengths.values()) // _SIZES[0]


_CONVOLUTIONS = ("Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2", "Conv2DBackpropFilter",
                 "Conv3DBackpropFilterV2", "DepthwiseConv2dNative", "DepthwiseConv2dNativeBackpropInput",
                 "DepthwiseConv2dNativeBackpropFilter")  # fmt: skip
_COUNTS = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    **dict.fromkeys(_CONVOLUTIONS, _conv),
    "Einsum": _einsum,
}
