"""Replaces a branch whose condition is known by the side taken, so that the outputs no longer need the other side.

Many old graphs update averages inside a branch for training. With ``is_training=False`` that branch never runs, and
so its operations need not be allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.graphs.endpoints import producer, tensor_name
from engine.graphs.node_editing import replace_node

_FARTHEST = 64  # the most operations between a condition and a known value


def fold_branches(definition: Any, fixed: Mapping[str, np.ndarray]) -> None:
    """Changes a GraphDef in place: a Merge, Switch or If whose condition is known becomes the branch taken.

    The nodes must have different names. ``fixed`` is tensor name -> its value.
    """
    nodes = {node.name: node for node in definition.node}
    known = {name: bool(value) for name, value in fixed.items() if value.dtype == bool and value.ndim == 0}
    dead = _dead(nodes, known)
    read = {name for node in definition.node for name in node.input}
    for node in definition.node:
        if node.op == "Merge" and f"{node.name}:1" not in read:
            data = [name for name in node.input if not name.startswith("^")]
            alive = [name for name in data if not _is_dead(name, dead)]
            if len(alive) == 1 < len(data) and not _is_loop(data, nodes):
                controls = [name for name in node.input if name.startswith("^")]
                replace_node(node, "Identity", [*alive, *controls], {"T": node.attr["T"]})
        elif node.op in ("If", "StatelessIf") and node.input:
            taken = _condition(node.input[0], nodes, known)
            if taken is not None:
                call = node.attr["then_branch" if taken else "else_branch"]
                attributes = {"Tin": node.attr["Tin"], "Tout": node.attr["Tout"], "f": call}
                replace_node(node, "StatefulPartitionedCall", list(node.input)[1:], attributes)
    _pass_switches(definition, nodes, known, dead)


def _pass_switches(definition: Any, nodes: Mapping[str, Any], known: Mapping[str, bool], dead: Collection[str]) -> None:
    """Makes what reads the output of a Switch that is taken read its input instead; what is never computed stays."""
    passed: dict[str, str] = {}
    for node in definition.node:
        taken = _condition(node.input[1], nodes, known) if node.op == "Switch" and len(node.input) > 1 else None
        if taken is not None and node.name not in dead:
            passed[f"{node.name}:{1 if taken else 0}"] = node.input[0]
    for node in definition.node:
        for position, name in enumerate(node.input):
            if name.startswith("^"):
                continue
            while (source := passed.get(tensor_name(name))) is not None:
                name = source
            node.input[position] = name


def _condition(name: str, nodes: Mapping[str, Any], known: Mapping[str, bool]) -> bool | None:
    """Returns the value of a boolean tensor if it follows from known values, else None."""
    inverted = False
    for _ in range(_FARTHEST):
        if tensor_name(name) in known:
            return known[tensor_name(name)] != inverted
        node = nodes.get(producer(name))
        if node is None:
            return None
        if node.op == "Const" and node.attr["dtype"].type == tf.bool.as_datatype_enum:
            tensor = node.attr["value"].tensor
            single = not tensor.tensor_shape.dim and not tensor.tensor_shape.unknown_rank
            return bool(tf.make_ndarray(tensor)) != inverted if single else None
        if node.op not in ("Identity", "PlaceholderWithDefault", "LogicalNot") or not node.input:
            return None
        inverted ^= node.op == "LogicalNot"
        name = node.input[0]
    return None


def _dead(nodes: Mapping[str, Any], known: Mapping[str, bool]) -> set[str]:
    """Returns tensors that are never computed, and nodes (without ``:``) of which no output is."""
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for name in node.input:
            readers.setdefault(producer(name), []).append(node.name)
    dead: set[str] = set()
    pending: list[str] = []
    for node in nodes.values():
        taken = _condition(node.input[1], nodes, known) if node.op == "Switch" and len(node.input) > 1 else None
        if taken is not None:  # output 0 is for False, 1 for True
            dead.add(f"{node.name}:{0 if taken else 1}")
            pending += readers.get(node.name, ())
    while pending:
        node = nodes[pending.pop()]
        if node.name in dead:
            continue
        inputs = [_is_dead(name, dead) for name in node.input]
        if inputs and (all(inputs) if node.op == "Merge" else any(inputs)):
            dead.add(node.name)
            pending += readers.get(node.name, ())
    return dead


def _is_dead(name: str, dead: set[str]) -> bool:
    return producer(name) in dead or (not name.startswith("^") and tensor_name(name) in dead)


def _is_loop(inputs: list[str], nodes: Mapping[str, Any]) -> bool:
    return any(producer(name) in nodes and nodes[producer(name)].op == "NextIteration" for name in inputs)
