"""How the shapes in a traced function depend on the batch size B, and what its operations cost per example.

A graph traced with an unknown batch size does not record where the batch went: [None, 384] may have B or 197 B rows.
Its shapes are therefore inferred again at two batch sizes, from which each length is found as ``each * B + fixed``. That
takes as long as tracing, so the second size is tried only where one does not settle it: most lengths that the trace does
not know are small multiples of the first size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from engine.graphs.reach import reach

_SIZES = (32749, 7919)  # primes that are not a dimension of any model
_SETTLED = 1024  # times B; a larger multiple may have grown faster than B, as B * B does
SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank"])
_GIVEN = "batch_shapes/given"  # a name that no analysed graph uses
_ELEMENT = 0.02  # multiply-adds per element: small enough to decide only between cuts of equal bytes
_CONTROL_FLOW_MACS = 10**9  # high: a loop or a branch is recomputed only where nothing else can be cut


class Length(NamedTuple):
    """The length of one axis: ``each * B + fixed``."""

    each: int
    fixed: int


Shape = tuple[Length, ...]
Lengths = tuple[int | None, ...] | None


class BatchShapes:
    """The shapes in a traced graph as functions of the batch size. Call it with a tensor to get its shape.

    Args:
        graph: the graph, traced with an unknown batch size.
        inputs: its placeholders of examples, whose first axis is the batch.
        ops: the operations to analyse, which must include all that they depend on; None analyses the whole graph.
    """

    def __init__(self, graph: Any, inputs: Sequence[Any], ops: Collection[Any] | None = None) -> None:
        self._graph, self._inputs = graph, inputs
        self._ops = graph.get_operations() if ops is None else ops
        self._known = {op.name for op in self._ops}

    @functools.cached_property
    def _first(self) -> dict[str, Lengths]:
        return _infer(self._graph, self._ops, self._inputs, {}, _SIZES[0])

    @functools.cached_property
    def _second(self) -> dict[str, Lengths]:
        """The lengths at the second size of what the first one does not settle, from the settled tensors before it."""
        given: dict[str, Any] = {}

        def before(op: Any) -> list[Any]:
            found = []
            for tensor in op.inputs:
                settled = self._settle(tensor) if tensor.dtype.is_floating else None  # the values of others are lengths
                lengths = [n.each * _SIZES[1] + n.fixed for n in settled or () if isinstance(n, Length)]
                if settled is None or len(lengths) < len(settled):
                    found.append(tensor.op)
                else:
                    given[tensor.name] = tensor.dtype, lengths
            return found

        open_ = [op for op in self._ops if any(isinstance(n, int) for t in op.outputs for n in self._settle(t) or ())]
        needed = reach(open_, before).keys()
        return _infer(self._graph, [op for op in self._ops if op in needed], self._inputs, given, _SIZES[1])

    def _at(self, tensor: Any, sizes: dict[str, Lengths]) -> Lengths:
        """The lengths of a tensor at one size; None if the rank is not known, or the operation is not analysed."""
        if tensor.op.name not in self._known:
            return None
        return sizes[tensor.name] if tensor.name in sizes else tuple(tensor.shape)

    def _settle(self, tensor: Any) -> list[Length | int | None] | None:
        """Each length of a tensor, as far as the first size tells: a number stands for itself, and None is not known."""
        first = self._at(tensor, self._first)
        if first is None:
            return None
        traced = tensor.shape if tensor.shape.rank == len(first) else [None] * len(first)
        found: list[Length | int | None] = []
        for one, static in zip(first, traced, strict=True):
            if one is not None and (static is not None or one == 1):
                found.append(Length(0, one))
            elif one is not None and one % _SIZES[0] == 0 and 1 <= one // _SIZES[0] <= _SETTLED:
                found.append(Length(one // _SIZES[0], 0))
            else:
                found.append(one)
        return found

    def _lengths(self, tensor: Any) -> list[Length | Literal["nonlinear"] | None] | None:
        """Each length of a tensor: None if it is not known, "nonlinear" if it does not grow linearly with the batch."""
        settled = self._settle(tensor)
        if settled is None:
            return None
        found: list[Length | Literal["nonlinear"] | None] = []
        for place, length in enumerate(settled):
            if isinstance(length, Length) or length is None:
                found.append(length)
                continue
            second = self._at(tensor, self._second)
            if second is None or len(second) != len(settled):
                return None
            found.append(_line(length, second[place]))
        return found

    def __call__(self, tensor: Any) -> Shape | None:
        """Returns the shape of one of the graph's tensors, or None if it cannot be known."""
        found = self._lengths(tensor)
        if found is None or None in found:
            return _guessed(tensor)
        lengths = [length for length in found if isinstance(length, Length)]
        return tuple(lengths) if len(lengths) == len(found) else None

    def bound(self, tensor: Any) -> Shape:
        """Returns a shape for counting bytes: a length that does not grow linearly is rounded up to a multiple of B.

        A length that could not be inferred counts 1. A tensor of unknown rank, as the result of a call, has its shape in the
        trace, whose first length is taken to be B; if that is not known either, it counts 1.
        """
        at_first = self._at(tensor, self._first)
        if at_first is None:
            return _guessed(tensor) or ()
        lengths = []
        for length, one in zip(self._lengths(tensor) or (), at_first, strict=False):
            if isinstance(length, Length):
                lengths.append(length)
            else:
                lengths.append(Length(0, 1) if one is None or length is None else Length(-(-one // _SIZES[0]), 0))
        return tuple(lengths)

    def certain(self, tensor: Any) -> bool:
        """Whether every length was inferred."""
        found = self._lengths(tensor)
        return found is not None and None not in found

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


def _infer(
    graph: Any, ops: Collection[Any], inputs: Sequence[Any], given: Mapping[str, tuple[Any, list[int]]], size: int
) -> dict[str, Lengths]:
    """The lengths for ``size`` examples of each tensor that the trace does not know, by name; an unknown length is None.

    ``given`` has the dtypes and lengths of tensors, by name, that other operations than ``ops`` make.
    """
    whole, names = graph.as_graph_def(), {op.name for op in ops}
    definition = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    definition.node.extend(node for node in whole.node if node.name in names)
    for node in definition.node:
        node.attr.pop("_class", None)  # colocation with operations that are not analysed
        if given:
            data = [source for source in node.input if not source.startswith("^")]
            del node.input[:]
            node.input.extend(data)
    batch = {id(tensor) for tensor in inputs}
    with tf.Graph().as_default() as again:
        known = {n: tf.compat.v1.placeholder(dtype, lengths, name=_GIVEN) for n, (dtype, lengths) in given.items()}
        for op in ops:
            for tensor in op.outputs:
                if id(tensor) in batch:
                    shape_now = [size, *tensor.shape[1:]]
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, shape_now, name=_GIVEN)
                elif op.inputs and any(source.dtype == tf.resource for source in op.inputs) and not has_functions(op):
                    # a read of a variable: its shape is known here, but not in a graph without the variable
                    known[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=_GIVEN)
        tf.graph_util.import_graph_def(definition, input_map=known, name="")
    found: dict[str, Lengths] = {}
    for op in ops:  # only the lengths are kept, because a graph takes much memory
        for number, tensor in enumerate(op.outputs):
            if not tensor.shape.is_fully_defined():
                inferred = (
                    known[tensor.name] if tensor.name in known else again.get_operation_by_name(op.name).outputs[number]
                )
                found[tensor.name] = None if inferred.shape.rank is None else tuple(inferred.shape)
    return found


def _line(one: int, other: int | None) -> Length | Literal["nonlinear"] | None:
    """The length that is ``one`` and ``other`` at the two sizes."""
    if other is None:
        return None
    each, rest = divmod(one - other, _SIZES[0] - _SIZES[1])
    fixed = one - each * _SIZES[0]
    return (
        "nonlinear" if rest or fixed <= -_SIZES[1] else Length(each, fixed)
    )  # B * B lies on a line that begins far below 0


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
