"""A frozen graph, divided into what depends on its inputs and what is computed from constants alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.graphs.constants import read_constant, shape_of_constant
from engine.graphs.graph_variables import HOLDERS
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node, Tensor, find_ancestors, find_argument_names
from engine.graphs.op_kinds import is_random
from engine.graphs.reach import reach
from engine.porting.frozen.roles import JOINS, NO_VALUE, PRODUCTS, ROLES, VALUE_INPUT

_SOURCES = frozenset(["Placeholder", "PlaceholderV2", "PlaceholderWithDefault", *HOLDERS])
_MOST_STEPS = 256  # operations that compute with one constant before what depends on the inputs does
_SMALL = 4096  # elements of a constant that is looked at for its values


class End(NamedTuple):
    """Where something computed from a constant meets what depends on the inputs.

    ``through`` are the operations on the way that compute, such as Mul; ``role`` is that of the input, "" if the operation
    does not say, or "structure" where the value becomes an integer or a condition.
    """

    reader: Node
    place: int
    through: frozenset[str]
    role: str


class ConstantGraph:
    """Answers what reads a constant, and what the other operands are.

    Args:
        definition: a GraphDef.
        outputs: the nodes that are computed; what they do not need is left out. () stands for all.
    """

    def __init__(self, definition: Any, outputs: Collection[str] = ()) -> None:
        self.flat = FlatGraph(definition, unknown=True)
        every = self.flat.nodes
        if outputs:
            needed = find_ancestors(node for name in outputs for node in self._ends_of(name))
            every = [node for node in every if node in needed]
        self.nodes = [node for node in every if not self._is_call(node)]
        self._kept = set(self.nodes)
        self.constants = [node for node in self.nodes if node.op == "Const"]
        unused = [
            r for node in self.constants for r in self.readers(node) if r.op == "Identity" and not self.readers(r)
        ]
        self._kept -= set(unused)
        self.varying = self._find_varying()

    def _ends_of(self, name: str) -> list[Node]:
        node = self.flat.top.get(name)
        return [] if node is None else [node, *node.results]

    @staticmethod
    def _is_call(node: Node) -> bool:
        return bool(node.results)  # its arguments and results are nodes themselves

    def readers(self, node: Node) -> list[Node]:
        """What takes an output of a node, without an Identity of a constant that nothing takes."""
        return [reader for reader in self.flat.readers(node) if reader in self._kept]

    def values(self, node: Node) -> list[Tensor]:
        """The inputs whose values an operation passes on or computes with."""
        place = VALUE_INPUT.get(node.op)
        if place is not None:
            return node.inputs[place : place + 1]
        return node.inputs

    def _find_varying(self) -> set[Node]:
        first = [
            node for node in self.nodes if node.op in _SOURCES or not node.known or node.stateful or is_random(node.op)
        ]

        def following(node: Node) -> list[Node]:
            return [r for r in self.readers(node) if any(tensor.node is node for tensor in self.values(r))]

        return set(reach(first, following))

    # ---- forwards: what reads a constant

    def ends(self, leaf: Node) -> list[End] | None:
        """Where a constant, or what is computed from it alone, meets what depends on the inputs; None if that is far away."""
        found: dict[End, None] = {}
        pending: list[tuple[Node, frozenset[str]]] = [(leaf, frozenset())]
        seen = set(pending)
        while pending:
            if len(seen) > _MOST_STEPS:
                return None
            node, through = pending.pop()
            for reader in self.readers(node):
                if reader.op in NO_VALUE:
                    continue
                for place in (n for n, tensor in enumerate(reader.inputs) if tensor.node is node):
                    if reader in self.varying:
                        found[End(reader, place, through, self.role(reader, place))] = None
                        continue
                    if not _stays_floating(reader):
                        role = "structure" if _becomes_structure(reader) else ""
                        found[End(reader, place, through, role)] = None
                        continue
                    role = self.role(reader, place)
                    if role:  # a product of constants
                        found[End(reader, place, through, role)] = None
                    if role == "range":
                        continue
                    passes = reader.op in JOINS or VALUE_INPUT.get(reader.op) == place or role == "table"
                    step = (reader, through if passes else through | {reader.op})
                    if step not in seen:
                        seen.add(step)
                        pending.append(step)
        return list(found)

    def role(self, node: Node, place: int) -> str:
        """What an input of an operation is for, if its kind says so."""
        roles = ROLES.get(node.op)
        if roles is None:
            return ""
        names = list(find_argument_names(node))
        return roles.get(names[place], "") if place < len(names) else ""

    @cached_property
    def after_layers(self) -> set[Node]:
        """What depends on a layer: a product with constants, a look-up, a normalisation."""
        layers = [
            node
            for node in self.varying
            if node.op in ROLES
            and any(
                self.role(node, place) not in ("", "range", "bias") and tensor.node not in self.varying
                for place, tensor in enumerate(node.inputs)
            )
            and any(tensor.node in self.varying for tensor in node.inputs)
        ]
        return set(reach(layers, self.readers))

    def others(self, end: End) -> list[Tensor]:
        """The other operands that depend on the inputs."""
        return [t for n, t in enumerate(end.reader.inputs) if n != end.place and t.node in self.varying]

    def is_product(self, node: Node) -> bool:
        """Whether an operation multiplies by a kernel, or looks rows of a table up."""
        return bool(PRODUCTS & set(ROLES.get(node.op, {}).values()))

    # ---- backwards: what something is computed from

    def origins(self, tensor: Tensor, *, most: int = 256) -> Iterator[Node]:
        """The nodes that a tensor is computed from, nearest first, without going through products."""
        pending, seen = [tensor.node], {tensor.node}
        while pending and len(seen) < most:
            node = pending.pop(0)
            yield node
            for each in () if self.is_product(node) else node.inputs:
                if each.node not in seen:
                    seen.add(each.node)
                    pending.append(each.node)

    def origin(self, tensor: Tensor) -> Node:
        """The node that computes a tensor, behind those that only pass it on."""
        node = tensor.node
        for _ in range(64):
            place = VALUE_INPUT.get(node.op, 0 if node.op in JOINS and len(node.inputs) == 1 else None)
            if place is None or place >= len(node.inputs):
                break
            node = node.inputs[place].node
        return node

    def numbers(self, tensor: Tensor) -> np.ndarray | None:
        """The values of a small constant; None for anything else."""
        node = self.origin(tensor) if tensor.node.op != "Const" else tensor.node
        if node.op != "Const":
            return None
        proto = node.definition.attr["value"].tensor
        if int(np.prod(shape_of_constant(proto), dtype=np.float64)) > _SMALL:
            return None
        try:
            return read_constant(proto)
        except ValueError:
            return None


def _stays_floating(node: Node) -> bool:
    return not node.output_types or any(_floating(kind) for kind in node.output_types)


def _floating(number: int) -> bool:
    try:
        return bool(tf.as_dtype(number).is_floating)
    except TypeError:
        return False


def _becomes_structure(node: Node) -> bool:
    """Whether an operation turns a number into an integer, a condition or a text."""
    try:
        kinds = [tf.as_dtype(number) for number in node.output_types]
    except TypeError:
        return False
    return all(kind.is_integer or kind.is_bool or kind == tf.string for kind in kinds)
