"""Turns a part of a GraphDef into a GraphDef."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from compat_v1.graphs.endpoints import Graph, all_nodes, producer
from engine.graphs.op_allowlist import SUCCESSORS, VARIABLES
from engine.graphs.op_kinds import called_functions
from engine.graphs.reach import reach

_HOW = ("config", "config_proto", "executor_type")  # attributes of calls that only concern how they run


def upgrade_ops(definition: Any) -> None:
    """Replaces operations of the oldest graphs by their successors, and placeholders with a default by the default."""
    for node in definition.node:
        if node.op == "PlaceholderWithDefault":
            kind = node.attr["dtype"].type
            node.attr.clear()
            node.attr["T"].type = kind
            node.op = "Identity"
        node.op = SUCCESSORS.get(node.op, node.op)


def cut_out(graph: Graph, needed: set[str]) -> Any:
    """Copies some nodes to a new GraphDef, without variables, devices and what only concerns how they run."""
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

    def called(nodes: Iterable[Any]) -> list[str]:
        return [name for node in nodes for name in (node.op, *called_functions(node)) if name in graph.functions]

    for name in reach(called(part.node), lambda name: called(graph.functions[name].node_def)):
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
