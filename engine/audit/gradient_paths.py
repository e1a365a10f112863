"""Finds where a graph's gradients come from: its losses, the variables they reach, and the ops that cut a path.

``tf.gradients`` names its ops ``SCOPE/OP_grad/...`` after the forward op, and the nodes that take its first gradient
(``SCOPE/Fill``, ``SCOPE/grad_ys_0``) belong to the loss. A loss is then split where scalars are added: a term that depends
on no example is a regulariser. Whether a gradient passes through an op is looked up in TensorFlow's own registry.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.audit.writes import Holders
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node, Tensor, find_data_ancestors
from engine.graphs.op_kinds import is_random
from engine.graphs.reach import reach

_SEED = re.compile(r"(?P<scope>(?:.*[/:])?gradients(?:_\d+)?)/(?:Fill|grad_ys|ones)(?:_\d+)?")
# Ops registered with a gradient that is None or zero.
_ZERO_GRADIENT = frozenset(
    ["StopGradient", "PreventGradient", "Floor", "Ceil", "Round", "Rint", "Sign", "ArgMax", "ArgMin"]
)
# Ops whose results do not depend on the values of their inputs.
_SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank", "VariableShape", "ZerosLike", "OnesLike", "TensorListLength"])
_ADDITIVE = frozenset(["Add", "AddV2", "AddN", "Sub", "Neg", "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"])
_SCALING = frozenset(["Mul", "RealDiv", "Div", "DivNoNan", "MulNoNan"])
_REDUCING = frozenset(["Sum", "Mean"])
_PACKING = frozenset(["Pack", "ConcatV2"])
# A term computed by these ops alone is the norm of a weight.
_NORM = frozenset([
    "Abs", "Add", "AddN", "AddV2", "Cast", "Const", "Identity", "L2Loss", "Mean", "Mul", "Pow", "Prod", "RealDiv",
    "ReadVariableOp", "Reshape", "Sqrt", "Square", "StopGradient", "Sum", "_Arg", "_Ret", "VarHandleOp", "Variable",
    "VariableV2",
])  # fmt: skip
_KEEP_ZERO = frozenset(
    ["BroadcastTo", "Cast", "Enter", "Exit", "ExpandDims", "Identity", "Neg", "RealDiv", "Reshape", "Switch", "Tile"]
)
_EXAMPLES = re.compile(r"Placeholder|PyFunc|ReadFile|GetNext|Dequeue")
_DIFFERENTIABLE = frozenset(
    kind
    for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, tf.resource, tf.variant)
    for kind in (dtype.as_datatype_enum, tensorflow_private.reference_type(dtype).as_datatype_enum)
)


class GradientPaths:
    """The variables that the gradients of the losses reach.

    Args:
        flat, holders: the graph and its variables.
        losses, regularisers: the tensors of the losses, from ``find_losses``, and those known to be regularisers.
        weights: the names of the variables that may train; terms of a loss without any of them are ignored.

    Attributes:
        known: whether there is a loss at all; if not, nothing is known of gradients.
        reached, regularised: the names of the variables that the gradient of a loss, and of a regulariser, reaches.
        read_by_losses: the names of those that a loss or regulariser is computed from.
    """

    def __init__(
        self,
        flat: FlatGraph,
        holders: Holders,
        *,
        losses: Sequence[Tensor],
        weights: Collection[str],
        regularisers: Sequence[Tensor] = (),
    ) -> None:
        self._flat, self._holders = flat, holders
        self._on_weights = find_dependents(flat, (node for node, name in holders.nodes().items() if name in weights))
        self._on_examples = _on_examples(flat, holders)
        terms = self._terms(losses)
        data, norms = self._sorted(terms)
        self.known = bool(terms)
        norms += regularisers
        self._connected = _back(data, stopping=False)
        self._nodes: dict[str, list[Node]] = {}
        for node, name in holders.nodes().items():
            if node in self._connected:
                self._nodes.setdefault(name, []).append(node)
        self.reached = self._names(_back(data, stopping=True))
        self.regularised = self._names(_back(norms, stopping=True))
        self.read_by_losses = self._names(find_data_ancestors([*data, *norms]))

    def _names(self, nodes: Iterable[Node]) -> frozenset[str]:
        held = self._holders.nodes()
        return frozenset(held[node] for node in nodes if node in held)

    def find_cuts(self, name: str) -> list[Node]:
        """The ops that cut every path from a variable to the losses; empty if there is no path, or an open one."""
        if name in self.reached:
            return []
        found: dict[Node, None] = {}

        def following(node: Node) -> Iterator[Node]:
            for reader in self._flat.readers(node):
                if reader not in self._connected or reader.op in _SHAPES:
                    continue
                positions = [p for p, tensor in enumerate(reader.inputs) if tensor.node is node]
                if all(_stops(reader, position) for position in positions):
                    found[reader] = None
                else:
                    yield reader

        reach(self._nodes.get(name, ()), following)
        # a stop_gradient is intended, a comparison next to it is not
        intended = [node for node in found if node.op in ("StopGradient", "PreventGradient")]
        return sorted(intended or found, key=lambda node: node.name)

    def _terms(self, losses: Iterable[Tensor]) -> list[Tensor]:
        """Splits sums of scalars into their terms; terms without a weight are left out."""
        found = reach(losses, lambda tensor: self._addends(tensor) or ())
        return [tensor for tensor in found if self._has_weight(tensor) and self._addends(tensor) is None]

    def _addends(self, tensor: Tensor) -> Sequence[Tensor] | None:
        """The tensors that a scalar is the sum of; None if it is a term itself."""
        if not self._has_weight(tensor):
            return ()
        node = tensor.node
        values = [t for t, kind in zip(node.inputs, node.input_types, strict=True) if kind in _DIFFERENTIABLE]
        if node.passes:
            return node.inputs
        if node.op in _ADDITIVE:
            return values
        if node.op in _REDUCING and values and values[0].node.op in _PACKING:
            return values[0].node.inputs
        return values if node.op in _SCALING and sum(map(self._has_weight, values)) == 1 else None

    def _has_weight(self, tensor: Tensor) -> bool:
        return tensor.node in self._on_weights

    def _sorted(self, terms: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The terms that depend on examples, and the regularisers."""
        data = [term for term in terms if term.node in self._on_examples]
        if not data:  # the examples are constants: a term that is more than a norm of weights is the loss
            data = [term for term in terms if not {n.op for n in find_data_ancestors([term])} <= _NORM]
        return (data, [term for term in terms if term not in data]) if data else (terms, [])


