"""Decides whether a constant of a frozen graph is a weight, by what reads it.

An operation that names its inputs (``filter``, ``bias``, ``gamma``) decides. Of sums and products of elements, it is
decided whether the constant fits the channels of a layer. What prepares the images, before any layer, is not a weight, nor
are shapes, limits and single numbers, unless the graph shows that they were variables: freezing a graph leaves the
operation that read one, ``NAME/read`` or ``.../ReadVariableOp``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from engine.graphs.constants import read_constant, shape_of_constant
from engine.graphs.nodes import Node, Tensor
from engine.porting.frozen.channels import Channels
from engine.porting.frozen.constant_graph import ConstantGraph, End
from engine.porting.frozen.roles import ADDS, CHOICES, ROOTS, SCALES, SPECTRA, STATISTICS
from engine.selection.statistics import is_statistic

_READ = re.compile(r"(.*/)?ReadVariableOp(_\d+)?(/_\d+__cf__\d+)?")
_CAPTURED = re.compile(r"(.*/)?(unknown|statefulpartitionedcall_args)(_\d+)?|(.*/)?ReadVariableOp(_\d+)?(/resource)?")
NAMED = re.compile(
    r"(.*[/_.])?(kernel|weights?|w|bias(es)?|b|gamma|beta|alphas?|embeddings?|embedding_table|pos(ition)?_?emb\w*|"
    r"(cls|class)_token)(_\d+)?"
)
_WAYS = ("Identity", "Enter", "Cast", "Reshape", "Switch", "_Arg")
_COLOURS = 4  # the most values of a constant that normalises images, or scales boxes


class Verdict(NamedTuple):
    """What a constant is, and why.

    ``spoken`` says that an operation names its input so. ``role`` (kernel, bias, scale and so on) and ``reader``, the name of
    the operation, are of the first place that makes it a weight.
    """

    kind: Literal["weight", "statistic", "unclear", "constant"]
    reason: str
    spoken: bool = False
    role: str = ""
    reader: str = ""


class Judge:
    """Judges the constants of a graph."""

    def __init__(self, graph: ConstantGraph) -> None:
        self.graph = graph
        self._channels = Channels(graph)
        self._variables: dict[Node, bool] = {}

    def was_variable(self, leaf: Node) -> bool:
        """Whether the graph shows that a constant was a variable before it was frozen."""
        if leaf not in self._variables:
            readers = [each.name for each in self.graph.flat.readers(leaf) if each.op == "Identity"]
            read = any(name == f"{leaf.name}/read" or _READ.fullmatch(name) for name in readers)
            self._variables[leaf] = read or _CAPTURED.fullmatch(leaf.name) is not None
        return self._variables[leaf]

    def judge(self, leaf: Node, shape: Sequence[int]) -> Verdict:
        """Judges a constant that holds floating-point numbers of a shape, or is made into such."""
        size = math.prod(shape)
        if not size:
            return Verdict("constant", "it is empty")
        reached = self.graph.ends(leaf)
        if reached is None:
            return self._doubt(leaf, "too much is computed from it before anything that depends on the inputs")
        ends = [end for end in reached if end.reader in self.graph.varying or end.role]
        if not ends:
            return Verdict("constant", "nothing that depends on the inputs reads it")
        found = [self._judge_end(leaf, tuple(shape), end) for end in ends]
        return self._combine(leaf, ends, found)

    def _combine(self, leaf: Node, ends: Sequence[End], found: Sequence[Verdict]) -> Verdict:
        kinds = {verdict.kind for verdict in found}
        structure = next((end for end in ends if end.role == "structure"), None)
        if kinds & {"weight", "statistic"}:
            if structure is not None:
                where = f"{structure.reader.op} {structure.reader.name}"
                return Verdict(
                    "unclear", f"it is read like a weight, and also as a shape, an index or a condition ({where})"
                )
            taken = [verdict for verdict in found if verdict.kind in ("weight", "statistic")]
            named = is_statistic(re.sub(r"(/ReadVariableOp)?(/resource)?$", "", leaf.name))
            if kinds >= {"weight", "statistic"} and not named and any(v.spoken for v in taken if v.kind == "weight"):
                both = " and ".join(dict.fromkeys(verdict.reason for verdict in taken))
                return Verdict("unclear", f"it is read both as a weight and as a statistic: {both}")
            reasons = list(dict.fromkeys(verdict.reason for verdict in taken))
            text = "; ".join(reasons[:2]) + (f" and {len(reasons) - 2} more" if len(reasons) > 2 else "")
            kind: Literal["weight", "statistic"] = "statistic" if named or "statistic" in kinds else "weight"
            return taken[0]._replace(kind=kind, reason=text, spoken=any(verdict.spoken for verdict in taken))
        unclear = next((verdict for verdict in found if verdict.kind == "unclear"), None)
        return unclear or next(iter(found))

    def _judge_end(self, leaf: Node, shape: tuple[int, ...], end: End) -> Verdict:
        op, name = end.reader.op, end.reader.name
        if end.role == "range":
            return Verdict("constant", f"the range of {op} {name}")
        if end.role == "structure":
            return Verdict("constant", f"a shape, an index or a condition ({op} {name})")
        if end.role:
            return self._judge_role(leaf, shape, end)
        variable = self.was_variable(leaf)
        if math.prod(shape) == 1:
            if variable or self._is_single_bias(end):
                return Verdict("weight", f"read as a variable, by {op} {name}" if variable else f"bias ({op} {name})")
            return Verdict("constant", f"a single number ({op} {name})")
        if op in ADDS | SCALES and not (op in ("RealDiv", "Div") and end.place == 0):
            return self._judge_elementwise(leaf, shape, end, variable)
        if variable:
            return Verdict("weight", f"read as a variable, by {op} {name}")
        return self._doubt(leaf, f"it is read by {op} {name}, which does not say what it is")

    def _judge_role(self, leaf: Node, shape: tuple[int, ...], end: End) -> Verdict:
        """Judges an input that the operation itself says is a kernel, a bias and so on."""
        place = f"{end.role} ({end.reader.op} {end.reader.name})"
        variable = self.was_variable(leaf)
        if not variable and "Mul" in end.through and _is_mask(leaf):
            return Verdict("unclear", f"it consists of zeros and ones and multiplies a {place}, as a mask does")
        if not shape and not variable:
            return Verdict("constant", f"a single number in the {place}")
        others = self.graph.others(end)
        if not variable and end.role == "table" and any(self._is_choice(each) for each in others):
            return Verdict("unclear", f"{end.reader.op} {end.reader.name} looks up in it what the network has chosen")
        if (
            not variable
            and end.role == "kernel"
            and end.reader not in self._behind(others)
            and self._is_spectrum(others)
        ):
            return Verdict("unclear", f"{end.reader.op} {end.reader.name} multiplies a spectrum of the input by it")
        kind: Literal["weight", "statistic"] = "statistic" if end.role in STATISTICS else "weight"
        return Verdict(kind, place, True, end.role, end.reader.name)

    def _judge_elementwise(self, leaf: Node, shape: tuple[int, ...], end: End, variable: bool) -> Verdict:
        """Judges what is added to or multiplied with something that depends on the inputs."""
        op, name = end.reader.op, end.reader.name
        does = "adds it to" if op in ADDS else "multiplies by it"
        others = self.graph.others(end)
        channels = next((known for each in others if (known := self._channels(each)) is not None), None)
        fits = math.prod(shape) == max(shape) == channels
        first = not variable and not any(each.node in self.graph.after_layers for each in others)
        if first and math.prod(shape) <= _COLOURS:
            return Verdict("constant", f"it normalises the input ({op} {name})")
        part = self._part_of_normalisation(leaf, end) if fits or variable else None
        if part is not None:
            kind: Literal["weight", "statistic"] = "statistic" if part in STATISTICS else "weight"
            return Verdict(kind, f"{part} of a normalisation ({op} {name})", role=part, reader=name)
        if first:
            return self._doubt(leaf, f"{op} {name} {does} the input, before any layer")
        if op in SCALES and any(self._is_negative_part(each) for each in others):
            return Verdict("weight", f"slope ({op} {name})", role="slope", reader=name)
        if fits and math.prod(shape) <= _COLOURS and not variable:  # as many numbers as a box has
            fits = any(self._is_of_layer(each, math.prod(shape)) for each in others)
        if fits or (op in SCALES and any(self._is_root(each) for each in others)):
            what = "bias" if op in ADDS else "scale"
            return Verdict("weight", f"{what} ({op} {name})", role=what, reader=name)
        if variable:
            return Verdict("weight", f"read as a variable, by {op} {name}")
        if NAMED.fullmatch(leaf.name):
            return Verdict("weight", f"named like a variable ({op} {name})")
        of = "a tensor of unknown channels" if channels is None else f"a tensor of {channels} channels"
        return self._doubt(leaf, f"{op} {name} {does}{' ' + of if op in ADDS else ', with ' + of}")

    # ---- batch normalisation in single operations

    def _part_of_normalisation(self, leaf: Node, end: End) -> str | None:
        """The part that a constant has in ``x * rsqrt(variance + e) * scale + (offset - mean * ...)``; None for none."""
        if self._is_variance(leaf):
            return "variance"
        product = self._meets_root(leaf, "Mul") if "Mul" in end.through else None
        if product is not None:
            return "mean" if self._is_subtracted(product) else "scale"
        if "Sub" in end.through and self._meets_root(leaf, "Sub") is not None:
            return "offset"
        if end.reader.op == "Sub" and end.place == 1 and not end.through and self._is_scaled_by_root(end.reader):
            return "mean"
        return None

    def _is_variance(self, leaf: Node) -> bool:
        """Whether the root of a constant is taken, perhaps after something small was added."""
        pending, seen = [leaf], {leaf}
        while pending and len(seen) < 64:
            node = pending.pop()
            for reader in self.graph.readers(node):
                if reader in self.graph.varying or reader in seen:
                    continue
                seen.add(reader)
                if reader.op in ROOTS and reader.inputs[0].node is node:
                    return True
                small = reader.op in ("Add", "AddV2", "Maximum") and self._is_single(reader, node)
                if small or reader.op in _WAYS:
                    pending.append(reader)
        return False

    def _is_single(self, reader: Node, but: Node) -> bool:
        others = [self.graph.numbers(each) for each in reader.inputs if each.node is not but]
        return all(each is not None and each.size == 1 for each in others)

    def _is_subtracted(self, node: Node) -> bool:
        """Whether all that becomes of something is that it is subtracted."""
        return all(
            (each.op == "Sub" and each.inputs[1].node is node) or each.op == "Neg" for each in self.graph.readers(node)
        )

    def _meets_root(self, leaf: Node, op: str) -> Node | None:
        """The product or difference in which a constant first meets a constant that has a root in it."""
        pending, seen = [leaf], {leaf}
        while pending and len(seen) < 64:
            node = pending.pop()
            for reader in self.graph.readers(node):
                if reader in self.graph.varying or reader in seen:
                    continue
                seen.add(reader)
                if reader.op == op:
                    met = any(self._has_root(each) for each in reader.inputs if each.node is not node)
                    return reader if met else None
                if reader.op in (*_WAYS, "Neg"):
                    pending.append(reader)
        return None

    def _has_root(self, tensor: Tensor) -> bool:
        if tensor.node in self.graph.varying:
            return False
        return any(node.op in ROOTS for node in self.graph.origins(tensor, most=32))

    def _is_scaled_by_root(self, node: Node) -> bool:
        return any(
            reader.op in SCALES and any(self._has_root(each) for each in reader.inputs if each.node is not node)
            for reader in self.graph.readers(node)
        )

    # ---- the other operand

    def _behind(self, tensors: Sequence[Tensor]) -> set[Node]:
        """The readers of tensors that are computed by a layer."""
        return {
            reader
            for tensor in tensors
            if tensor.node in self.graph.after_layers
            for reader in self.graph.readers(tensor.node)
        }

    def _is_single_bias(self, end: End) -> bool:
        """Whether the only number of a constant is added to the only channel of a layer."""
        others = self.graph.others(end)
        layer = [each for each in others if self.graph.is_product(self.graph.origin(each))]
        return end.reader.op in ADDS and bool(layer) and not end.through and self._channels(layer[0]) == 1

    def _is_of_layer(self, tensor: Tensor, channels: int) -> bool:
        """Whether a tensor is what a product with that many channels computes, perhaps scaled."""
        node = self.graph.origin(tensor)
        for _ in range(2):
            if node.op in ADDS | SCALES:
                node = next((self.graph.origin(each) for each in node.inputs if each.node in self.graph.varying), node)
        return self.graph.is_product(node) and self._channels(Tensor(node, 0)) == channels

    def _is_negative_part(self, tensor: Tensor) -> bool:
        """Whether a tensor is what a PReLU multiplies: -relu(-x), min(x, 0) or x - |x|."""
        node = self.graph.origin(tensor)
        for _ in range(2):
            if node.op in ("Mul", "Neg"):
                node = next((self.graph.origin(each) for each in node.inputs if each.node in self.graph.varying), node)
        before = [self.graph.origin(each).op for each in node.inputs]
        return (node.op == "Relu" and "Neg" in before) or (node.op == "Sub" and "Abs" in before) or (
            node.op == "Minimum" and any(n is not None and not n.any() for n in map(self.graph.numbers, node.inputs))
        )  # fmt: skip

    def _is_root(self, tensor: Tensor) -> bool:
        return self.graph.origin(tensor).op in ("Rsqrt", "Sqrt")

    def _is_choice(self, tensor: Tensor) -> bool:
        node = self.graph.origin(tensor)
        return node.op.startswith(CHOICES)

    def _is_spectrum(self, tensors: Sequence[Tensor]) -> bool:
        return any(node.op in SPECTRA for each in tensors for node in self.graph.origins(each))

    def _doubt(self, leaf: Node, reason: str) -> Verdict:
        """Unclear; but a constant that repeats one number is none that was learned."""
        return Verdict("constant", "it repeats one number") if _is_uniform(leaf) else Verdict("unclear", reason)


def _values(leaf: Node) -> np.ndarray | None:
    proto = leaf.definition.attr["value"].tensor
    held = max(len(proto.tensor_content), proto.ByteSize())
    if math.prod(shape_of_constant(proto)) > held:  # fewer numbers than elements: the last one is repeated
        return np.zeros(1, np.float32) if len(proto.float_val) == 1 else None
    try:
        return read_constant(proto)
    except ValueError:
        return None


def _is_uniform(leaf: Node) -> bool:
    values = _values(leaf)
    return values is not None and values.size > 0 and bool((values == values.reshape(-1)[0]).all())


def _is_mask(leaf: Node) -> bool:
    values = _values(leaf)
    if values is None or values.size < 2:
        return False
    return bool(np.isin(values, (0, 1)).all()) and not _is_uniform(leaf)
