"""The switches of an old graph, such as ``is_training`` and ``keep_prob``, and their values in training and evaluation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import branch_folding
from compat_v1.graphs.endpoints import PLACEHOLDERS, Graph, producer, shape_of
from compat_v1.graphs.input_text import parse_value
from engine.graphs.node_editing import add_constant
from engine.graphs.op_kinds import is_random
from engine.text import join_some

_ARRAY = re.compile(r"label|batch\[(\w+)\]")  # the value of an input that is fed with an array of each batch
_WORDS = re.compile(r"""(?:[^\s"'\[\]]|"[^"]*"|'[^']*'|\[[^\]]*\])+""")
_LOGIC = frozenset(["Identity", "LogicalNot", "LogicalAnd", "LogicalOr", "PlaceholderWithDefault"])
_FUSED = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
_KEEPS = re.compile(r"keep", re.IGNORECASE)
_DROPS = re.compile(r"drop|rate", re.IGNORECASE)


@dataclass(frozen=True)
class Switch:
    """An input that is the same for a whole step: its tensor, its values, and how they were decided."""

    tensor: str
    training: Any
    evaluation: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor.removesuffix(':0')}={self.training} in training, {self.evaluation} else ({self.reason})"


def parse_graph_inputs(text: str) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """Parses ``NAME=VALUE`` and ``NAME=TRAINING/EVALUATION``, separated by blanks, into name -> both values.

    The second is None where only one is given. ``NAME=label`` and ``NAME=batch[KEY]`` are inputs that are fed with an array
    of each batch: the second result is name -> the key of the array. Raises GraphError for anything else.

    Example:
        >>> parse_graph_inputs("is_training=True keep_prob=0.8/1.0 y=label")
        ({'is_training': (True, None), 'keep_prob': (0.8, 1.0)}, {'y': 'label'})
    """
    found: dict[str, tuple[Any, Any]] = {}
    arrays: dict[str, str] = {}
    for item in _WORDS.findall(text):
        name, equals, value = item.partition("=")
        if not name or not equals or not value:
            raise GraphError(f"graph_inputs={item}: expected NAME=VALUE, NAME=TRAINING/EVALUATION or NAME=label")
        if name in found or name in arrays:
            raise GraphError(f"graph_inputs={item}: {name} is given twice")
        if (match := _ARRAY.fullmatch(value)) is not None:
            arrays[name] = match[1] or "label"
            continue
        first, slash, second = value.partition("/")
        found[name] = parse_value(item, name, first), parse_value(item, name, second) if slash else None
    return found, arrays


def find_switches(
    graph: Graph, outputs: Iterable[str], given: Mapping[str, tuple[Any, Any]], fed: Collection[str]
) -> tuple[Switch, ...]:
    """Decides the values of all switches: those that are given, and the boolean ones that the outputs need besides.

    Whether such a one means training or inference is decided by what the outputs need with each of its values: batch
    moments and random numbers belong to training. ``fed`` are the tensors that are fed with data. Raises GraphError where
    that is not clear, and for a number that nothing gives a value.
    """
    named = {graph.tensor(name, argument="graph_inputs"): values for name, values in given.items()}
    found = [_given(name, *values) for name, values in named.items()]
    known = {*fed, *named}
    for name in graph.nodes:
        node = graph.nodes[name]
        if node.op not in (*PLACEHOLDERS, "PlaceholderWithDefault") or f"{name}:0" in known:
            continue
        if graph.type_of(f"{name}:0") == tf.bool and shape_of(node) in ((), None) and name in graph.needed(outputs):
            found.append(_judge(graph, f"{name}:0", outputs, found))
    return tuple(found)


def _given(name: str, training: Any, evaluation: Any) -> Switch:
    """A switch that the user named. Without a value for evaluation, a condition is reversed and nothing is dropped."""
    reason = "given"
    if evaluation is None:
        if isinstance(training, bool):
            evaluation = not training
        elif isinstance(training, float) and _KEEPS.search(name):
            evaluation = 1.0
        elif isinstance(training, float) and _DROPS.search(name):
            evaluation = 0.0
        else:
            evaluation, reason = training, "given; NAME=TRAINING/EVALUATION tells them apart"
    return Switch(name, training, evaluation, reason)


def _judge(graph: Graph, tensor: str, outputs: Iterable[str], others: Iterable[Switch]) -> Switch:
    """A boolean placeholder that nobody named."""
    needed = {value: _count_training(graph, tensor, value, outputs, others) for value in (True, False)}
    name = producer(tensor)
    if needed[True] == needed[False]:
        if re.search(r"train|phase", name, re.IGNORECASE):
            return Switch(tensor, True, False, "by its name")
        raise GraphError(
            f"graph_inputs=: the outputs need the bool placeholder {name}, and nothing shows which of its values is for "
            f"training; say so with graph_inputs='{name}=True' or '{name}=False/False'"
        )
    training = needed[True] > needed[False]
    return Switch(tensor, training, not training, "found: only then the outputs need batch moments or random numbers")


def _count_training(graph: Graph, tensor: str, value: bool, outputs: Iterable[str], others: Iterable[Switch]) -> int:
    """How many operations of training the outputs need with a value of a switch."""
    definition = tf.compat.v1.GraphDef()
    definition.node.extend(graph.nodes.values())
    fixed = {each.tensor: np.asarray(each.training) for each in others} | {tensor: np.asarray(value)}
    branch_folding.fold_branches(definition, fixed)
    folded = Graph(definition, where=graph.where)
    folded.functions = graph.functions
    count = 0
    for name in folded.needed(outputs, fixed):
        node = folded.nodes[name]
        count += is_random(node.op) or (node.op in _FUSED and node.attr["is_training"].b)
        count += name.rpartition("/")[2].startswith("SquaredDifference")
        for call in (node.attr[key].func.name for key in node.attr if node.attr[key].HasField("func")):
            body = graph.functions.get(call)
            count += (
                sum(is_random(n.op) or (n.op in _FUSED and n.attr["is_training"].b) for n in body.node_def)
                if body
                else 0
            )
    return count


def separate_layers(definition: Any, switches: Iterable[Switch], scopes: Collection[str], *, where: str) -> None:
    """Changes a GraphDef in place, so that the operations in some scopes see the evaluation's value of each switch.

    A switch may reach a scope through logical operations outside of it; these are copied for the scope.
    """
    graph = Graph(definition, where=where)
    values = {producer(each.tensor): np.asarray(each.evaluation) for each in switches}
    values = {name: value for name, value in values.items() if value.dtype == bool}
    derived = set(values)
    changed = True
    while changed:
        changed = False
        for name, node in graph.nodes.items():
            data = [producer(source) for source in node.input if not source.startswith("^")]
            if name in derived or node.op not in _LOGIC or not any(each in derived for each in data):
                continue
            if all(each in derived or graph.nodes[each].op == "Const" for each in data):
                derived.add(name)
                changed = True
    if not derived:
        return
    copies: dict[tuple[str, str], str] = {}

    def copy(name: str, scope: str) -> str:
        key = (name, scope)
        if key not in copies:
            copies[key] = made = f"{scope}/in_evaluation/{name}"
            if name in values:
                add_constant(definition, made, values[name])
            else:
                node = definition.node.add()
                node.CopyFrom(graph.nodes[name])
                node.name = made
                for position, source in enumerate(node.input):
                    if not source.startswith("^") and producer(source) in derived:
                        node.input[position] = copy(producer(source), scope)
        return copies[key]

    for name, node in graph.nodes.items():
        inside = [scope for scope in scopes if name.startswith(f"{scope}/")]
        if not inside:
            continue
        scope = max(inside, key=len)
        for position, source in enumerate(node.input):
            origin = producer(source)
            if not source.startswith("^") and origin in derived and not origin.startswith(f"{scope}/"):
                node.input[position] = copy(origin, scope)


def describe(switches: Iterable[Switch]) -> str:
    """What was decided about the switches, for people."""
    return join_some([str(each) for each in switches], most=8)
