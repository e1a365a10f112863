"""What of a traced step can change from one window to the next for the same images, and why, in words.

Hot is: what reads a trained or moving variable, or any variable that the graph itself writes; what takes an input
other than the images; what draws from a generator of its own; what writes; and all that depends on these by data or by
control. Whatever is left is cold: a function of the images and of variables that keep still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from engine import graph
from engine.selection import Selection

# Ops that take a handle and leave what it stands for as it is.
_READS = frozenset(
    [
        "LookupTableFind",
        "LookupTableFindV2",
        "LookupTableSizeV2",
        "ReadVariableOp",
        "ResourceGather",
        "ResourceGatherNd",
        "VarIsInitializedOp",
        "VariableShape",
        "_ReadVariablesOp",
    ]
)
# Registered as having an effect, but they only speak, or have none but those of their functions.
_CALLS = frozenset(["Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"])
_HARMLESS = _CALLS | frozenset(["Assert", "NoOp", "Placeholder", "Print", "PrintV2", "VarHandleOp"])
SPEAKS = frozenset(["Assert", "Print", "PrintV2"])


@dataclass(frozen=True)
class Cause:
    """Something that makes an operation hot.

    Attributes:
        kind: "trained", "moving", "written", "input", "random", "effect".
        name: path of the variable, name of the input, or type of the operation.
        tensors: what is hot by it at once: all that depends on them is.
        ops: operations that are hot themselves.
    """

    kind: str
    name: str
    tensors: tuple[Any, ...] = ()
    ops: tuple[Any, ...] = ()


class Heat:
    """What is hot in a traced function.

    Args:
        traced: its graph.
        selection: what trains and moves.
        images: the one placeholder that is cold.
        inputs: name -> placeholder of its other inputs.
    """

    def __init__(self, traced: Any, selection: Selection, images: Any, inputs: Sequence[tuple[str, Any]]) -> None:
        self.graph = traced
        self.images = images
        self._library = {f.signature.name: f for f in traced.as_graph_def().library.function}
        self.causes = list(self._causes(selection, inputs))
        self.hot = self._reached(self.causes)

    def changes(self, cause: Cause) -> bool:
        """Whether a cause is what training itself is about, not something in its way."""
        return cause.kind in ("trained", "moving") or (cause.kind == "input" and cause.name != "seeds")

    @cached_property
    def by_training(self) -> set[Any]:
        """What would be hot if nothing was in the way: no randomness, no state below what trains."""
        return self._reached([cause for cause in self.causes if self.changes(cause)])

    def of(self, op: Any) -> list[Cause]:
        """Why an operation is hot."""
        needed = graph.ancestors([], ops=[op])
        return [c for c in self.causes if any(t.op in needed for t in c.tensors) or any(o in needed for o in c.ops)]

    def writes(self, op: Any) -> list[Any]:
        """Handles (as seen in this graph) that an operation writes to, itself or in its functions."""
        handles = [tensor for tensor in op.inputs if tensor.dtype == tf.resource]
        if not handles or op.type in _READS:
            return []
        names = list(_functions(op.node_def))
        if not names:
            return handles if op.type not in _HARMLESS and op.op_def.is_stateful else []
        return handles if any(self._has(name, _writes, set()) for name in names) else []

    def effect(self, op: Any) -> bool:
        """Whether an operation has an effect that a run of the function must not lose."""
        return bool(self.writes(op)) or self.speaks(op) or self._effect(op)

    def _effect(self, op: Any) -> bool:
        if op.type in _READS or not op.op_def.is_stateful or _is_draw(op.type):
            return False
        if names := list(_functions(op.node_def)):
            return any(self._has(name, _unknown_effect, set()) for name in names)
        return op.type not in _HARMLESS

    def speaks(self, op: Any) -> bool:
        """Whether an operation, or one in its functions, asserts or prints: no effect that would make it hot."""
        return op.type in SPEAKS or any(
            self._has(name, lambda node: node.op in SPEAKS, set()) for name in _functions(op.node_def)
        )

    def _draws(self, op: Any) -> bool:
        return _is_draw(op.type) or any(
            self._has(name, lambda node: _is_draw(node.op), set()) for name in _functions(op.node_def)
        )

    def _has(self, name: str, rule: Any, seen: set[str]) -> bool:
        """Whether a node of a library function, or of those that it calls, is of a kind."""
        if name in seen or name not in self._library:
            return False
        seen.add(name)
        nodes = self._library[name].node_def
        return any(rule(n) or any(self._has(f, rule, seen) for f in _functions(n)) for n in nodes)

    def _causes(self, selection: Selection, inputs: Sequence[tuple[str, Any]]) -> Iterator[Cause]:
        captured = {id(outer): inner for outer, inner in self.graph.captures}
        names = {id(inner): str(getattr(outer, "name", "") or inner.name) for outer, inner in self.graph.captures}
        for kind, entries in (("trained", selection.trained), ("moving", selection.moving)):
            for entry in entries:
                if (inner := captured.get(id(entry.variable.handle))) is not None:
                    yield Cause(kind, entry.path, (inner,))
        for entry in selection.variables:
            if (inner := captured.get(id(entry.variable.handle))) is not None:
                names[id(inner)] = entry.path
        for path, variable in selection.variables.generators.items():
            if (inner := captured.get(id(variable.handle))) is not None:
                names[id(inner)] = path
        moves = {id(captured.get(id(e.variable.handle))) for e in (*selection.trained, *selection.moving)}
        for name, placeholder in inputs:
            yield Cause("input", name, (placeholder,))
        written: dict[int, Any] = {}
        for op in self.graph.get_operations():
            handles = self.writes(op)
            written |= {id(handle): handle for handle in handles}
            if self._draws(op):
                yield Cause("random", op.type, ops=(op,))
            elif not handles and self._effect(op):
                yield Cause("effect", op.type, ops=(op,))
        for key, handle in written.items():
            if key not in moves:
                yield Cause("written", names.get(key, handle.name), (handle,))

    def _reached(self, causes: Iterable[Cause]) -> set[Any]:
        causes = list(causes)
        own = {op for cause in causes for op in cause.ops}
        after = graph.dependents(self.graph, [tensor for cause in causes for tensor in cause.tensors], ops=own)
        return own | after | {tensor.op for cause in causes for tensor in cause.tensors}


def _functions(node: Any) -> Iterator[str]:
    """Library functions that a node runs."""
    for value in node.attr.values():
        if value.WhichOneof("value") == "func":
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _is_draw(kind: str) -> bool:
    """Ops that draw from a state of their own; the stateless ones do not, whatever else their seeds depend on."""
    if kind.startswith("Stateless"):
        return False
    return (
        "Random" in kind
        or kind in ("Multinomial", "ParameterizedTruncatedNormal")
        or kind.startswith("StatefulStandardNormal")
    )


def _stateful(kind: str) -> bool:
    from tensorflow.python.framework import op_def_registry  # the one place that knows which ops have effects

    found = op_def_registry.get(kind)
    return found is None or found.is_stateful


def _writes(node: Any) -> bool:
    return "Assign" in node.op or node.op.startswith(
        ("ResourceApply", "ResourceSparseApply", "ResourceScatter", "Stateful")
    )


def _unknown_effect(node: Any) -> bool:
    return node.op not in _READS and node.op not in _HARMLESS and not _is_draw(node.op) and _stateful(node.op)
