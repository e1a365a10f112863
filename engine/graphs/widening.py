"""Turns a graph in float32 into the same graph in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from engine import tensorflow_private
from engine.errors import GraphError
from engine.graphs.node_editing import all_nodes, replace_node
from engine.text import join_some

_FROM, _TO = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum


def widen_graph(definition: Any, *, where: str) -> None:
    """Changes a GraphDef in place: what is float32 becomes float64, in its functions too.

    Raises GraphError if an operation has no kernel for float64; a fused batch norm has none.
    """
    refused = []
    for node in all_nodes(definition):
        if node.op == "Const" and node.attr["dtype"].type == _FROM:
            value = tf.make_ndarray(node.attr["value"].tensor).astype(np.float64)
            replace_node(node, "Const", list(node.input), {"dtype": tf.float64, "value": value})
            continue
        op = tensorflow_private.op_definition(node.op)
        allowed = {each.name: list(each.allowed_values.list.type) for each in op.attr} if op is not None else {}
        for name, value in node.attr.items():
            if value.type == _FROM and name != "U":
                value.type = _TO
                if allowed.get(name) and _TO not in allowed[name]:
                    refused.append(f"{node.name} ({node.op})")
            for place, each in enumerate(value.list.type):
                value.list.type[place] = _TO if each == _FROM else each
        if op is not None and any(each.type == _FROM for each in (*op.input_arg, *op.output_arg)):
            refused.append(f"{node.name} ({node.op})")
    for function in definition.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _TO if argument.type == _FROM else argument.type
    if refused:
        raise GraphError(
            f"precision=float64: {where} has {len(refused)} operations that compute in float32 alone: {join_some(refused)}; "
            "--precision=float32"
        )
