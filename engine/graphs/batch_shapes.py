"""How the shapes of a traced function follow the batch size, and what its operations cost per example.

A graph traced with an open batch axis forgets where the batch went: [None, 384] may be B or 197 B rows. Its shapes are
inferred again at two batch sizes, and each length is read as ``each * B + fixed``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

_SIZES = (8191, 7919)  # primes that are no dimension of any model
SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank"])
_GIVEN = "batch_shapes/given"  # no name of a graph that is looked at
_ELEMENT = 0.02  # of a multiply-add: so little that it decides between equal bytes alone
_CONTROL_FLOW_MACS = 10**9  # dear: a loop or a branch is computed again only where nothing else can be cut


class Length(NamedTuple):
    """A dimension: ``each * B + fixed``."""

    each: int
    fixed: int


Shape = tuple[Length, ...]


class BatchShapes:
    """Shapes of a traced graph as functions of the batch size.

    Args:
        graph: the graph, its batch axis open.
        inputs: its placeholders of examples, batch axis first.
        ops: operations that are asked about, with all that they need, and of others nothing is known; None: all.
    """

    def __init__(self, graph: Any, inputs: Sequence[Any], ops: Collection[Any] | None = None) -> None:
        ops = graph.get_operations() if ops is None else ops
        whole, names = graph.as_graph_def(), {op.name for op in ops}
        definition = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
        definition.node.extend(node for node in whole.node if node.name in names)
        for node in definition.node:
            node.attr.pop("_class", None)  # colocation with what is not asked about
        self._again = [_inferred(ops, definition, inputs, size) for size in _SIZES]

    def __call__(self, tensor: Any) -> Shape | None:
        """The shape of one of the graph's tensors; None where it cannot be known."""
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

    def certain(self, tensor: Any) -> bool:
        """Whether every length was inferred at both sizes."""
        return all(found(tensor) is not None and None not in found(tensor) for found in self._again)

    def rows(self, tensor: Any) -> tuple[int, tuple[int, ...]] | None:
        """Of a tensor [k * B, ...]: k and the other lengths. None of all others."""
        shape = self(tensor)
        if not shape or shape[0].fixed or shape[0].each < 1 or any(length.each for length in shape[1:]):
            return None
        return shape[0].each, tuple(length.fixed for length in shape[1:])

    def follows(self, tensor: Any) -> bool:
        """Whether some length of the tensor grows with the batch; True where that is not known."""
        shape = self(tensor)
        return shape is None or any(length.each for length in shape)

    def crossed(self, tensor: Any) -> bool:
        """Whether two lengths of the tensor grow with the batch, as where each example meets each."""
        return sum(bool(length.each) for length in self(tensor) or ()) > 1

    def elements(self, tensor: Any) -> int:
        """Elements for each further example, about; 0 where it is not known."""
        return math.prod(self.lengths(tensor)) // _SIZES[0] if self(tensor) is not None else 0

    def macs(self, op: Any) -> int:
        """Multiply-adds for an example: products and convolutions, forward or backward; else 0."""
        count = _COUNTS.get(op.type)
        if count is None:
            return 0
        try:
            return int(count(self, op))
        except (IndexError, ValueError):  # an operand whose shape nobody knows
            return 0

    def work(self, op: Any) -> float:
        """What doing an operation again costs for an example, in multiply-adds."""
        if has_functions(op):
            return _CONTROL_FLOW_MACS
        return self.macs(op) + _ELEMENT * sum(self.elements(output) for output in op.outputs)

    def lengths(self, tensor: Any) -> list[int]:
        """Lengths at a large batch size.

        Raises:
            ValueError: they are not known.
        """
        shape = self(tensor)
        if shape is None:
            raise ValueError(tensor.name)
        return [length.each * _SIZES[0] + length.fixed for length in shape]


def has_functions(op: Any) -> bool:
    """Whether an operation runs functions of the graph's library: calls, branches, loops."""
    return any(value.WhichOneof("value") == "func" or value.list.func for value in op.node_def.attr.values())


def _inferred(ops: Collection[Any], definition: Any, inputs: Sequence[Any], size: int) -> Any:
    """tensor -> its lengths (None where not known) with a batch of ``size``; or None."""
    batch = {id(tensor) for tensor in inputs}
    known = {}
    with tf.Graph().as_default() as again:
        for op in ops:
            for tensor in op.outputs:
                if id(tensor) in batch:
                    shape_now = [size, *tensor.shape[1:]]
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, shape_now, name=_GIVEN)
                elif op.inputs and any(source.dtype == tf.resource for source in op.inputs) and not has_functions(op):
                    # reading a variable: its shape is known here, and not to a graph without the variable
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=_GIVEN)
        tf.graph_util.import_graph_def(definition, input_map=known, name="")
    asked = {op.name for op in ops}

    def shape(tensor: Any) -> tuple[int | None, ...] | None:
        if tensor.op.name not in asked:
            return None
        found = known[tensor.name].shape if tensor.name in known else again.get_tensor_by_name(tensor.name).shape
        return None if found.rank is None else tuple(found.as_list())

    return shape


def _guessed(tensor: Any) -> Shape | None:
    """What the trace itself says, taking its open first axis for the batch (whoever relies on it checks)."""
    shape = tensor.shape.as_list() if tensor.shape.rank else []
    if not shape or shape[0] is not None or None in shape[1:]:
        return None
    return (Length(1, 0), *(Length(0, length) for length in shape[1:]))


def _matmul(shapes: BatchShapes, op: Any) -> int:
    """Elements of the result times the length that is summed over."""
    attribute = next(name for name in ("transpose_a", "adj_x") if name in op.node_def.attr)
    left, out = shapes.lengths(op.inputs[0]), shapes.lengths(op.outputs[0])
    return math.prod(out) * left[-2 if op.get_attr(attribute) else -1] // _SIZES[0]


def _conv(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.outputs[0]) * math.prod(shapes.lengths(op.inputs[1])[:-1])


def _depthwise(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.outputs[0]) * math.prod(shapes.lengths(op.inputs[1])[:-2])


def _conv_input(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.inputs[2]) * math.prod(shapes.lengths(op.inputs[1])[:-1])


def _conv_filter(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.inputs[2]) * math.prod(shapes.lengths(op.outputs[0])[:-1])


def _depthwise_input(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.inputs[2]) * math.prod(shapes.lengths(op.inputs[1])[:-2])


def _depthwise_filter(shapes: BatchShapes, op: Any) -> int:
    return shapes.elements(op.inputs[2]) * math.prod(shapes.lengths(op.outputs[0])[:-2])


def _einsum(shapes: BatchShapes, op: Any) -> int:
    """The product of the lengths of all letters."""
    terms = op.get_attr("equation").decode().partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        lengths |= dict(zip(term, shapes.lengths(tensor), strict=True))
    return math.prod(lengths.values()) // _SIZES[0]


_COUNTS = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Conv2D": _conv,
    "Conv3D": _conv,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _conv_input,
    "Conv3DBackpropInputV2": _conv_input,
    "Conv2DBackpropFilter": _conv_filter,
    "Conv3DBackpropFilterV2": _conv_filter,
    "DepthwiseConv2dNativeBackpropInput": _depthwise_input,
    "DepthwiseConv2dNativeBackpropFilter": _depthwise_filter,
    "Einsum": _einsum,
}
