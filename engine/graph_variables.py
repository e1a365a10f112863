"""Variables of a graph that is only read: known by name, dtype and shape, without a ``tf.Variable``."""

from __future__ import annotations

from collections.abc import Iterable
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
        trainable: whether it is in the collection of trainable variables.
        shape: None of unknown rank; a length of unknown size is None.
        dtype: of its values.
        is_resource: made with ``use_resource=True``.
    """

    name: str
    node: str
    initial: str
    trainable: bool
    shape: tuple[int | None, ...] | None
    dtype: Any
    is_resource: bool


def of_nodes(nodes: Iterable[Any], *, trainable: Iterable[str], initial: dict[str, str]) -> list[GraphVariable]:
    """The variables that the nodes of a GraphDef hold, in its order.

    Args:
        nodes: NodeDefs.
        trainable: names of nodes whose variables are in the collection of trainable variables.
        initial: node -> name of the tensor of its initial value, where known.
    """
    wanted = frozenset(trainable)
    found = []
    for node in nodes:
        if node.op not in HOLDERS:
            continue
        shape = node.attr["shape"].shape
        found.append(
            GraphVariable(
                name=node.name,
                node=node.name,
                initial=initial.get(node.name, ""),
                trainable=node.name in wanted,
                shape=None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim),
                dtype=tf.as_dtype(node.attr["dtype"].type),
                is_resource=node.op == "VarHandleOp",
            )
        )
    return found
