"""How many channels a tensor of a frozen graph has, as far as the graph says it without shape inference.

Importing a graph infers shapes, but runs parts of it. What decides whether a vector belongs to a layer is only how many
channels the layer has, and that follows from its kernel.
"""

from __future__ import annotations

import math

from engine.graphs.constants import shape_of_constant
from engine.graphs.nodes import Node, Tensor
from engine.porting.frozen.constant_graph import ConstantGraph
from engine.porting.frozen.roles import SAME_SHAPE, VALUE_INPUT

Shape = tuple[int, ...]

_SAME_TEXT = """
    Relu Relu6 Elu Selu LeakyRelu Softplus Softsign Sigmoid Tanh Softmax LogSoftmax Erf Exp Log Neg Abs Square Sqrt Rsqrt
    Reciprocal Floor Round Sign MaxPool MaxPoolV2 AvgPool MaxPool3D AvgPool3D Pad PadV2 MirrorPad ResizeBilinear
    ResizeNearestNeighbor ResizeBicubic ResizeArea LRN Tile SpaceToBatchND BatchToSpaceND Slice StridedSlice ExpandDims Squeeze
    Reverse ReverseV2 Cumsum
"""
_SAME = frozenset(_SAME_TEXT.split()) | SAME_SHAPE
_ELEMENTWISE_TEXT = """
    Add AddV2 Sub Mul RealDiv Div Maximum Minimum SquaredDifference Pow AddN Select SelectV2 FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 BatchNormWithGlobalNormalization
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_TEXT.split())
_REDUCTIONS = frozenset(["Mean", "Sum", "Max", "Min", "Prod"])
_CONVOLUTIONS = frozenset(["Conv2D", "Conv3D", "Conv", "_FusedConv2D"])
_TRANSPOSED = frozenset(["Conv2DBackpropInput", "Conv3DBackpropInput", "Conv3DBackpropInputV2"])
_DEPTHWISE = frozenset(["DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative"])
_PRODUCTS = {"MatMul": "transpose_b", "_FusedMatMul": "transpose_b", "BatchMatMul": "adj_y", "BatchMatMulV2": "adj_y",
             "BatchMatMulV3": "adj_y"}  # fmt: skip


class Channels:
    """The number of channels of every tensor that depends on the inputs, where it is known."""

    def __init__(self, graph: ConstantGraph) -> None:
        self._graph = graph
        self._known: dict[Node, int] = {}
        self._shapes: dict[Node, Shape | None] = {}
        order = _order(graph)
        for _ in range(2):  # loops: what goes round is known the second time
            for node in order:
                if node not in self._known and (found := self._find(node)) is not None:
                    self._known[node] = found

    def __call__(self, tensor: Tensor) -> int | None:
        """The number of channels of a tensor, or the last length of one that is computed from constants."""
        if tensor.node in self._graph.varying:
            return self._known.get(tensor.node)
        shape = self.shape(tensor)
        return max(shape) if shape and max(shape) == math.prod(shape) else shape[-1] if shape else None

    def shape(self, tensor: Tensor) -> Shape | None:
        """The shape of what is computed from constants, where that is simple."""
        pending = [] if tensor.node in self._shapes else [tensor.node]
        while pending:
            node = pending[-1]
            before = [each.node for each in node.inputs if each.node not in self._shapes]
            if node not in self._shapes:
                self._shapes[node] = None  # in a loop, for those that wait for themselves
                pending += [each for each in before if each not in self._graph.varying]
                if before:
                    continue
            self._shapes[node] = self._shape(node)
            pending.pop()
        return self._shapes[tensor.node]

    def _shape(self, node: Node) -> Shape | None:
        if node.op == "Const":
            return shape_of_constant(node.definition.attr["value"].tensor)
        if not node.inputs:
            return None
        if node.op in SAME_SHAPE:
            return self.shape(node.inputs[0])
        if node.op in ("Dequantize", *_SAME - {"Slice", "StridedSlice", "Pad", "ExpandDims", "Squeeze", "Tile"}):
            return self.shape(node.inputs[0])
        if node.op in ("Reshape", "Transpose") and len(node.inputs) > 1:
            numbers, shape = self._graph.numbers(node.inputs[1]), self.shape(node.inputs[0])
            if numbers is None or shape is None or numbers.ndim != 1:
                return None
            if node.op == "Transpose":
                return (
                    tuple(shape[n] for n in numbers.tolist())
                    if sorted(numbers.tolist()) == [*range(len(shape))]
                    else None
                )
            rest = math.prod(length for length in numbers.tolist() if length > 0)
            return tuple(int(n) if n >= 0 else math.prod(shape) // max(1, rest) for n in numbers.tolist())
        if node.op in _ELEMENTWISE:
            shapes = [self.shape(each) for each in node.inputs]
            known = [each for each in shapes if each is not None]
            return max(known, key=math.prod) if len(known) == len(shapes) and known else None
        return None

    def _find(self, node: Node) -> int | None:
        given = node.inputs
        if node.op in ("Placeholder", "PlaceholderV2"):
            declared = node.attr("shape")
            dims = list(declared.shape.dim) if declared is not None else []
            return int(dims[-1].size) if len(dims) > 1 and dims[-1].size > 0 else None
        if node.op in _CONVOLUTIONS and len(given) > 1:
            return self._length(given[1], -1)
        if node.op in _TRANSPOSED and len(given) > 1:
            return self._length(given[1], -2)
        if node.op in _DEPTHWISE and len(given) > 1:
            shape = self.shape(given[1])
            return shape[-1] * shape[-2] if shape is not None and len(shape) == 4 else None
        if node.op in _PRODUCTS and len(given) > 1:
            turned = node.attr(_PRODUCTS[node.op])
            return self._length(given[1], -2 if turned is not None and turned.b else -1)
        if node.op == "Einsum":
            return self._einsum(node)
        if node.op in ("Gather", "GatherV2", "ResourceGather") and given:
            shape = self.shape(given[0]) if given[0].node not in self._graph.varying else None
            return shape[-1] if shape is not None and len(shape) > 1 else None
        if node.op in ("BiasAdd", "BiasAddV1") and len(given) > 1:
            return self(given[0]) or self._length(given[1], 0)
        if node.op in ("Reshape", "Transpose"):
            return self._moved(node)
        if node.op in _REDUCTIONS and len(given) > 1:
            axes = self._graph.numbers(given[1])
            return self(given[0]) if axes is not None and not _takes_last(sorted(axes.reshape(-1).tolist())) else None
        if node.op in ("Split", "SplitV", "ConcatV2", "Concat"):
            return self._joined(node)
        if node.op in _ELEMENTWISE:
            found = [length for each in given if (length := self(each)) is not None and length > 1]
            varying = [length for each in given if each.node in self._graph.varying and (length := self(each))]
            return max(found) if found else varying[0] if varying else None
        if node.op in _SAME:
            place = VALUE_INPUT.get(node.op, 0)
            wanted = given if node.op in ("Merge", "RefMerge", "_Arg", "_Loop", "_Ret") else given[place : place + 1]
            return next((length for each in wanted if (length := self(each)) is not None), None)
        return None

    def _length(self, tensor: Tensor, axis: int) -> int | None:
        shape = self.shape(tensor) if tensor.node not in self._graph.varying else None
        return shape[axis] if shape is not None and len(shape) >= max(-axis, axis + 1) else None

    def _einsum(self, node: Node) -> int | None:
        equation = node.attr("equation")
        sides = equation.s.decode(errors="replace").replace(" ", "").split("->") if equation is not None else []
        if len(sides) != 2 or not sides[1]:
            return None
        for label, tensor in zip(sides[0].split(","), node.inputs, strict=False):
            shape = self.shape(tensor) if tensor.node not in self._graph.varying else None
            if shape is not None and len(shape) == len(label) and sides[1][-1] in label:
                return shape[label.index(sides[1][-1])]
        return None

    def _moved(self, node: Node) -> int | None:
        """Channels after a Reshape or a Transpose."""
        if len(node.inputs) < 2:
            return None
        value, how = node.inputs[0], node.inputs[1]
        numbers = self._graph.numbers(how)
        if node.op == "Transpose":
            order = None if numbers is None else numbers.reshape(-1).tolist()
            kept = order is not None and (order[-1:] == [len(order) - 1] or order in ([0, 2, 3, 1], [0, 3, 1, 2]))
            return self(value) if kept else None
        if numbers is not None:
            return int(numbers[-1]) if numbers.ndim == 1 and numbers.size and numbers[-1] > 0 else None
        made = self._graph.origin(how)
        if made.op == "Shape" and made.inputs:
            return self(made.inputs[0])
        last = self._graph.numbers(made.inputs[-1]) if made.op == "Pack" and made.inputs else None
        return int(last) if last is not None and last.ndim == 0 and last > 0 else None

    def _joined(self, node: Node) -> int | None:
        """Channels after a Split, or a concatenation."""
        if node.op in ("Split", "SplitV"):
            axis = self._graph.numbers(node.inputs[0 if node.op == "Split" else -1])
            whole = self(node.inputs[1 if node.op == "Split" else 0])
            parts = node.attr("num_split")
            if axis is None or whole is None or parts is None or parts.i < 1 or node.op == "SplitV":
                return None
            return whole // parts.i if int(axis.reshape(-1)[0]) != 0 else whole
        values, where = (
            (node.inputs[:-1], node.inputs[-1]) if node.op == "ConcatV2" else (node.inputs[1:], node.inputs[0])
        )
        axis, lengths = self._graph.numbers(where), [self(each) for each in values]
        if axis is None or axis.size != 1 or None in lengths:
            return None
        last = int(axis.reshape(-1)[0]) in (-1, 3)
        return sum(length for length in lengths if length is not None) if last else None


def _takes_last(axes: list[int]) -> bool:
    """Whether a reduction over these axes may take the channels: over the last one, but not over two of an image."""
    if axes in ([2, 3], [0, 2, 3]):
        return False  # an image with its channels first
    return -1 in axes or 3 in axes or axes == [2]


def _order(graph: ConstantGraph) -> list[Node]:
    """The varying nodes, each after those that it reads, except around loops."""
    found: dict[Node, None] = {}
    started: set[Node] = set()
    for first in graph.nodes:
        if first not in graph.varying or first in started:
            continue
        stack = [(first, iter(first.inputs))]
        started.add(first)
        while stack:
            node, rest = stack[-1]
            for tensor in rest:
                if tensor.node in graph.varying and tensor.node not in started:
                    started.add(tensor.node)
                    stack.append((tensor.node, iter(tensor.node.inputs)))
                    break
            else:
                found[node] = None
                stack.pop()
    return list(found)
