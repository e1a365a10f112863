"""Reads the names in a GraphDef, and changes a node of one in place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf


def producer(name: str) -> str:
    """Returns the node of an input such as ``x``, ``x:1``, ``^x`` or, in functions, ``x:out:0``."""
    return name.removeprefix("^").partition(":")[0]


def all_nodes(definition: Any) -> Iterator[Any]:
    """The NodeDefs of a GraphDef, including those of its functions."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def tensor_name(name: str) -> str:
    """Completes ``scope/op`` to ``scope/op:0``; full names stay."""
    return name if re.search(r":\d+$", name) else f"{name}:0"


def replace_node(node: Any, op: str, inputs: Iterable[str], attributes: Mapping[str, Any]) -> None:
    """Gives a node another operation, inputs and attributes; it keeps its name.

    An attribute is an AttrValue, a tf.DType, a bool, a whole number or an array (of a constant).
    """
    new = tf.compat.v1.NodeDef(name=node.name, op=op, input=list(inputs))
    for name, value in attributes.items():
        if isinstance(value, tf.compat.v1.AttrValue):
            new.attr[name].CopyFrom(value)
        elif isinstance(value, tf.DType):
            new.attr[name].type = value.as_datatype_enum
        elif isinstance(value, bool):
            new.attr[name].b = value
        elif isinstance(value, int):
            new.attr[name].i = value
        else:
            new.attr[name].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.CopyFrom(new)


def add_constant(definition: Any, name: str, value: Any) -> None:
    """Adds a constant to a GraphDef; ``value`` is an array with a dtype."""
    node = definition.node.add(name=name)
    replace_node(node, "Const", (), {"dtype": tf.as_dtype(value.dtype), "value": value})
