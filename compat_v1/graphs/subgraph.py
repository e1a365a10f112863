"""Makes a part of a GraphDef into one of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from compat_v1.graphs.endpoints import Graph, producer
from compat_v1.graphs.op_allowlist import SUCCESSORS, VARIABLES

_HOW = ("config", "config_proto", "executor_type")  # attributes of calls that say how they run


def upgrade(definition: Any) -> None:
    """Gives operations of the oldest graphs their successors' names; a placeholder with a default is that default."""
    for node in definition.node:
        if node.op == "PlaceholderWithDefault":
            kind = node.attr["dtype"].type
            node.attr.clear()
            node.attr["T"].type = kind
            node.op = "Identity"
        node.op = SUCCESSORS.get(node.op, node.op)


def cut_out(graph: Graph, needed: set[str]) -> Any:
    """Some nodes as a GraphDef of their own, without variables, devices and what only concerns how they run."""
    part = tf.compat.v1.GraphDef()
    part.versions.CopyFrom(graph.versions)
    left = {name for name in needed if graph.nodes[name].op not in VARIABLES}
    for name, node in graph.nodes.items():
        if name in left:
            part.node.add().CopyFrom(node)
    for node in part.node:
        kept = [name for name in node.input if not name.startswith("^") or producer(name) in left]
        del node.input[:]
        node.input.extend(kept)
    called: dict[str, None] = {}
    pending = list(part.node)
    while pending:
        for name in _calls(pending.pop()):
            if name in graph.functions and name not in called:
                called[name] = None
                pending += graph.functions[name].node_def
    for name in called:
        function = part.library.function.add()
        function.CopyFrom(graph.functions[name])
        function.attr.clear()
        function.arg_attr.clear()
        function.resource_arg_unique_id.clear()
    for node in all_nodes(part):
        node.device = ""
        node.ClearField("experimental_debug_info")
        for name in [name for name in node.attr if name.startswith("_") or name in _HOW]:
            del node.attr[name]
    return part


def _calls(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def all_nodes(definition: Any) -> Iterator[Any]:
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def make_names_unique(part: Any) -> None:
    """Gives library functions names that nothing else in this process has, once they are checked."""
    names = {
        function.signature.name: f"{function.signature.name}_{uuid.uuid4().hex}" for function in part.library.function
    }
    for function in part.library.function:
        function.signature.name = names[function.signature.name]
    for node in all_nodes(part):
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for call in [value.func] if value.HasField("func") else value.list.func:
                call.name = names.get(call.name, call.name)
