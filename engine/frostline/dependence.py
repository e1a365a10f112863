"""What of a traced step can change from one step to the next for the same images, and why, in words.

Varying is: what reads a trained or moving variable, or any variable that the graph itself writes; what takes an input
other than the images; what draws from a generator of its own; what writes; and all that depends on these by data or by
control. Whatever is left is invariant: a function of the images and of variables that keep still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from engine.audit import writes
from engine.frostline.traced import Traced
from engine.graphs import dataflow
from engine.graphs.graph_variables import HOLDERS
from engine.selection.selection import Selection

# Ops that take a handle and leave what it stands for as it is.
_READS = writes.READS | frozenset(["LookupTableFind", "LookupTableFindV2", "LookupTableSizeV2"])
# Registered as having an effect, but they only speak, or have none but those of their functions.
_CALLS = frozenset(["Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"])
_HARMLESS = _CALLS | HOLDERS | frozenset(["Assert", "NoOp", "Placeholder", "Print", "PrintV2"])
SPEAKS = frozenset(["Assert", "Print", "PrintV2"])


@dataclass(frozen=True)
class Cause:
    """Something that makes an operation varying.

    Attributes:
        kind: "trained", "moving", "written", "input", "random", "effect".
        name: path of the variable, name of the input, or type of the operation.
        tensors: what is varying by it at once: all that depends on them is.
        ops: operations that are varying themselves.
    """

    kind: str
    name: str
    tensors: tuple[Any, ...] = ()
    ops: tuple[Any, ...] = ()


class Dependence:
    """What is varying in a graph.

    Args:
        traced: the graph.
        selection: what trains and moves.
        images: the one placeholder that is invariant.
        live: operations that a run needs; what others write (initialisers, what a saver restores) is not asked.
    """

    def __init__(self, traced: Traced, selection: Selection, images: Any, live: Sequence[Any]) -> None:
        self.graph = traced.graph
        self.images = images
        self._traced = traced
        self._library = {f.signature.name: f for f in traced.graph.as_graph_def().library.function}
        self.causes = list(self._causes(selection, live))
        self.varying = self._reached(self.causes)

    def changes(self, cause: Cause) -> bool:
        """Whether a cause is what training itself is about, not something in its way."""
        return cause.kind in ("trained", "moving") or (cause.kind == "input" and cause.name != "seeds")

    @cached_property
    def by_training(self) -> set[Any]:
        """What would be varying if nothing was in the way: no randomness, no state below what trains."""
        return self._reached([cause for cause in self.causes if self.changes(cause)])

    def of(self, op: Any) -> list[Cause]:
        """Why an operation is varying."""
        needed = dataflow.ancestors([], ops=[op])
        return [c for c in self.causes if any(t.op in needed for t in c.tensors) or any(o in needed for o in c.ops)]

    def writes(self, op: Any) -> list[Any]:
        """Handles and references (as seen in this graph) that an operation writes to, itself or in its functions."""
        given = [tensor for tensor in op.inputs if _is_handle(tensor)]
        if not given or op.type in _READS:
            return []
        handles = [tensor for tensor in given if tensor.dtype == tf.resource]
        arguments = zip(op.op_def.input_arg, op.inputs, strict=False)  # one that is a list comes after the references
        references = [tensor for argument, tensor in arguments if argument.is_ref]
        names = list(_functions(op.node_def))
        if not names:
            return references + (handles if op.type not in _HARMLESS and op.op_def.is_stateful else [])
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
        """Whether an operation, or one in its functions, asserts or prints: no effect that would make it varying."""
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

    def _causes(self, selection: Selection, live: Sequence[Any]) -> Iterator[Cause]:
        handle, names, moves = self._traced.handle, {}, set()
        for kind, entries in (("trained", selection.trained), ("moving", selection.moving)):
            for entry in entries:
                if (found := handle(entry.path, entry.variable)) is not None:
                    moves.add(id(found))
                    yield Cause(kind, entry.path, (found,))
        variables = [(entry.path, entry.variable) for entry in selection.variables]
        for path, variable in (*variables, *selection.variables.generators.items()):
            if (found := handle(path, variable)) is not None:
                names[id(found)] = path
        for name, placeholder in self._traced.inputs.items():
            if placeholder is not self.images:
                yield Cause("input", name, (placeholder,))
        for placeholder in self._traced.others:
            yield Cause("input", placeholder.op.name, (placeholder,))
        written: dict[int, Any] = {}
        for op in live:
            handles = self.writes(op)
            written |= {id(source): source for given in handles for source in _sources(given)}
            if self._draws(op):
                yield Cause("random", op.type, ops=(op,))
            elif not handles and self._effect(op):
                yield Cause("effect", op.type, ops=(op,))
        for key, given in written.items():
            if key not in moves:
                yield Cause("written", names.get(key) or self._traced.name(given), (given,))

    def _reached(self, causes: Iterable[Cause]) -> set[Any]:
        causes = list(causes)
        own = {op for cause in causes for op in cause.ops}
        after = dataflow.dependents(self.graph, [tensor for cause in causes for tensor in cause.tensors], ops=own)
        return own | after | {tensor.op for cause in causes for tensor in cause.tensors}


def _is_handle(tensor: Any) -> bool:
    """Whether a tensor stands for a variable (or another resource), not for a value."""
    return bool(tensor.dtype == tf.resource or tensor.dtype != tensor.dtype.base_dtype)


def _sources(handle: Any) -> list[Any]:
    """A handle or reference, and those that it may have come from through loops and branches."""
    found: dict[int, Any] = {}
    pending = [handle]
    while pending:
        tensor = pending.pop()
        if id(tensor) not in found:
            found[id(tensor)] = tensor
            pending += [source for source in tensor.op.inputs if _is_handle(source)]
    return list(found.values())


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
