"""Gives the library functions of an imported graph names of their own in this process."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from engine.graphs.node_editing import all_nodes, producer


def make_names_unique(part: Any) -> None:
    """Gives library functions, after they were checked, names that are unique in this process, and so to their nodes.

    A call that TensorFlow inlines names what it puts in its place CALL/NODE, which the graph may hold already (a
    ``tf.cond`` has ``cond`` and ``cond/Identity``). Only its graph optimizer, which does not run here, would notice.
    """
    token = uuid.uuid4().hex
    names = {function.signature.name: f"{function.signature.name}_{token}" for function in part.library.function}
    for function in part.library.function:
        function.signature.name = names[function.signature.name]
        _rename_nodes(function, {node.name: f"{node.name}_{token}" for node in function.node_def})
    for node in all_nodes(part):
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for call in [value.func] if value.HasField("func") else value.list.func:
                call.name = names.get(call.name, call.name)


def _rename_nodes(function: Any, names: Mapping[str, str]) -> None:
    """Renames the nodes of a library function, whose tensors are written ``node:output:0`` and ``^node``."""

    def renamed(text: str) -> str:
        control, name = text[: text.startswith("^")], producer(text)
        return control + names.get(name, name) + text.removeprefix("^").removeprefix(name)

    for node in function.node_def:
        node.name = names[node.name]
        node.input[:] = [renamed(text) for text in node.input]
    for ends in (function.ret, function.control_ret):
        for key, text in list(ends.items()):
            ends[key] = renamed(text)
