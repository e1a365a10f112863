"""Finds out whether an old graph can be trained here, by building all of it that a step needs; nothing of it is run."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import extract
from compat_v1.graphs.endpoints import Graph, producer, tensor_name
from compat_v1.graphs.extract import OldVariable
from compat_v1.graphs.input_text import parse_inputs
from compat_v1.graphs.metagraph import MetaGraph, read_metagraph
from compat_v1.migration.commands import count
from compat_v1.migration.facts import REFUSALS
from compat_v1.models.network import GraphNetwork
from compat_v1.models.old_graph import OldGraph
from compat_v1.models.switches import describe
from compat_v1.models.weights import find_checkpoint, read_values
from engine.errors import InputError
from engine.text import join_some

_MOST_OUTPUTS = 6
_SIDE = 64  # pixels, where the graph leaves the size of images open


@dataclass(frozen=True)
class Chosen:
    """What the user chose of a graph, as in the flags of finetune; None where it is to be found."""

    tags: Sequence[str] | None = None
    inputs: str | None = None
    outputs: str | None = None
    graph_inputs: str | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """A graph that was built as far as possible.

    Attributes:
        path: the file of the graph.
        problem: why it cannot be trained; "" if it can.
        old: its endpoints and switches, None if they were not found.
        weights: the file with the values of its variables; "" if it was not found.
        variables: the variables that its output needs.
        flags: the flags of finetune that say what was found, each as a word.
        loss: the loss that its last activation means, "" if it has none.
        ended: the tensor that is its output, with its last activation.
        outputs: the number of its outputs, None if only a new head makes it a classifier.
        notes: what else was found, a sentence each.
    """

    path: pathlib.Path
    problem: str = ""
    old: OldGraph | None = None
    weights: str = ""
    variables: tuple[OldVariable, ...] = ()
    flags: tuple[str, ...] = ()
    loss: str = ""
    ended: str = ""
    outputs: int | None = None
    notes: tuple[str, ...] = ()


def try_graph(meta: MetaGraph, chosen: Chosen, *, checkpoint: str | None, several: bool) -> list[Trial]:
    """Builds a step on an old graph, with the weights beside it or in ``checkpoint``; one for each of its outputs.

    If none can be trained, the only Trial says why. ``several`` says whether its file holds more graphs, so that a command
    has to name its tags.
    """
    trial = _try_output(meta, chosen, checkpoint, several)
    outputs = [] if chosen.outputs or not trial.problem or trial.old is not None else _list_outputs(meta)
    if not 1 < len(outputs) <= _MOST_OUTPUTS:
        return [trial]
    each = [
        _try_output(meta, dataclasses.replace(chosen, outputs=_plain(name)), checkpoint, several) for name in outputs
    ]
    return [one for one in each if not one.problem] or [trial]


def _try_output(meta: MetaGraph, chosen: Chosen, checkpoint: str | None, several: bool) -> Trial:
    try:
        old = OldGraph(
            meta,
            inputs=chosen.inputs,
            outputs=[chosen.outputs] if chosen.outputs else None,
            graph_inputs=chosen.graph_inputs,
        )
    except REFUSALS as error:
        return Trial(meta.path, _short(error, meta.path))
    try:
        return _build(old, chosen, checkpoint=checkpoint, several=several)
    except REFUSALS as error:
        return Trial(meta.path, _short(error, meta.path), old)


def _list_outputs(meta: MetaGraph) -> list[str]:
    """The candidates for the outputs of a graph: those of its only signature, or what nothing reads."""
    graph = Graph(meta.definition.graph_def, where=str(meta.path))
    try:
        return extract.find_endpoints(meta.definition, graph, [], {})[1]
    except GraphError:
        return graph.find_outputs([], [])[1]


def _build(old: OldGraph, chosen: Chosen, *, checkpoint: str | None, several: bool) -> Trial:
    meta = old.meta
    path = meta.path
    beside = str(path) if old.frozen is not None else find_checkpoint(meta)
    weights = beside or checkpoint
    ended = old.output
    activation = old.strip_activation()
    variables = old.variables([old.output])
    if not variables:
        raise GraphError(f"{ended} needs no variable, so there is nothing to train")
    if weights is None:
        raise GraphError("no checkpoint lies beside it, so its variables have no values")
    values = read_values(variables, weights, f"graph:{path}", frozen=old.frozen)
    network = GraphNetwork(old, variables, values)
    shape, untrained = _trace(network)
    if "," in str(path):
        raise GraphError("its path holds a comma, which separates the options of --model; rename it")
    notes = [f"input {_plain(old.input)}, output {_plain(ended)}"]
    if old.switches:
        notes.append(f"switches: {describe(old.switches)}")
    if untrained:
        notes.append(f"no gradient reaches {count(len(untrained), 'variable')}: {join_some(untrained)}")
    flat = shape.rank == 2 and shape[1] is not None
    if not flat and shape.rank is None:
        raise GraphError(f"nothing states the shape of its output {old.output}; name another tensor with outputs=")
    if not flat:
        notes.append(f"its output is {_listed(shape)}, not [B, classes], so a new head is put on it")
    data = old.program([old.output], training=False).part.inputs[0]
    notes.append(f"it is fed with data of shape {_listed(tf.TensorShape(data.shape))} {data.dtype.name}")
    if flat:
        notes.append(f"the number of classes of the data must be {shape[1]}")
    if flat and not activation and shape[1] > 1:
        notes.append("no activation says what its outputs mean: --loss=softmax takes them as the logits of classes")
    flags = _flags(old, chosen, beside=beside, checkpoint=checkpoint, several=several)
    flags += (
        [f"--outputs={_plain(ended)}", "--train=@all"] if flat else [f"--features={_plain(old.output)}", "--head=gap"]
    )
    loss = {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(activation, "softmax" if not flat or shape[1] > 1 else "")
    notes += old.notes()
    outputs = shape[1] if flat else None
    return Trial(
        path, "", old, weights, variables, tuple(flags), loss if flat else "softmax", ended, outputs, tuple(notes)
    )


def _flags(old: OldGraph, chosen: Chosen, *, beside: str | None, checkpoint: str | None, several: bool) -> list[str]:
    found = []
    if several:
        found.append(f"--tags={','.join(sorted(old.meta.tags))}")
    if beside is None and checkpoint is not None:
        found.append(f"--weights={os.path.abspath(checkpoint)}{'/' * checkpoint.endswith('/')}")
    found.append(f"--inputs={chosen.inputs or _plain(old.input)}")
    values = [_switch(e.tensor, e.training, e.evaluation) for e in old.switches if not _is_fixed(e.tensor, chosen)]
    return [*found, *([f"--graph_inputs={' '.join(values)}"] if values else [])]


def _is_fixed(tensor: str, chosen: Chosen) -> bool:
    """Whether the user fixed an input by NAME=VALUE in ``inputs``."""
    given = parse_inputs(chosen.inputs or "")
    return any(tensor_name(name) == tensor and value is not None for name, value in given.items())


def _switch(tensor: str, training: Any, evaluation: Any) -> str:
    one, other = _value(training), _value(evaluation)
    return f"{_plain(tensor)}={one}" + ("" if one == other and not isinstance(training, bool) else f"/{other}")


def _value(value: Any) -> str:
    return str(np.asarray(value).tolist()).replace(" ", "")


def _trace(network: GraphNetwork) -> tuple[tf.TensorShape, list[str]]:
    """Traces evaluation and a step of training; returns the shape of the output, and variables without a gradient.

    Raises GraphError if TensorFlow refuses the graph, also as a whole for the gradient.
    """
    old = network.old
    part = old.program([old.output], training=False).part.inputs
    expected = next(each for each in part if each.name == old.input)
    if expected.dtype == tf.string:
        raise GraphError(
            f"{_plain(old.input)} is fed with texts, such as serialised examples; inputs= names the tensor with the decoded "
            "images or numbers"
        )
    if expected.shape is None:
        raise GraphError(
            f"the graph does not state the shape of {_plain(old.input)}; inputs={_plain(old.input)}[None,...] states it"
        )
    place = tf.TensorSpec([None, *(_SIDE if n is None else n for n in expected.shape[1:])], tf.float32)
    trained = network.trainable_variables

    def step(images: Any, seeds: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            outputs = network(images, training=True, seeds=seeds)
        found = tape.gradient(outputs, trained, unconnected_gradients=tf.UnconnectedGradients.NONE)
        missing[:] = [each.name for each, grad in zip(trained, found, strict=True) if grad is None]
        return [outputs, *(grad for grad in found if grad is not None)]

    missing: list[str] = []
    evaluate = tf.function(lambda images: network(images, training=False), autograph=False)
    try:
        shape = evaluate.get_concrete_function(place).outputs[0].shape
        tf.function(step, autograph=False).get_concrete_function(place, tf.TensorSpec([None, 2], tf.int32))
    except InputError:
        raise
    except REFUSALS as error:
        raise GraphError(f"TensorFlow refuses it: {' '.join(str(error).split())[:300]}") from None
    return shape, [name.removesuffix(":0") for name in missing]


def try_parity(trials: Sequence[Trial], chosen: Chosen) -> tuple[str, list[str]]:
    """Why the outputs of a graph cannot be compared with a port, "" if they can; and the flags of port-checkpoint for it.

    ``trials`` are those of one graph, one for each of its outputs.
    """
    first = trials[0]
    old = first.old
    if old is None or not first.weights:
        return first.problem, []
    switches = {each.tensor: each.evaluation for trial in trials if trial.old for each in trial.old.switches}
    outputs = [trial.ended for trial in trials]
    try:
        part = extract.extract(
            _original(old), path=str(first.path), inputs={old.input: None} | switches, outputs=outputs
        )
    except REFUSALS as error:
        return _short(error, first.path), []
    if part.random:
        return f"its outputs are random, by {join_some(part.random)}", []
    inputs = [chosen.inputs or _plain(old.input)]
    inputs += [f"{_plain(name)}={_value(value)}" for name, value in switches.items() if not _is_fixed(name, chosen)]
    flags = [f"--verify_graph={os.path.abspath(first.path)}", f"--inputs={','.join(inputs)}"]
    flags.append(f"--outputs={','.join(map(_plain, outputs))}")
    return "", [*flags, *(flag for flag in first.flags if flag.startswith("--tags="))]


def _original(old: OldGraph) -> Any:
    """The graph as it was before constants became variables."""
    if old.frozen is None:
        return old.meta.definition
    return read_metagraph(old.meta.path).definition  # a frozen graph has no tags


def list_keys(variables: Sequence[OldVariable], names: Sequence[str]) -> Mapping[str, str]:
    """The tensor of a checkpoint that is the value of each variable: node -> name, for those that are there."""
    known = set(names)
    found = {each.node: each.saved.key if each.saved.key in known else each.node for each in variables}
    return {node: key for node, key in found.items() if key in known}


def _plain(tensor: str) -> str:
    """A tensor as people write it."""
    return producer(tensor) if tensor.endswith(":0") else tensor


def _listed(shape: tf.TensorShape) -> str:
    return str(["?" if n is None else n for n in shape]).replace("'", "")


def _short(error: BaseException, path: pathlib.Path) -> str:
    """What is wrong, without the path, which the report names anyway."""
    if not isinstance(error, InputError):
        return f"it could not be built ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return str(error).removeprefix(f"{path}: ").replace(str(path), path.name)