def find_losses(flat: FlatGraph, assigned: Iterable[Tensor], collected: Iterable[str]) -> list[Tensor]:
    """Finds the tensors that were differentiated, by the names of gradients or else by the collection of losses.

    ``assigned`` are the inputs of the ops that write variables: they depend on the gradients whose loss is sought.
    """
    found: dict[Tensor, None] = {}
    for node in find_data_ancestors(assigned):
        match = _SEED.fullmatch(node.name)
        if match is None:
            continue
        scope = match["scope"] + "/"
        call = scope[: scope.rfind(":") + 1]  # the prefix CALL: in the body of a call; the forward ops share it
        for reader in flat.readers(node):
            if reader.name.startswith(scope):
                rest = reader.name.removeprefix(scope)
                for end in re.finditer("_grad/", rest):
                    found |= dict.fromkeys(flat.outputs(call + rest[: end.start()]))
    if not found:
        for name in collected:
            found |= dict.fromkeys(flat.outputs(name.partition(":")[0])[:1])
    return list(found)


def is_seed(node: Node) -> bool:
    """Whether a node is the first gradient, from which ``tf.gradients`` starts."""
    return _SEED.fullmatch(node.name) is not None


def _on_examples(flat: FlatGraph, holders: Holders) -> set[Node]:
    """The nodes whose values depend on examples or on random numbers, not only on constants and variables."""
    held = holders.nodes()
    sources = []
    for node in flat.nodes:
        given = not node.inputs and node.output_types and node.op != "Const" and not node.passes
        draws = is_random(node.op.removeprefix("Stateless"))  # with or without a state of its own
        if (given or draws or _EXAMPLES.search(node.op)) and node not in held:
            sources.append(node)
    return find_dependents(flat, sources)


def find_dependents(flat: FlatGraph, nodes: Iterable[Node]) -> set[Node]:
    """These nodes, and all nodes whose values depend on them."""
    return set(reach(nodes, flat.readers))


def _back(tensors: Iterable[Tensor], *, stopping: bool) -> set[Node]:
    """The nodes from which values flow into the tensors; with ``stopping``, only along paths that a gradient can take."""

    def following(tensor: Tensor) -> Iterator[Tensor]:
        node = tensor.node
        for position, before in enumerate(node.inputs if node.op not in _SHAPES else ()):
            if node.op == "IdentityN" and node.attr("_gradient_op_type") is None and position != tensor.output:
                continue
            if not (stopping and _stops(node, position)):
                yield before

    return {tensor.node for tensor in reach(tensors, following)}


def _stops(node: Node, position: int) -> bool:
    """Whether a node passes no gradient back to one of its inputs."""
    if node.passes or node.attr("_gradient_op_type") is not None:
        return False
    if node.input_types[position] not in _DIFFERENTIABLE or node.op in _ZERO_GRADIENT:
        return True
    if node.op.startswith("FusedBatchNorm") and not node.op.endswith(("Grad", "GradV2", "GradV3")) and position > 2:
        return True  # its moving moments count as constants
    return not tensorflow_private.has_gradient(node.op)


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero for every feed, as far as a few ops tell."""
    return _is_zero(tensor.node, {}, 0)


def _is_zero(node: Node, known: dict[Node, bool], depth: int) -> bool:
    if node in known or depth > 100:
        return known.get(node, False)
    known[node] = False  # until shown otherwise, since it may be part of a loop
    zeros = (_is_zero(before.node, known, depth + 1) for before in node.inputs)
    if node.op == "Const":
        known[node] = _all_zero(node.definition.attr["value"].tensor)
    elif node.op == "ZerosLike":
        known[node] = True
    elif node.op in ("Mul", "MulNoNan"):
        known[node] = any(zeros)
    elif node.op in ("Add", "AddV2", "AddN", "Sub", "Merge", "Select", "SelectV2") or node.passes:
        known[node] = bool(node.inputs) and all(zeros)
    elif node.op == "Fill":
        known[node] = _is_zero(node.inputs[1].node, known, depth + 1)
    elif node.op in _KEEP_ZERO and node.inputs:
        known[node] = next(zeros)
    return known[node]


def _all_zero(value: Any) -> bool:
    """Whether a TensorProto is all zeros; the array is not built, since the declared shape may be false."""
    if not tf.as_dtype(value.dtype).is_floating:
        return False
    return not any(value.tensor_content) and not any([*value.half_val, *value.float_val, *value.double_val])
