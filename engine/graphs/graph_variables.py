"""Variables of a graph that is only read: known by name, dtype and shape, without a ``tf.Variable``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# Ops that hold a variable: "Variable" is VariableV2 as written before TensorFlow 0.12.
HOLDERS = frozenset(["VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"])


@dataclass(frozen=True)
class GraphVariable:
    """One variable of a graph.

    Attributes:
        name: its path, the op's name without ``:0``.
        node: the node that holds it: a VarHandleOp (its handle) or a VariableV2 (a reference).
        initial: name of the node or tensor that gives the initial value, "" where none is known.
        collected: whether it is in the collection of trainable variables.
        shape: None of unknown rank; a length of unknown size is None.
        dtype: of its values.
        is_resource: made with ``use_resource=True``.
        statistic: a moving mean or variance, which follows its layer.
    """

    name: str
    node: str
    initial: str
    collected: bool
    shape: tuple[int | None, ...] | None
    dtype: Any
    is_resource: bool
    statistic: bool = False


def of_node(node: Any, *, name: str, collected: bool, initial: str = "") -> GraphVariable:
    """The variable that a NodeDef of ``HOLDERS`` holds."""
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


def of_nodes(nodes: Iterable[Any], *, collected: Collection[str], initial: Mapping[str, str]) -> list[GraphVariable]:
    """The variables that the nodes of a GraphDef hold, in its order.

    Args:
        nodes: NodeDefs.
        collected: names of nodes whose variables are in the collection of trainable variables.
        initial: node -> name of the tensor of its initial value, where known.
    """
    return [
        of_node(node, name=node.name, collected=node.name in collected, initial=initial.get(node.name, ""))
        for node in nodes
        if node.op in HOLDERS
    ]
