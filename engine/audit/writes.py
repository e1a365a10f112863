"""Finds which ops write which variable of a graph, without running it.

An op writes a variable that it takes by reference or by handle, unless it is known only to read it. An unknown op thus
counts as a writer: it may be reported needlessly, but it is never missed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.graphs.graph_variables import HOLDERS, GraphVariable, read_node
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import RESOURCE, Node, Tensor, find_argument_names
from engine.graphs.op_kinds import READS
from engine.graphs.reach import reach
from engine.porting.slot_names import is_v1_slot, is_v2_slot

# Ops that can return a handle whose origin is not visible in the graph.
_HANDLES_FROM_ELSEWHERE = re.compile(
    r"Placeholder|TensorList(Get|Pop|Gather|Stack)|TensorArray(Read|Gather|Concat|Pack)|GetNext|Dequeue|Unstage|PyFunc|_Arg|Optional"
)
# The shared name of a handle that is not shared (tensorflow/core: ResourceHandle).
_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"
_APPLY = re.compile(r"(Resource)?(Sparse)?Apply[A-Z]\w*")


@dataclass(frozen=True, eq=False)
class Write:
    """One op that may write one variable; its name is None if it cannot be determined.

    ``position`` is that of the variable among the op's inputs: an optimizer's kernel takes its slots after the weight.
    """

    node: Node
    variable: str | None
    position: int

    @property
    def is_apply(self) -> bool:
        """Whether the op is an optimizer's kernel."""
        return _APPLY.fullmatch(self.node.op) is not None


class Holders:
    """The variables of a graph by name, and the nodes that hold them.

    ``collected`` are the names of the nodes in the collection of trainable variables; ``given`` maps nodes to variables
    for handles that are arguments of the graph.
    """

    def __init__(
        self, flat: FlatGraph, *, collected: Collection[str], given: Mapping[str, GraphVariable] | None = None
    ) -> None:
        self._of: dict[Node, str] = {}
        self.variables: dict[str, GraphVariable] = {}
        self._known: dict[Tensor, frozenset[str | None]] = {}
        first: dict[Any, str] = {}
        for node in flat.nodes:
            variable = (given or {}).get(node.name)
            if variable is None:
                if node.op not in HOLDERS:
                    continue
                variable = read_node(node.definition, name=node.name, collected=node.name in collected)
            # two nodes of one container and shared name hold one variable
            name = first.setdefault(_resource(node), variable.name)
            self._of[node] = name
            self.variables.setdefault(name, variable)

    def nodes(self) -> Mapping[Node, str]:
        """Node -> the name of the variable that it holds."""
        return self._of

    def resolve(self, tensor: Tensor) -> frozenset[str | None]:
        """The names of the variables that a reference or handle may stand for; None among them is one not visible here."""
        if tensor not in self._known:
            found: set[str | None] = set()

            def following(node: Node) -> list[Node]:
                if node in self._of:
                    found.add(self._of[node])
                    return []
                before = [t.node for t in _handles(node)]
                if not before and _HANDLES_FROM_ELSEWHERE.search(node.op):
                    found.add(None)
                return before

            reach([tensor.node], following)
            self._known[tensor] = frozenset(found)
        return self._known[tensor]


def _resource(node: Node) -> Any:
    """The identity of a node's variable: two nodes with the same one hold the same variable."""
    shared, container = node.attr("shared_name"), node.attr("container")
    name = shared.s.decode(errors="replace") if shared is not None else ""
    if not name or name.startswith(_ANONYMOUS) or node.definition is None:
        return node
    return (node.op == "VarHandleOp", container.s if container is not None else b"", name)


def _handles(node: Node) -> Iterable[Tensor]:
    """The inputs from which a reference or handle may pass through a node."""
    if node.passes:
        return node.inputs
    return [
        tensor
        for position, (tensor, kind) in enumerate(zip(node.inputs, node.input_types, strict=True))
        if kind == RESOURCE or position in node.references
    ]


def find_writes(running: Iterable[Node], holders: Holders) -> list[Write]:
    """Finds the variables that nodes may write, in the order of the nodes' names."""
    found = []
    for node in sorted(running, key=lambda one: one.name):
        # the body of a call is searched itself, and an op that returns a handle only passes it on
        if node.passes or node.op in READS or node.results or node.body or RESOURCE in node.output_types:
            continue
        for position, (tensor, kind) in enumerate(zip(node.inputs, node.input_types, strict=True)):
            if kind == RESOURCE or position in node.references:
                variables = holders.resolve(tensor)
                found += [Write(node, variable, position) for variable in sorted(variables, key=str)]
    return found


def find_gradient_inputs(node: Node) -> list[Tensor]:
    """The gradient that an optimizer's kernel takes: its input "grad", or "delta" for gradient descent."""
    names = find_argument_names(node)
    return [tensor for tensor, name in zip(node.inputs, names, strict=True) if name in ("grad", "delta")]


_ACCUMULATOR = re.compile(r"[a-z]+_accumulator(_\d+)?")


def find_slots_by_name(variables: Mapping[str, GraphVariable]) -> list[tuple[str, str]]:
    """Pairs (variable, slot) by names and equal shapes alone, for optimizers without a kernel."""
    found = []
    for name, variable in variables.items():
        if variable.collected:
            continue
        owner, _, last = name.rpartition("/")
        parts = owner.split("/")
        if is_v1_slot(last) or _ACCUMULATOR.fullmatch(last):
            owners = ["/".join(parts[n:]) for n in range(len(parts))]
        elif is_v2_slot(name):
            owners = ["/".join(parts[n:]) for n in range(1, len(parts))]
        else:
            continue
        for one in owners:
            if one in variables and one != name and variables[one].shape == variable.shape:
                found.append((one, name))
                break
    return found
