"""Replaces weights of a frozen graph by other nodes: variables, or constants with new values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2

from engine.graphs.graphdef import FlatGraph
from engine.graphs.reach import reach
from engine.porting.frozen.stored import Stored


def replace_weights(definition: Any, weights: Iterable[Stored], make: Callable[[Stored], Any]) -> Any:
    """Returns a copy of a GraphDef in which other nodes have the values of weights, under the names of the weights.

    ``make`` returns the NodeDef for a weight; its inputs are ignored. What only computed a replaced weight from stored numbers is
    left out; a cast behind a weight that was kept in fewer bits passes it on. All other nodes stay as they are.
    """
    made = graph_pb2.GraphDef()
    made.CopyFrom(definition)
    nodes = {node.name: node for node in made.node}
    dropped: set[str] = set()
    for stored in weights:
        node = nodes[stored.node.name]
        before = [name.partition(":")[0] for name in node.input if not name.startswith("^")]
        node.CopyFrom(make(stored))
        dropped |= set(before)
        for each in stored.casts:
            _widen(nodes[each.name], tf.as_dtype(stored.dtype).as_datatype_enum)
    if dropped:
        _drop_unread(made, dropped)
    return made


def make_constant(stored: Stored, value: Any) -> Any:
    """A Const node with a new value for a weight; it waits for what the old one waits for."""
    node = node_def_pb2.NodeDef(name=stored.node.name, op="Const", device=stored.node.definition.device)
    node.input.extend(name for name in stored.node.definition.input if name.startswith("^"))
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, shape=value.shape))
    if stored.node.op == "Const":
        for name, attribute in stored.node.definition.attr.items():
            if name not in ("dtype", "value", "_output_shapes"):
                node.attr[name].CopyFrom(attribute)
    return node


def make_variable(stored: Stored) -> Any:
    """A VariableV2 node, an old graph's reference variable, for a weight."""
    node = node_def_pb2.NodeDef(name=stored.node.name, op="VariableV2", device=stored.node.definition.device)
    node.attr["dtype"].type = tf.as_dtype(stored.dtype).as_datatype_enum
    for length in stored.shape:
        node.attr["shape"].shape.dim.add().size = length
    node.attr["shape"].shape.SetInParent()
    node.attr["container"].s = b""
    node.attr["shared_name"].s = b""
    return node


def enter_frames(definition: Any, weights: Iterable[Stored]) -> None:
    """Lets variables be read where constants were, inside loops and branches of TensorFlow 1; changes the GraphDef.

    A constant inside a loop or a branch waits for one of its operations, and so belongs there. A variable is outside: it
    enters each loop, and is passed on by an Identity that waits for what the constant waited for.
    """
    waiting = [(stored, [n for n in stored.node.definition.input if n.startswith("^")]) for stored in weights]
    waiting = [(stored, controls) for stored, controls in waiting if controls]
    if not waiting:
        return
    frames = _find_frames(definition)
    names = {node.name for node in definition.node}
    renamed: dict[str, str] = {}
    for stored, controls in waiting:
        name, kind = stored.node.name, tf.as_dtype(stored.dtype).as_datatype_enum
        inside = max((frames.get(text[1:], ()) for text in controls), key=len)
        last = name
        for number, frame in enumerate(inside):
            enter = definition.node.add(name=_free(f"{name}/Enter_{number}", names), op="Enter", input=[last])
            enter.attr["T"].type = kind
            enter.attr["frame_name"].s = frame
            enter.attr["is_constant"].b = True
            enter.attr["parallel_iterations"].i = 10
            last = enter.name
        passing = definition.node.add(name=_free(f"{name}/read", names), op="Identity", input=[last, *controls])
        passing.attr["T"].type = kind
        renamed[name] = passing.name
    own = {node.name for node in definition.node if node.op == "Enter" and node.input[0] in renamed}
    for node in definition.node:
        if node.name in own or node.name in renamed.values():
            continue
        node.input[:] = [_redirect(text, renamed) for text in node.input]
        if node.op == "VariableV2" and node.name in renamed:
            del node.input[:]


def _redirect(text: str, renamed: dict[str, str]) -> str:
    control = text[: text.startswith("^")]
    name, colon, output = text.removeprefix("^").partition(":")
    return f"{control}{renamed[name]}{colon}{output}" if name in renamed else text


def _free(name: str, names: set[str]) -> str:
    found, number = name, 0
    while found in names:
        number += 1
        found = f"{name}_{number}"
    names.add(found)
    return found


def _find_frames(definition: Any) -> dict[str, tuple[bytes, ...]]:
    """Node -> the loops that it is in, the outermost first."""
    flat = FlatGraph(definition, unknown=True)
    frames: dict[Any, tuple[bytes, ...]] = {}
    following: dict[Any, list[Any]] = {}
    for node in flat.nodes:
        for before in dict.fromkeys([*(tensor.node for tensor in node.inputs), *node.controls]):
            following.setdefault(before, []).append(node)
    pending: list[tuple[Any, tuple[bytes, ...]]] = [
        (node, ()) for node in flat.nodes if not node.inputs and not node.controls
    ]
    while pending:
        node, outside = pending.pop()
        if node in frames and len(frames[node]) >= len(outside):
            continue
        frames[node] = outside
        inside = outside
        if node.op in ("Enter", "RefEnter"):
            name = node.attr("frame_name")
            frame = b"" if name is None else name.s
            inside = outside if outside[-1:] == (frame,) else (*outside, frame)
            frames[node] = inside
        elif node.op in ("Exit", "RefExit"):
            inside = outside[:-1]
            frames[node] = inside
        pending += [(each, inside) for each in following.get(node, ())]
    return {node.name: inside for node, inside in frames.items()}


def _widen(node: Any, kind: int) -> None:
    """Lets a node that passed stored numbers on, or casts them, pass the weight itself on."""
    if node.op == "Cast":
        node.op = "Identity"
        for name in [name for name in node.attr if not name.startswith("_")]:
            del node.attr[name]
    node.attr["T"].type = kind
    if "_output_shapes" in node.attr:
        del node.attr["_output_shapes"]


def _drop_unread(definition: Any, candidates: set[str]) -> None:
    """Removes those of these nodes, and of those before them, that nothing reads any more."""
    nodes = {node.name: node for node in definition.node}

    def before(name: str) -> list[str]:
        return [each.removeprefix("^").partition(":")[0] for each in nodes[name].input] if name in nodes else []

    chain = set(reach(candidates, before))
    while True:
        read = {text.removeprefix("^").partition(":")[0] for node in definition.node for text in node.input}
        gone = [node for node in definition.node if node.name in chain and node.name not in read]
        gone = [node for node in gone if node.op not in ("Placeholder", "VariableV2", "VarHandleOp")]
        if not gone:
            return
        names = {node.name for node in gone}
        for number in reversed(range(len(definition.node))):
            if definition.node[number].name in names:
                del definition.node[number]
