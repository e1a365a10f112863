"""Where a graph's gradients come from: its losses, the variables they reach, and the ops that cut a path.

The loss is found from the optimizer's side: ``tf.gradients`` names what it makes ``SCOPE/OP_grad/...`` after the
forward op, and the nodes that take its first gradient (``SCOPE/Fill``, ``SCOPE/grad_ys_0``) are those of the loss.
Without such names, the collection of losses is asked. The loss is then taken apart where scalars are added: a term
that depends on no example is a regulariser. Whether a gradient passes an op is asked of TensorFlow's own registry.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.audit.graphdef import FlatGraph, Node, Tensor, data_ancestors
from engine.audit.writes import Holders

_SEED = re.compile(r"(?P<scope>(?:.*[/:])?gradients(?:_\d+)?)/(?:Fill|grad_ys|ones)(?:_\d+)?")
# Registered with a gradient, but it is none, or zero.
_ZERO_GRADIENT = frozenset(
    ["StopGradient", "PreventGradient", "Floor", "Ceil", "Round", "Rint", "Sign", "ArgMax", "ArgMin"]
)
# What they give says nothing of the values that they take.
_SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank", "VariableShape", "ZerosLike", "OnesLike", "TensorListLength"])
_ADDITIVE = frozenset(["Add", "AddV2", "AddN", "Sub", "Neg", "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"])
_SCALING = frozenset(["Mul", "RealDiv", "Div", "DivNoNan", "MulNoNan"])
_REDUCING = frozenset(["Sum", "Mean"])
_PACKING = frozenset(["Pack", "ConcatV2"])
# A term made of these alone, and of one variable, is the norm of a weight.
_NORM = frozenset(
    [
        "Abs",
        "Add",
        "AddN",
        "AddV2",
        "Cast",
        "Const",
        "Identity",
        "L2Loss",
        "Mean",
        "Mul",
        "Pow",
        "Prod",
        "RealDiv",
        "ReadVariableOp",
        "Reshape",
        "Sqrt",
        "Square",
        "StopGradient",
        "Sum",
        "_Arg",
        "_Ret",
        "VarHandleOp",
        "Variable",
        "VariableV2",
    ]
)
_KEEP_ZERO = frozenset(
    ["BroadcastTo", "Cast", "Enter", "Exit", "ExpandDims", "Identity", "Neg", "RealDiv", "Reshape", "Switch", "Tile"]
)
_EXAMPLES = re.compile(
    r"Placeholder|Random|Multinomial|PyFunc|ReadFile|GetNext|Dequeue|Stateful(Uniform|Trunc|Standard)"
)
_DIFFERENTIABLE = frozenset(
    kind
    for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, tf.resource, tf.variant)
    for kind in (dtype.as_datatype_enum, tensorflow_private.reference_type(dtype).as_datatype_enum)
)


class GradientPaths:
    """Which variables a gradient of the losses reaches.

    Args:
        flat, holders: the graph and its variables.
        losses: tensors of the losses, as ``find_losses`` gives them; none: nothing can be said.
        regularisers: tensors known to be regularisers.
        weights: names of variables that may train: what a loss is taken apart by.

    Attributes:
        known: whether there is a loss at all.
        reached: names of variables with a way for the gradient of a loss, regularisers left out.
        regularised: with a way for the gradient of a regulariser.
        read_by_losses: whose values are in a loss or regulariser.
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
        self._on_weights = forward(flat, (node for node, name in holders.nodes().items() if name in weights))
        self._on_examples = _on_examples(flat, holders)
        terms = self._terms(losses)
        data, norms = self._sorted(terms)
        self.known = bool(terms)
        norms += regularisers
        self._connected = _back(data, stopping=False)
        self._ways: dict[str, list[Node]] = {}
        for node, name in holders.nodes().items():
            if node in self._connected:
                self._ways.setdefault(name, []).append(node)
        self.reached = self._names(_back(data, stopping=True))
        self.regularised = self._names(_back(norms, stopping=True))
        self.read_by_losses = self._names(data_ancestors([*data, *norms]))

    def _names(self, nodes: Iterable[Node]) -> frozenset[str]:
        held = self._holders.nodes()
        return frozenset(held[node] for node in nodes if node in held)

    def cuts(self, name: str) -> list[Node]:
        """The ops that cut every way from a variable to the losses; none when there is no way or one is open."""
        if name in self.reached:
            return []
        found: dict[Node, None] = {}
        pending = list(self._ways.get(name, ()))
        seen: set[Node] = set()
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            for reader in self._flat.readers(node):
                if reader not in self._connected or reader.op in _SHAPES:
                    continue
                positions = [p for p, tensor in enumerate(reader.inputs) if tensor.node is node]
                if all(_stops(reader, position) for position in positions):
                    found[reader] = None
                else:
                    pending.append(reader)
        # a stop_gradient is meant, a comparison beside it is not
        meant = [node for node in found if node.op in ("StopGradient", "PreventGradient")]
        return sorted(meant or found, key=lambda node: node.name)

    def _terms(self, losses: Iterable[Tensor]) -> list[Tensor]:
        """Takes sums of scalars apart; terms that no weight is in are left out."""
        found: dict[Tensor, None] = {}
        pending = list(losses)
        seen: set[Tensor] = set()
        while pending:
            tensor = pending.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if not self._has_weight(tensor):
                continue
            node = tensor.node
            values = [t for t, kind in zip(node.inputs, node.takes, strict=True) if kind in _DIFFERENTIABLE]
            if node.passes:
                pending += node.inputs
            elif node.op in _ADDITIVE:
                pending += values
            elif node.op in _REDUCING and values and values[0].node.op in _PACKING:
                packed = values[0].node
                pending += packed.inputs
            elif node.op in _SCALING and sum(map(self._has_weight, values)) == 1:
                pending += values
            else:
                found[tensor] = None
        return list(found)

    def _has_weight(self, tensor: Tensor) -> bool:
        return tensor.node in self._on_weights

    def _sorted(self, terms: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Terms of the data, and regularisers."""
        data = [term for term in terms if term.node in self._on_examples]
        if not data:  # examples that are constants: a term that is more than a norm of weights is the loss
            data = [term for term in terms if not {n.op for n in data_ancestors([term])} <= _NORM]
        return (data, [term for term in terms if term not in data]) if data else (terms, [])


def find_losses(flat: FlatGraph, assigned: Iterable[Tensor], collected: Iterable[str]) -> list[Tensor]:
    """The tensors whose gradient was taken, as far as names or the collection of losses tell.

    Args:
        assigned: what ops that write variables take: gradients whose loss is looked for are among what these depend on.
        collected: names in the collection of losses, used where the names of gradients tell nothing.
    """
    found: dict[Tensor, None] = {}
    for node in data_ancestors(assigned):
        match = _SEED.fullmatch(node.name)
        if match is None:
            continue
        for reader in flat.readers(node):
            scope = match["scope"] + "/"
            if not reader.name.startswith(scope):
                continue
            rest = reader.name.removeprefix(scope)
            for end in [m.start() for m in re.finditer("_grad/", rest)]:
                found |= dict.fromkeys(flat.outputs(_outer(scope) + rest[:end]))
    if not found:
        for name in collected:
            found |= dict.fromkeys(flat.outputs(name.partition(":")[0])[:1])
    return list(found)


def is_seed(node: Node) -> bool:
    """Whether this is the first gradient, which ``tf.gradients`` starts from."""
    return _SEED.fullmatch(node.name) is not None


def _outer(scope: str) -> str:
    """The call, with its colon, in whose body a scope lies: forward ops are named from there."""
    return scope[: scope.rindex(":") + 1] if ":" in scope else ""


def _on_examples(flat: FlatGraph, holders: Holders) -> set[Node]:
    """Nodes whose values depend on examples or chance: on what is neither constant nor variable."""
    held = holders.nodes()
    sources = []
    for node in flat.nodes:
        given = not node.inputs and node.gives and node.op != "Const" and not node.passes
        if (given or _EXAMPLES.search(node.op)) and node not in held:
            sources.append(node)
    return forward(flat, sources)


def forward(flat: FlatGraph, nodes: Iterable[Node]) -> set[Node]:
    """Nodes whose values depend on these, and these."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(flat.readers(node))
    return found


def _back(tensors: Iterable[Tensor], *, stopping: bool) -> set[Node]:
    """Nodes from which values reach the tensors; with ``stopping``, only ways that a gradient can go back."""
    seen: set[Tensor] = set()
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        node = tensor.node
        if node.op in _SHAPES:
            continue
        for position, before in enumerate(node.inputs):
            if node.op == "IdentityN" and node.attr("_gradient_op_type") is None and position != tensor.output:
                continue
            if not (stopping and _stops(node, position)):
                pending.append(before)
    return {tensor.node for tensor in seen}


def _stops(node: Node, position: int) -> bool:
    """Whether no gradient goes back through a node to one of its inputs."""
    if node.passes or node.attr("_gradient_op_type") is not None:
        return False
    if node.takes[position] not in _DIFFERENTIABLE or node.op in _ZERO_GRADIENT:
        return True
    if node.op.startswith("FusedBatchNorm") and not node.op.endswith(("Grad", "GradV2", "GradV3")) and position > 2:
        return True  # moving moments are constants to it
    return not tensorflow_private.has_gradient(node.op)


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero whatever the graph is fed with, as far as a few ops tell."""
    return _is_zero(tensor.node, {}, 0)


def _is_zero(node: Node, known: dict[Node, bool], depth: int) -> bool:
    if node in known or depth > 100:
        return known.get(node, False)
    known[node] = False  # within a loop
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
    """Of a TensorProto, without making the array: what it says of its shape need not be true."""
    if not tf.as_dtype(value.dtype).is_floating:
        return False
    return not any(value.tensor_content) and not any([*value.half_val, *value.float_val, *value.double_val])
