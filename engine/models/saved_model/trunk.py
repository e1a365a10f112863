"""The network of a SavedModel as programs: for evaluation, and for training with some of its layers moving statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import tensorflow as tf

from engine.errors import GraphError
from engine.graphs.draws import find_random
from engine.graphs.node_editing import producer, replace_node, tensor_name
from engine.graphs.reach import reach
from engine.models.saved_model import holding
from engine.models.saved_model.flatten import flatten_trace, needed_nodes
from engine.models.saved_model.holding import Layer
from engine.models.saved_model.reading import SavedFile, SavedVariable, name_variables
from engine.models.saved_model.traces import Chosen, Output
from engine.models.saved_model.values import Program, make_program
from engine.text import join_some

_PASSES = frozenset(["Identity", "Reshape", "Squeeze", "Cast", "StopGradient"])
_PROBABILITIES = frozenset(["Softmax", "Sigmoid"])
# Stateless operations that draw uniform numbers in [0, 1), and the one that draws them from a state of its own.
_SEEDED = {"StatelessRandomUniform": "RandomUniform", "StatelessRandomUniformV2": "RandomUniform"}


class Trunk:
    """The chosen traces of a SavedModel, and what they move.

    Attributes:
        file, chosen: the file, and its traces.
        inference, training: the programs of the traces; ``training`` is None without a trace for training.
        layers: the layers whose statistics the trace for training moves.
        variables: the variables that the features need, in the order of their first use.
        paths: the path of each variable, by number.
        draws: whether the network draws random numbers in training.
    """

    def __init__(self, file: SavedFile, chosen: Chosen) -> None:
        self.file, self.chosen, self.where = file, chosen, str(file.folder)
        self.inference = self._program(training=False)
        self.training = self._program(training=True) if chosen.training is not None else None
        self.unmoved: tuple[int, ...] = ()
        numbers = [*self.inference.reads, *(self.training.reads if self.training is not None else ())]
        every = {number: file.variable(number) for number in dict.fromkeys(numbers)}
        self.paths: Mapping[int, str] = name_variables(every.values())
        self.layers: tuple[Layer, ...] = ()
        if self.training is not None:
            read = set(_used(self.inference, [self.inference.output]))
            self.layers = holding.find_layers(self.training, read, self.paths)
            self._drop_other_writes()
        self.variables: tuple[SavedVariable, ...] = tuple(every[number] for number in self._needed())
        names = name_variables(self.variables)  # only those that the features need must have names of their own
        self.layers = tuple(
            dataclasses.replace(layer, path=_renamed(layer, self.paths, names)) for layer in self.layers
        )
        self.paths = names

    @property
    def data(self) -> Any:
        """What the traces take: the spec of the images."""
        return self.chosen.inference.data[1]

    @property
    def features(self) -> Output:
        """What the traces return as features."""
        return self.chosen.features

    @cached_property
    def draws(self) -> bool:
        """Whether the features are random in training."""
        return self.training is not None and bool(
            find_random(needed_nodes(self.training.definition, [self.training.output]))
        )

    def strip_activation(self) -> str:
        """Makes the logits the output, where a softmax or sigmoid comes last; its type, or "" if there is none."""
        programs = [self.inference, *([self.training] if self.training is not None else [])]
        found = [_find_activation(program) for program in programs]
        if None in found or len({kind for kind, _ in filter(None, found)}) != 1:
            return ""
        outputs = [each[1] for each in found if each is not None]
        self.inference = dataclasses.replace(self.inference, output=outputs[0])
        if self.training is not None:
            self.training = dataclasses.replace(self.training, output=outputs[1])
        return next(each[0] for each in found if each is not None)

    @property
    def activation(self) -> str:
        """The type of the softmax or sigmoid that computes the output, "" if none does."""
        found = _find_activation(self.inference)
        return "" if found is None else found[0]

    def program(self, *, training: bool, moving: Collection[str] = ()) -> Program:
        """The program of one mode, with what it needs alone.

        In ``training``, the layers whose paths are in ``moving`` run in training mode and give new statistics; all others
        are held. Where none moves and nothing is drawn, that is inference. Raises GraphError if a layer cannot be held.
        """
        if self.training is None or not training or not (moving or self.draws):
            return _cut(self.inference, {})
        return self._with_moving(moving)

    def held(self) -> Program:
        """The program of the trace for training with all layers in inference mode."""
        return self._with_moving(())

    def _with_moving(self, moving: Collection[str]) -> Program:
        assert self.training is not None
        held = [layer for layer in self.layers if layer.path not in moving]
        if wrong := [layer for layer in held if layer.problem]:
            raise GraphError(
                f"{self.where}: {wrong[0].path} cannot run in inference mode while others train: {wrong[0].problem}. Let it "
                "move with its layer (@stats), or let none move (!@stats)"
            )
        definition = tf.compat.v1.GraphDef()
        definition.CopyFrom(self.training.definition)
        holding.hold(definition, held, self.training.reads)
        moved = holding.numbers_of([layer for layer in self.layers if layer.path in moving])
        writes = {number: tensor for number, tensor in self.training.writes.items() if number in moved}
        return _cut(dataclasses.replace(self.training, definition=definition), writes)

    def notes(self) -> list[str]:
        """What a user should know of the network, a sentence each."""
        found = []
        if self.file.note:
            found.append(self.file.note)
        if self.training is None:
            found.append(
                f"{self.chosen.inference.source} has no trace for training, so the network trains through the one for inference: "
                "statistics stay as they are, and nothing is dropped"
            )
        if self.unmoved:
            names = [self.file.variable(number).name for number in self.unmoved]
            found.append(f"the trace for training also writes {join_some(names)}, which stays as it is")
        penalties = self.file.child(0, "regularization_losses")
        if penalties is not None and (count := len(self.file.children(penalties))):
            found.append(f"the {count} regularisation losses of the SavedModel are not part of the loss")
        return found

    def _program(self, *, training: bool) -> Program:
        trace = self.chosen.training if training else self.chosen.inference
        assert trace is not None
        flat = flatten_trace(self.file, trace, self.chosen.output, training=training)
        dtypes = {number: self.file.variable(number).dtype for number in flat.handles.values()}
        program = make_program(flat, dtypes, where=self.where)
        if training:
            _use_own_state(program)
        return program

    def _drop_other_writes(self) -> None:
        """Forgets writes that are not statistics of a layer, such as the seeds of generators and counters of steps."""
        assert self.training is not None
        moved = holding.numbers_of(self.layers)
        used = {*_used(self.inference, [self.inference.output]), *_used(self.training, [self.training.output])}
        self.unmoved = tuple(number for number in self.training.writes if number in used - moved)
        kept = {number: tensor for number, tensor in self.training.writes.items() if number in moved}
        self.training = dataclasses.replace(self.training, writes=kept)

    def _needed(self) -> list[int]:
        """The numbers of the variables that the features or the statistics need, in the order of their first use."""
        found = dict.fromkeys(_used(self.inference, [self.inference.output]))
        if self.training is not None:
            found |= dict.fromkeys(_used(self.training, [self.training.output, *self.training.writes.values()]))
            found |= dict.fromkeys(self.training.writes)
        return list(found)


def _used(program: Program, tensors: list[str]) -> list[int]:
    """The variables that some tensors of a program need, in the order in which the data meet them."""
    needed = {node.name for node in needed_nodes(program.definition, tensors).node}
    depths: dict[str, int] = {program.data: 0}  # of what depends on the data
    readers: dict[str, list[str]] = {}
    nodes = {node.name: node for node in program.definition.node}
    for name in program.order:
        for source in map(producer, nodes[name].input if name in needed else ()):
            readers.setdefault(source, []).append(name)
            if source in depths:
                depths[name] = max(depths.get(name, 0), depths[source] + 1)

    def first(start: str) -> int:
        met = reach([start], lambda name: readers.get(name, ()) if name not in depths else ())
        return min((depths[name] for name in met if name in depths), default=len(nodes))

    found = [number for number, name in program.reads.items() if name in needed]
    return sorted(found, key=lambda number: (first(program.reads[number]), number))


def _renamed(layer: Layer, before: Mapping[int, str], after: Mapping[int, str]) -> str:
    """The path of a layer among other names of its statistics."""
    number = layer.statistics[0]
    return layer.path if before[number] == after[number] else holding.layer_of(after[number])


def _cut(program: Program, writes: Mapping[int, str]) -> Program:
    """A program with what the output and some writes need alone."""
    definition = needed_nodes(program.definition, [program.output, *writes.values()])
    names = {node.name for node in definition.node}
    return Program(
        definition=definition,
        data=program.data,
        output=program.output,
        reads={number: name for number, name in program.reads.items() if name in names},
        writes=writes,
        custom=frozenset(program.custom & names),
        order=[name for name in program.order if name in names],
    )


def _find_activation(program: Program) -> tuple[str, str] | None:
    """The type of a softmax or sigmoid that comes last, and the tensor that it takes; None if there is none."""
    nodes = {node.name: node for node in program.definition.node}
    name = program.output
    for _ in range(8):
        node = nodes[producer(name)]
        if node.op in _PROBABILITIES:
            return str(node.op), tensor_name(node.input[0])
        if node.op not in _PASSES:
            return None
        name = tensor_name(node.input[0])
    return None


def _use_own_state(program: Program) -> None:
    """Lets operations that draw from a generator in a variable draw like those with a state of their own, in place.

    Keras keeps such generators. What is drawn from the seeds of examples then takes the place of both (engine.graphs.draws).
    """
    written = [name for number, name in program.reads.items() if number in program.writes]
    nodes = {node.name: node for node in program.definition.node}
    for name in program.order:
        node = nodes[name]
        if node.op not in _SEEDED:
            continue
        needed = {each.name for each in needed_nodes(program.definition, [name]).node}
        if needed & set(written):
            types = {"dtype": node.attr["dtype"], "T": node.attr["Tshape" if "Tshape" in node.attr else "T"]}
            kept = {key: _copy(value) for key, value in types.items()}
            replace_node(node, _SEEDED[node.op], [node.input[0]], kept)


def _copy(value: Any) -> Any:
    copied = tf.compat.v1.AttrValue()
    copied.CopyFrom(value)
    return copied
