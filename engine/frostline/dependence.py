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

from engine.frostline.traced import Traced
from engine.graphs import dataflow
from engine.graphs.op_kinds import OpKinds, is_handle
from engine.selection.selection import Selection


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
        self.kinds = OpKinds(traced.graph)
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
            handles = self.kinds.written(op)
            written |= {id(source): source for given in handles for source in _sources(given)}
            if self.kinds.draws(op):
                yield Cause("random", op.type, ops=(op,))
            elif not handles and self.kinds.has_other_effect(op):
                yield Cause("effect", op.type, ops=(op,))
        for key, given in written.items():
            if key not in moves:
                yield Cause("written", names.get(key) or self._traced.name(given), (given,))

    def _reached(self, causes: Iterable[Cause]) -> set[Any]:
        causes = list(causes)
        own = {op for cause in causes for op in cause.ops}
        after = dataflow.dependents(self.graph, [tensor for cause in causes for tensor in cause.tensors], ops=own)
        return own | after | {tensor.op for cause in causes for tensor in cause.tensors}


def _sources(handle: Any) -> list[Any]:
    """A handle or reference, and those that it may have come from through loops and branches."""
    found: dict[int, Any] = {}
    pending = [handle]
    while pending:
        tensor = pending.pop()
        if id(tensor) not in found:
            found[id(tensor)] = tensor
            pending += [source for source in tensor.op.inputs if is_handle(source)]
    return list(found.values())
