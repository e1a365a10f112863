"""Checks, before the first step, that a traced step reads and writes nothing but what the selection allows.

The tape, the slots and the decay obey the selection by construction. What remains is what the forward pass does by itself:
layers with a state of their own (spectral norms, code books, moving averages) write it in training, and code may use
variables that no model lists. Both are read from the trace, so nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import keras_private, tensorflow_private
from engine.graphs.dataflow import used_handles
from engine.graphs.op_kinds import OpKinds
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables, NamedVariable
from engine.text import join_some


@dataclass(frozen=True, eq=False)
class OwnState:
    """What the forward pass of a traced step does to variables by itself.

    Attributes:
        written: the paths of the model's variables that it writes, without those of generators and metrics.
        notes: a sentence for each layer that is called with ``training=False`` so that it does not write what is frozen,
            and for random state that no checkpoint holds.
        refusal: why the step must not be run; None if it may.
    """

    written: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    refusal: str | None = None


def hold_still(trace: Callable[[Sequence[Any]], Any], selection: Selection) -> tuple[Any, OwnState]:
    """Traces a step, and again with frozen layers held in inference mode if it would write what is frozen.

    ``trace`` returns the concrete function that it traces with these Keras layers held. A layer is held
    that owns, or contains, a frozen variable that the trace writes; one that merely contains it must not contain anything
    trained. That the writes have stopped is read from the second trace. Most steps need only the first one.
    """
    variables, frozen = selection.variables, {entry.path: entry for entry in selection.frozen}
    function = trace(())
    first = uses = _Uses(function.graph, variables)
    held: dict[str, Any] = {}
    level = 0
    while wrong := [entry for path, entry in frozen.items() if path in uses.written]:
        if level > max(len(variables.enclosing_layers(entry.layer)) for entry in wrong):
            break
        more = {entry.path: found for entry in wrong for found in _find_holders(entry, selection, level)}
        if more:
            layers = dict([*held.items(), *more.values()])
            function = trace(list(layers.values()))
            uses = _Uses(function.graph, variables)
            held |= {name: layer for path, (name, layer) in more.items() if path not in uses.written}
        level += 1
    lost = first.written - uses.written
    refusal = uses.refuse() or _refuse_writes(wrong, selection) or _refuse_losses(lost, list(held), selection)
    notes = tuple(_note(path, layer, lost, selection) for path, layer in held.items())
    own = frozenset(uses.written & variables.by_path().keys())
    return function, OwnState(own, notes + uses.notes(), refusal)


class _Uses:
    """What a traced graph does with the variables that it captures.

    Attributes:
        written: the paths of the model's variables that it writes, and the names of those of generators and metrics.
        unknown, random: what it does with variables that the model does not list; those of random generators apart.
    """

    def __init__(self, graph: Any, variables: ModelVariables) -> None:
        known = {id(variable.handle): name for name, variable in variables.bookkeeping.items()}
        known |= {id(entry.variable.handle): entry.path for entry in variables}
        kinds, used = OpKinds(graph), used_handles(graph)
        writes = {id(inner) for inner in kinds.written_captures()}
        self.written = {
            known[id(outer)] for outer, inner in graph.captures if id(inner) in writes and id(outer) in known
        }
        self.unknown = [f"holds {node.name!r} ({node.op}) inside its graph" for node in kinds.find_holders()]
        self.random: list[str] = []
        for outer, inner in graph.captures:
            if inner.dtype != tf.resource or id(outer) in known or not (id(outer) in used or id(inner) in writes):
                continue
            variable = next((found for found in graph.variables if found.handle is outer), None)
            if variable is not None and _is_random_state(variable):
                self.random.append(variable.name.removesuffix(":0"))
            elif variable is not None or id(inner) in writes or _is_variable(inner):
                what = "writes" if id(inner) in writes else "reads"
                self.unknown.append(f"{what} {_describe(variable, inner)}")

    def refuse(self) -> str | None:
        """The refusal of a step that uses variables which the model does not list; None if it uses none."""
        if not self.unknown:
            return None
        return (
            f"the step uses {len(self.unknown)} variable(s) that the model does not list, so that they could not be frozen, "
            f"trained, saved or proven: it {join_some(self.unknown)}. Make each an attribute of the model or of one of its "
            "layers; if it belongs to another model, select from a dict of both, {'student': model, 'teacher': other}"
        )

    def notes(self) -> tuple[str, ...]:
        """A sentence on random state that belongs to no layer, if there is any."""
        if not self.random:
            return ()
        return (
            f"the model draws from a global random generator ({join_some(self.random)}), whose state no checkpoint holds: a "
            "resumed run draws other numbers; a keras.random.SeedGenerator as an attribute of the layer avoids this",
        )


def _is_random_state(variable: Any) -> bool:
    """Whether a variable is the state of a seed generator of Keras, or of a ``tf.random.Generator``."""
    return variable.name.rsplit("/", 1)[-1].startswith(("seed_generator_state", "StateVar"))


def _is_variable(handle: Any) -> bool:
    """Whether a handle is that of a variable, not of a table or queue: only a variable's declares what it holds."""
    data = tensorflow_private.handle_data(handle)
    return data is not None and bool(data.is_set) and bool(data.shape_and_type)


