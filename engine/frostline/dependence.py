"""Finds which operations of a traced step can change from one step to the next for the same images, and why.

An operation is varying if it reads a trained or moving variable, or any variable that the graph itself writes; if it takes
an input other than the images; if it draws from a generator of its own; if it writes; or if it depends on such an operation
by data or by control. All others are invariant: functions of the images and of variables that do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engine.frostline.traced import Traced
from engine.graphs import dataflow
from engine.graphs.op_kinds import OpKinds, handle_sources
from engine.selection.selection import Selection


@dataclass(frozen=True)
class Cause:
    """Something that makes operations varying.

    Attributes:
        kind: "trained", "moving", "written", "input", "random" or "effect".
        name: the path of the variable, the name of the input, or the type of the operation.
        tensors, ops: the tensors whose dependents vary, and the operations that vary themselves.
    """

    kind: str
    name: str
    tensors: tuple[Any, ...] = ()
    ops: tuple[Any, ...] = ()


class Dependence:
    """The varying operations of a graph, and their causes.

    ``examples`` are the placeholders of the model's inputs, which are invariant, and ``live`` are the operations that a run needs: writes by others
    (initialisers, a saver's restores) do not count.
    """

    def __init__(self, traced: Traced, selection: Selection, examples: Sequence[Any], live: Sequence[Any]) -> None:
        self.graph = traced.graph
        self._examples = {id(placeholder) for placeholder in examples}
        self._traced = traced
        self.kinds = OpKinds(traced.graph)
        self.causes = list(self._causes(selection, live))
        self.varying = self._reached(self.causes)

    def is_training(self, cause: Cause) -> bool:
        """Whether a cause is inherent in training, and not an obstacle that could be removed."""
        return cause.kind in ("trained", "moving") or (cause.kind == "input" and cause.name != "seeds")

    @cached_property
    def by_training(self) -> set[Any]:
        """The operations that would vary without randomness or state below the trained part."""
        return self._reached([cause for cause in self.causes if self.is_training(cause)])

    def find_causes(self, op: Any) -> list[Cause]:
        """The causes that make an operation varying."""
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
        others = selection.variables
        for path, variable in (*variables, *others.generators.items(), *others.metrics.items()):
            if (found := handle(path, variable)) is not None:
                names[id(found)] = path
        for name, placeholder in self._traced.inputs.items():
            if id(placeholder) not in self._examples:
                yield Cause("input", name, (placeholder,))
        for placeholder in self._traced.others:
            yield Cause("input", placeholder.op.name, (placeholder,))
        written: dict[int, Any] = {}
        for op in live:
            handles = self.kinds.written(op)
            written |= {id(source): source for given in handles for source in handle_sources(given)}
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
