"""Changes a node of a GraphDef in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf


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