def _describe(variable: Any, handle: Any) -> str:
    if variable is not None:
        return f"{variable.name.removesuffix(':0')} ({variable.dtype.name} {variable.shape.as_list()})"
    if not _is_variable(handle):
        return f"the resource {handle.op.name}"
    (what, *_) = tensorflow_private.handle_data(handle).shape_and_type
    return f"{handle.op.name} ({tf.as_dtype(what.dtype).name} {[axis.size for axis in what.shape.dim]})"


def _find_holders(entry: NamedVariable, selection: Selection, level: int) -> Iterator[tuple[str, Any]]:
    """The Keras layer that may be held to keep a variable still, ``level`` layers above its owner, if there is one."""
    for path, layer in selection.variables.enclosing_layers(entry.layer)[level : level + 1]:
        if keras_private.takes_training(layer) and (level == 0 or not _trains(path, selection)):
            yield path, layer


def _frozen(paths: Sequence[str]) -> str:
    return f"{join_some(paths)}, which {'is' if len(paths) == 1 else 'are'} frozen"


def _trains(path: str, selection: Selection) -> bool:
    """Whether anything in the layer of this path trains; the path of the model itself is ""."""
    return any(not path or f"{entry.layer}/".startswith(f"{path}/") for entry in selection.trained)


def _note(path: str, layer: Any, lost: Set[str], selection: Selection) -> str:
    """What was decided about a held layer, and how to decide otherwise."""
    prefix = f"{path}/" if path else ""
    frozen = [entry.path for entry in selection.frozen if entry.path in lost]
    inside = [name for name in frozen if name.startswith(prefix)] or frozen
    text = (
        f"{path or 'the model'} ({type(layer).__name__}) runs in inference mode, because in training it would change "
        f"{_frozen(inside)}"
    )
    rewritten = [entry.path for entry in selection.trained if entry.path in lost]
    if rewritten:
        text += f"; nor does it then write {join_some(rewritten)} itself"
    return text + ("; `@stats` lets it move instead" if _trains(path, selection) else "")


def _refuse_losses(lost: Set[str], held: Sequence[str], selection: Selection) -> str | None:
    """The refusal of a step in which holding frozen state still would stop what the filter lets move or train."""
    frozen = [entry.path for entry in selection.frozen if entry.path in lost]
    moving = [entry.path for entry in selection.moving if entry.path in lost]
    if moving:
        return (
            f"in training the model would change {_frozen(frozen)}; inference mode stops that, but also "
            f"stops {join_some(moving)}, which the filter lets move. Let all of them move, or none (`!@stats`)"
        )
    for path in held:
        prefix = f"generator/{path}/" if path else "generator/"
        drawing = sorted(name.removeprefix("generator/") for name in lost if name.startswith(prefix))
        if drawing and _trains(path, selection):
            return (
                f"in training {path or 'the model'} would change {_frozen(frozen)}; inference mode stops "
                f"that, but also the random numbers of layers inside it that train ({join_some(drawing)}). Let it move by "
                f"naming it after the other items (`{' '.join(frozen)}`)"
            )
    return None


def _refuse_writes(wrong: Sequence[NamedVariable], selection: Selection) -> str | None:
    """The refusal of a step that writes frozen variables, with a way out for each kind; None if it writes none."""
    if not wrong:
        return None
    weighted = {entry.layer for entry in selection.variables if entry.kind == "weight"}
    ways: dict[str, None] = {}
    for entry in wrong:
        if entry.kind == "weight":
            way = f"train it (`{entry.path}`)"
        elif entry.kind == "constant":
            way = (
                "name its attribute in the class attribute `statistics` of its module, so that it moves with its layer"
            )
        elif entry.layer in weighted:
            way = "train its layer with `@stats`, so that it moves with it"
        else:
            way = f"let it move by naming it (`{entry.path}`)"
        ways[way] = None
    owners = [(entry.path, selection.variables.enclosing_layers(entry.layer)[:1]) for entry in wrong]
    named = [f"{path} (layer {own[0][0]}, {type(own[0][1]).__name__})" if own else path for path, own in owners]
    return (
        f"the step would change {len(wrong)} frozen variable(s), although nothing trains them: {join_some(named)}. The "
        "forward pass writes them itself, and inference mode does not stop that. Ways out: "
        f"{'; '.join(ways)}; or write it only if `training` is true, because a frozen layer is called with training=False"
    )
