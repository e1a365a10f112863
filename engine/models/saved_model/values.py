"""Turns a flat trace into a program from values to values: no operation of the file reads or writes a variable itself.

The placeholder of a variable's handle becomes one of its value, a read becomes an identity, and an assignment computes the
new value, which later reads take. The caller feeds the values, and assigns those of the new ones that may move.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import GraphError
from engine.graphs.node_editing import add_constant, producer, replace_node
from engine.graphs.op_kinds import called_functions
from engine.graphs.reach import reach
from engine.models.saved_model.flatten import Flat

# Assignment -> the operation that computes the new value from the old one and the second input.
_ASSIGNMENTS = {"AssignVariableOp": "Identity", "AssignAddVariableOp": "AddV2", "AssignSubVariableOp": "Sub"}
_CHECKS = frozenset(["Assert", "CheckNumerics"])
_AXIS = "values_axis"


@dataclass(frozen=True, eq=False)
class Program:
    """A graph that only computes.

    Attributes:
        definition: the GraphDef; ``data`` is the placeholder of the images, and ``output`` the tensor of the features.
        reads: the number of a variable -> the placeholder of its value.
        writes: the number of a variable -> the tensor of its new value.
        custom: the nodes whose gradient the file defines by a function of its own.
        order: the nodes, each after those that it needs.
    """

    definition: Any
    data: str
    output: str
    reads: Mapping[int, str]
    writes: Mapping[int, str]
    custom: frozenset[str]
    order: Sequence[str]


def make_program(flat: Flat, dtypes: Mapping[int, tf.DType], *, where: str) -> Program:
    """The program of a flat trace, whose graph is changed in place. ``dtypes`` are those of the variables, by number.

    Raises GraphError if the order of writes is not clear, or a loop or an open branch uses a variable itself.
    """
    axis = _free_name({node.name for node in flat.definition.node})
    if any(node.op == "ResourceGather" for node in flat.definition.node):
        add_constant(flat.definition, axis, np.int32(0))
    nodes = {node.name: node for node in flat.definition.node}
    order = _sort(nodes, where)
    values: dict[int, str] = {}
    for name, number in flat.handles.items():
        values.setdefault(number, name)
    editor = _Editor(nodes, dict(flat.handles), values, dtypes, where, axis=axis)
    editor.note_checks(flat.definition.library.function)
    for name in order:
        editor.visit(nodes[name])
    for name, number in flat.handles.items():
        replace_node(nodes[name], "Placeholder", (), {"dtype": dtypes[number]})
    return Program(flat.definition, flat.data, flat.output, values, editor.writes(), flat.custom, order)


def _free_name(names: Collection[str]) -> str:
    """A name for the constant axis of what gathers rows of a variable; an export of such a trunk has the first one already."""
    return next(name for number in count() if (name := f"{_AXIS}_{number}" if number else _AXIS) not in names)


def _sort(nodes: Mapping[str, Any], where: str) -> list[str]:
    """The nodes in an order in which each comes after those that it needs."""
    waits = {name: len({producer(source) for source in node.input}) for name, node in nodes.items()}
    readers: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for source in {producer(source) for source in node.input}:
            if source not in nodes:
                raise GraphError(f"{where}: {name}: its input {source} is not in the graph; the file is damaged")
            readers.setdefault(source, []).append(name)
    ready = [name for name, count in waits.items() if not count]
    for name in ready:  # grows
        for reader in readers.get(name, ()):
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    if len(ready) < len(nodes):
        raise GraphError(f"{where}: its operations depend on each other in a circle")
    return ready


class _Editor:
    """Changes nodes in order. A bit of a mask stands for an assignment: ``_seen`` says which ones a node comes after."""

    def __init__(
        self,
        nodes: dict[str, Any],
        handles: dict[str, int],
        values: Mapping[int, str],
        dtypes: Any,
        where: str,
        *,
        axis: str,
    ) -> None:
        self._axis = axis
        self._nodes, self._handles, self._values, self._dtypes, self._where = nodes, handles, values, dtypes, where
        self._seen: dict[str, int] = {}
        self._assigned: dict[int, list[tuple[str, int]]] = {}  # number -> assignments, each with its bit
        self._count = 0
        self._checks: list[
            str
        ] = []  # the nodes that check their inputs; a bit for each of those that a node comes after:
        self._checked: dict[str, int] = {}
        self._checking: set[str] = set()

    def note_checks(self, functions: Any) -> None:
        """Notes which library functions check something, as a branch of an assertion does."""
        library = {each.signature.name: each for each in functions}
        for name in library:
            inside = reach([name], lambda one: [f for n in library[one].node_def for f in called_functions(n)])
            if any(node.op in _CHECKS for one in inside for node in library[one].node_def):
                self._checking.add(name)

    def writes(self) -> dict[int, str]:
        """The last assignment to each variable, whose output is the new value."""
        return {number: f"{self._last(number, -1)}:0" for number in self._assigned}

    def visit(self, node: Any) -> None:
        """Changes a node that reads or writes a variable; what it needs was visited before."""
        seen = 0
        for source in node.input:
            seen |= self._seen[producer(source)]
        data = [source for source in node.input if not source.startswith("^")]
        number = self._handles.get(producer(data[0])) if data and node.op != "Placeholder" else None
        if number is not None:
            seen = self._change(node, number, data, seen)
        elif any(producer(source) in self._handles for source in data):
            raise self._refusal(node)
        self._seen[node.name] = seen
        self._wait_for_checks(node)

    def _wait_for_checks(self, node: Any) -> None:
        """Lets a node wait for checks alone: other control inputs order reads and writes, which no longer need an order."""
        data = [source for source in node.input if not source.startswith("^")]
        known = waited = 0
        for source in data:
            known |= self._checked[producer(source)]
        for source in node.input:
            waited |= self._checked[producer(source)]
        checks = [f"^{name}" for place, name in enumerate(self._checks) if (waited & ~known) >> place & 1]
        if node.op in _CHECKS or any(name in self._checking for name in called_functions(node)):
            waited |= 1 << len(self._checks)
            self._checks.append(node.name)
        self._checked[node.name] = waited
        del node.input[:]
        node.input.extend([*data, *checks])

    def _change(self, node: Any, number: int, data: list[str], seen: int) -> int:
        dtype, now = self._dtypes[number], self._last(number, seen)
        controls = [source for source in node.input if source.startswith("^")]
        kept = {name: _copy(value) for name, value in node.attr.items()}
        if node.op == "Identity":
            self._handles[node.name] = number
            replace_node(node, "Identity", [now, *controls], {"T": dtype})
        elif node.op in _ASSIGNMENTS:
            op = _ASSIGNMENTS[node.op]
            replace_node(node, op, [*([] if op == "Identity" else [now]), data[1], *controls], {"T": dtype})
            bit = 1 << self._count
            self._count += 1
            self._assigned.setdefault(number, []).append((node.name, bit))
            return seen | bit
        elif node.op == "ReadVariableOp":
            replace_node(node, "Identity", [now, *controls], {"T": dtype})
        elif node.op == "ResourceGather":
            types = {"Tparams": dtype, "Tindices": kept["Tindices"], "Taxis": tf.int32}
            batch = {"batch_dims": kept["batch_dims"]} if "batch_dims" in kept else {}
            replace_node(node, "GatherV2", [now, data[1], self._axis, *controls], types | batch)
        elif node.op == "ResourceGatherNd":
            replace_node(node, "GatherNd", [now, data[1], *controls], {"Tparams": dtype, "Tindices": kept["Tindices"]})
        elif node.op == "VariableShape":
            kind = kept.get("out_type", tf.int32)
            replace_node(node, "Shape", [now, *controls], {"out_type": kind, "T": dtype})
        elif node.op == "VarIsInitializedOp":
            replace_node(node, "Const", controls, {"dtype": tf.bool, "value": np.bool_(True)})
        else:
            raise self._refusal(node)
        return seen

    def _last(self, number: int, seen: int) -> str:
        """The node that holds a variable's value for one that comes after the assignments in ``seen``."""
        before = [(name, bit) for name, bit in self._assigned.get(number, ()) if bit & seen]
        if not before:
            return self._values[number]
        every = 0
        for _, bit in before:
            every |= bit
        for name, _ in reversed(before):
            if self._seen[name] & every == every:
                return name
        raise GraphError(f"{self._where}: {before[0][0]} and {before[-1][0]} change one variable in no clear order")

    def _refusal(self, node: Any) -> GraphError:
        return GraphError(
            f"{self._where}: {node.name} ({node.op}) uses a variable inside a loop, a branch or another function, which is not "
            "offered; signature= names a function without it"
        )


def _copy(value: Any) -> Any:
    copied = tf.compat.v1.AttrValue()
    copied.CopyFrom(value)
    return copied
