"""Variables of a graph that is only read: they have a name, a dtype and a shape, but no ``tf.Variable``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# Ops that hold a variable. "Variable" is the name of VariableV2 before TensorFlow 0.12.
HOLDERS = frozenset(["VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"])


@dataclass(frozen=True)
class GraphVariable:
    """One variable of a graph.

    Attributes:
        name: the variable's path, which is the op's name without ``:0``.
        node: the name of the node that holds it: a VarHandleOp (a handle) or a VariableV2 (a reference).
        initial: the name of the node or tensor of its initial value, "" if unknown.
        collected: whether it is in the collection of trainable variables.
        shape: its shape, with None for an unknown length; None if the rank is unknown.
        is_resource: whether it was created with ``use_resource=True``.
        statistic: whether it is a moving mean or variance, which follows its layer.
    """

    name: str
    node: str
    initial: str
    collected: bool
    shape: tuple[int | None, ...] | None
    dtype: Any
    is_resource: bool
    statistic: bool = False


def read_node(node: Any, *, name: str, collected: bool, initial: str = "") -> GraphVariable:
    """Reads the variable that a NodeDef of a type in ``HOLDERS`` holds."""
    shape = node.attr["shape"].shape
    return GraphVariable(
        name=name,
        node=name,
        initial=initial,
        collected=collected,
        shape=None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim),
        dtype=tf.as_dtype(node.attr["dtype"].type or tf.float32),
        is_resource=node.op == "VarHandleOp",
    )


def read_nodes(nodes: Iterable[Any], *, collected: Collection[str], initial: Mapping[str, str]) -> list[GraphVariable]:
    """Reads the variables that NodeDefs hold, in the order of the nodes.

    ``collected`` are the names of nodes whose variables are in the collection of trainable variables; ``initial``
    gives, where known, the name of the tensor of a node's initial value.
    """
    return [
        read_node(node, name=node.name, collected=node.name in collected, initial=initial.get(node.name, ""))
        for node in nodes
        if node.op in HOLDERS
    ]
