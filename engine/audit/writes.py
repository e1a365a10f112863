"""Which ops write which variable of a graph, found without running it.

An op writes a variable that it takes by reference or by handle, unless it is known only to read. So an op that nobody
has heard of counts as a writer: it may be reported needlessly, it is not missed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.audit.graphdef import RESOURCE, FlatGraph, Node, Tensor, argument_names
from engine.graphs.graph_variables import HOLDERS, GraphVariable, of_node
from engine.graphs.op_kinds import READS

# Where a handle can come from that is not seen here.
_HANDLES_FROM_ELSEWHERE = re.compile(
    r"Placeholder|TensorList(Get|Pop|Gather|Stack)|TensorArray(Read|Gather|Concat|Pack)|GetNext|Dequeue|Unstage|PyFunc|_Arg|Optional"
)
_ANONYMOUS = (
    "cd2c89b7-88b7-44c8-ad83-06c2a9158347"  # a shared name that is not shared (tensorflow/core: ResourceHandle)
)
_APPLY = re.compile(r"(Resource)?(Sparse)?Apply[A-Z]\w*")


@dataclass(frozen=True, eq=False)
class Write:
    """One op that may write one variable.

    Attributes:
        node: the op.
        variable: name of the variable; None where it cannot be told which.
        position: of the variable among the op's inputs; an optimizer's apply op takes slots after the first.
    """

    node: Node
    variable: str | None
    position: int

    @property
    def is_apply(self) -> bool:
        """Whether the op is an optimizer's kernel."""
        return _APPLY.fullmatch(self.node.op) is not None


class Holders:
    """The variables of a graph, and the nodes that hold them.

    Args:
        flat: the graph.
        collected: names of the nodes in the collection of trainable variables.
        given: node -> variable, for handles that are arguments of the graph.
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
                variable = of_node(node.definition, name=node.name, collected=node.name in collected)
            # two nodes of one container and shared name hold one variable
            name = first.setdefault(_resource(node), variable.name)
            self._of[node] = name
            self.variables.setdefault(name, variable)

    def nodes(self) -> Mapping[Node, str]:
        """Node -> name of the variable it holds."""
        return self._of

    def of(self, tensor: Tensor) -> frozenset[str | None]:
        """Names of the variables that a reference or handle can mean; None among them: one that is not seen here."""
        if tensor not in self._known:
            found: set[str | None] = set()
            seen: set[Node] = set()
            pending = [tensor.node]
            while pending:
                node = pending.pop()
                if node in seen:
                    continue
                seen.add(node)
                if node in self._of:
                    found.add(self._of[node])
                    continue
                before = [t.node for t in _handles(node)]
                pending.extend(before)
                if not before and _HANDLES_FROM_ELSEWHERE.search(node.op):
                    found.add(None)
            self._known[tensor] = frozenset(found)
        return self._known[tensor]


def _resource(node: Node) -> Any:
    """What makes two nodes hold the same variable."""
    shared, container = node.attr("shared_name"), node.attr("container")
    name = shared.s.decode(errors="replace") if shared is not None else ""
    if not name or name.startswith(_ANONYMOUS) or node.definition is None:
        return node
    return (node.op == "VarHandleOp", container.s if container is not None else b"", name)


def _handles(node: Node) -> Iterable[Tensor]:
    """Inputs by which a reference or handle can come through a node."""
    if node.passes:
        return node.inputs
    return [
        tensor
        for position, (tensor, kind) in enumerate(zip(node.inputs, node.takes, strict=True))
        if kind == RESOURCE or position in node.references
    ]


def writes(running: Iterable[Node], holders: Holders) -> list[Write]:
    """What the running nodes may write, in the order of their names."""
    found = []
    for node in sorted(running, key=lambda one: one.name):
        # a call's body is looked at itself; what gives a handle on is no end of its way
        if node.passes or node.op in READS or node.results or node.body or RESOURCE in node.gives:
            continue
        for position, (tensor, kind) in enumerate(zip(node.inputs, node.takes, strict=True)):
            if kind == RESOURCE or position in node.references:
                variables = holders.of(tensor)
                found += [Write(node, variable, position) for variable in sorted(variables, key=str)]
    return found


def gradient_inputs(node: Node) -> list[Tensor]:
    """The gradient that an optimizer's kernel takes: its input "grad", of gradient descent "delta"."""
    return [tensor for tensor, name in zip(node.inputs, argument_names(node), strict=True) if name in ("grad", "delta")]


# What tf.compat.v1.train names its slots; OptimizerV2 names them after the variable, under a scope of its own.
_SLOT = (
    r"(Adam|Momentum|Adagrad|AdagradDA|Adadelta|RMSProp|Ftrl|AdaMax|LARSOptimizer|adam_[mv]|[a-z]+_accumulator)(_\d+)?"
)
_SLOT_V2 = r".+/(m|v|vhat|momentum|accumulator|rms|mg|linear|accum_grad|accum_var)(_\d+)?"


def slots_by_name(variables: Mapping[str, GraphVariable]) -> list[tuple[str, str]]:
    """(variable, slot) by names and equal shapes alone: for optimizers that have no kernel."""
    found = []
    for name, variable in variables.items():
        if variable.collected:
            continue
        owner, _, last = name.rpartition("/")
        parts = owner.split("/")
        if re.fullmatch(_SLOT, last):
            owners = ["/".join(parts[n:]) for n in range(len(parts))]
        elif re.fullmatch(_SLOT_V2, name):
            owners = ["/".join(parts[n:]) for n in range(1, len(parts))]
        else:
            continue
        for one in owners:
            if one in variables and one != name and variables[one].shape == variable.shape:
                found.append((one, name))
                break
    return found
