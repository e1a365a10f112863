"""Several runs of one network in one process, in turn or several in one compiled step.

Each run is a ``Member``: the values of the variables that it has changed, and a step with slots and counters of its own.
All share the network and what has been traced. A member's values are in the network while it is active, and else in
variables of the member; a step of several members reads and writes the latter in one compiled function. In both ways the
member computes with the very graph with which it computes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.graphs.tracing import call_unchecked
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables
from engine.text import nearest
from engine.training import compiling
from engine.training.loop import StepRequest
from engine.training.microbatch import StepError
from engine.training.optimizer_state import Slots
from engine.training.step import TrainStep
from engine.training.step_result import NonFiniteError, StepResult
from engine.training.together import Uses, trace_moves, trace_together
from engine.training.traced_step import PreparedStep

Taken = StepResult | NonFiniteError
# Of a step with more operations, kernels take nearly all the time, and a function of several takes seconds to compile.
MOST_OPERATIONS = 300
_SIZES = (8, 4, 2)  # the numbers of runs in one function: few, because runs end at different times and each is compiled


class Member:
    """One of several runs of a network; ``Members.add`` makes it.

    Attributes:
        step: the step of this run, for its ``Loop``; only ``Members.train`` calls it.
    """

    def __init__(self, members: Members, step: TrainStep, own: dict[str, Any]) -> None:
        self.step = step
        self._members: Members | None = members
        self._own = own  # by name, its variables, whose values are old while it is active
        self._trained: tuple[Selection, tuple[str, ...]] | None = None  # the last selection and slots

    def activate(self) -> None:
        """Puts this run's values into the network, if they are not there.

        Until another member is activated or a step is taken, the network is this run: it may be evaluated, and what is
        written to the variables that this run has trained is kept. Write no others: those are not kept.
        """
        self._open()._activate(self)

    def values(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """The current values of variables of this run, whichever run is active, by path (or name of a generator)."""
        return {path: variable.numpy() for path, variable in self._open()._find(self, paths)}

    def close(self) -> None:
        """Ends this run, and frees its values, slots and averages."""
        if self._members is not None:
            self._members._forget(self)
            self._members, self._own, self.step.slots, self.step.averages = None, {}, Slots(), None

    def _open(self) -> Members:
        if self._members is None:
            raise StepError("member: it is closed")
        return self._members


Group = Sequence[tuple[Member, PreparedStep]]


class Members:
    """Several runs of one network. Each begins with the values that the network has now.

    Nobody else may write the network's variables meanwhile.

    Args:
        variables: the variables of the network.
        step: a step of the network; that of each member is its ``sibling``.
        most_operations: the largest number of operations of a step of which several are taken in one compiled function.
            That changes how long they take, and no result: a head on cached features has about 150 operations and takes
            half the time, a block of a ViT has 600 and takes as long as in turn.

    Raises:
        StepError: the step has a strategy.
    """

    def __init__(self, variables: ModelVariables, step: TrainStep, *, most_operations: int = MOST_OPERATIONS) -> None:
        if step.replicas is not None:
            raise StepError("strategy: runs of one network are trained together on one device; pass no strategy")
        self._step, self._variables, self._most_operations = step, variables, most_operations
        entries = {entry.path: entry.variable for entry in variables}
        self._network: dict[str, Any] = entries | variables.bookkeeping
        self._alias = {path: entry.path for entry in variables for path in entry.paths}
        self._names = {id(variable.handle): name for name, variable in self._network.items()}
        self._first = {name: variable.read_value() for name, variable in self._network.items()}  # copied when written
        self._open: dict[Member, None] = {}
        self._active: Member | None = None
        self._other: set[str] = set()  # the names whose values in the network are not the first ones
        self._moves: dict[Any, Any] = {}

    def add(self, start: Mapping[str, np.ndarray] | None = None, *, seed: int | None = None) -> Member:
        """Begins a run with the network's first values, except for the variables named in ``start``.

        Args:
            start: values by path, or by the name that a random generator has in checkpoints.
            seed: the base of the random seeds of examples, for batches without "seeds"; None is that of the step.

        Raises:
            StepError: there is no such variable, or its shape or dtype is another one; or the values of a Keras
                Normalization layer, which are constants of what has been traced, would differ.
        """
        own = {name: tf.Variable(value, trainable=False) for name, value in self._check(start or {})}
        member = Member(self, self._step.sibling(seed=seed), own)
        self._open[member] = None
        return member

    def train(self, requests: Mapping[Member, StepRequest]) -> dict[Member, Taken]:
        """Takes one step of each member: its result, or the NonFiniteError with which it ends.

        Small steps (``most_operations``) of the same selection, optimizer, filters of learning rates, and names, dtypes and
        shapes in the batch (but for its size) are taken in one compiled function, at most 8 at once. All others are taken
        in the network, one after the other.

        Raises:
            StepError, LossError, CompileError: as a call of the step; StepError also if steps draw random numbers from a
                state that all runs share.
        """
        selections = {member._trained[0] for member in self._open if member._trained is not None}
        self._step.make_room(len(selections | {request.stage.selection for request in requests.values()}))
        groups: dict[int, list[tuple[Member, PreparedStep]]] = {}
        for member, request in requests.items():
            prepared = self._prepare(member, request)
            groups.setdefault(id(prepared.function), []).append((member, prepared))
        taken: dict[Member, Taken] = {}
        for group in groups.values():
            for part in self._divide(group):
                for (member, prepared), result in zip(part, self._run(part), strict=True):
                    try:
                        taken[member] = member.step.conclude(prepared, result, before_reading=member.activate)
                    except NonFiniteError as error:
                        taken[member] = error
        return {member: taken[member] for member in requests}

    def leave(self) -> None:
        """Puts the first values back into the network; no member is active then."""
        self._save()
        self._restore(self._other)

    def _prepare(self, member: Member, request: StepRequest) -> PreparedStep:
        member._open()
        stage = request.stage
        kind = stage.selection, stage.optimizer.slots
        if member._trained != kind:  # it may need new slots, which may begin at its values
            self._activate(member)
            moving = [entry.path for entry in (*stage.selection.trained, *stage.selection.moving)]
            self._hold(member, [*moving, *self._variables.bookkeeping])
            member._trained = kind
        return member.step.prepare(stage.selection, request.batch, **request.arguments())

    def _divide(self, group: Group) -> Iterator[Group]:
        """The parts of a group of the same compiled function that are run at once, the active member first if alone."""
        together = self._uses(group[0][1]).operations <= self._most_operations
        group = sorted(group, key=lambda each: each[0] is not self._active)
        start = 0
        while start < len(group):
            size = next((size for size in _SIZES if together and size <= len(group) - start), 1)
            yield group[start : start + size]
            start += size

    def _run(self, group: Group) -> Sequence[Mapping[str, Any]]:
        """The results of one step of each member, all of which have the same compiled function."""
        (first, prepared), function = group[0], group[0][1].function
        uses = self._uses(prepared)
        with compiling.explained(first.step.jit_compile, function):
            if len(group) == 1:
                self._activate(first)
                return [call_unchecked(function, *prepared.arguments)]
            used = [name for name in dict.fromkeys(uses.names) if name is not None]
            replaced = tuple(name for name in used if any(name in member._own for member, _ in group))
            self._stand_aside([member for member, _ in group], used)

            def trace() -> Any:
                return trace_together(function, uses, count=len(group), replaced=replaced)

            together = self._step.keep(prepared, ("together", len(group), replaced), trace)
            given = []
            for member, own in group:
                handles = [member._own.get(name, self._network[name]).handle for name in replaced]
                given.append([own.arguments, handles])
            results: list[Mapping[str, Any]] = call_unchecked(together, given)
            return results

    def _uses(self, prepared: PreparedStep) -> Uses:
        found: Uses = self._step.keep(prepared, "uses", lambda: Uses.find(prepared.function, self._names))
        return found

    # ---- whose values are where

    def _activate(self, member: Member) -> None:
        if self._active is not member:
            self._save()
            self._restore(self._other - member._own.keys())
            self._move([(own, self._network[name]) for name, own in member._own.items()])
            self._other, self._active = set(member._own), member

    def _stand_aside(self, group: Sequence[Member], used: Sequence[str]) -> None:
        """Brings the own variables of a group up to date, and the network's first values to where a step needs them."""
        missing = {name for name in used if any(name not in member._own for member in group)} & self._other
        if missing or self._active in group:
            self._save()
            self._restore(missing)

    def _save(self) -> None:
        """Keeps the values of the active member in its own variables; it is then not active any more."""
        if self._active is not None:
            self._move([(self._network[name], own) for name, own in self._active._own.items()])
            self._active = None

    def _restore(self, names: Iterable[str]) -> None:
        names = list(names)
        self._move([(self._first[name], self._network[name]) for name in names])
        self._other -= set(names)

    def _hold(self, member: Member, names: Iterable[str]) -> None:
        """Gives an active member variables of its own for what its steps may change."""
        for name in names:
            if name not in member._own:
                member._own[name] = tf.Variable(self._first[name], trainable=False)
                self._other.add(name)

    def _find(self, member: Member, paths: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """The variables, or tensors, that have a member's values now."""
        for path in paths:
            name = self._name(path)
            own = member._own.get(name)
            inside = self._active is member and own is not None
            yield path, self._network[name] if inside else self._first[name] if own is None else own

    def _forget(self, member: Member) -> None:
        if self._active is member:
            self._active = None
        del self._open[member]

    def _move(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Gives each second variable the value of the first one, which may be a tensor."""
        if pairs:
            kinds = tuple((isinstance(source, tf.Variable), target.dtype) for source, target in pairs)
            sources = [source.handle if isinstance(source, tf.Variable) else source for source, _ in pairs]
            if kinds not in self._moves:
                self._moves[kinds] = trace_moves(kinds)
            call_unchecked(self._moves[kinds], sources, [target.handle for _, target in pairs])

    # ---- what a run begins with

    def _name(self, path: str) -> str:
        name = self._alias.get(path, path)
        if name not in self._network:
            raise StepError(f"{path!r} is not a variable of the network{nearest(path, list(self._network))}")
        return name

    def _check(self, start: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The names and values of ``start`` that differ from the first ones."""
        fixed = [each.path for each in self._variables.statistics_layers if hasattr(each.layer, "finalize_state")]
        layers = {entry.path: entry.layer for entry in self._variables}
        for path, given in start.items():
            name, value = self._name(path), np.asarray(given)
            first = self._first[name].numpy()
            if value.shape != first.shape or value.dtype != first.dtype:
                raise StepError(
                    f"start: {path} has shape {list(value.shape)} and dtype {value.dtype}; expected {list(first.shape)} and "
                    f"{first.dtype}"
                )
            if value.tobytes() == first.tobytes():
                continue
            if layers.get(name) in fixed:
                raise StepError(
                    f"start: {path} belongs to a Normalization layer, whose values are constants of the steps that all runs "
                    "share; give all runs the same, by assigning them to the network before"
                )
            yield name, value
