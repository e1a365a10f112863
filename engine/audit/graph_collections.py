"""What a training graph declares besides its nodes: its collections and savers, for live graphs and files alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

_KEYS = tf.compat.v1.GraphKeys


@dataclass(frozen=True, eq=False)
class GraphFacts:
    """A training graph as data; its members are given by the names of nodes or tensors.

    Attributes:
        source, definition: the name of the graph in reports, and the GraphDef.
        variables, collected: the nodes of the variables in the collections of global and of trainable variables.
        update_ops, losses, train_ops: the members of these collections.
        savers: the tensor that saves, for each saver.
    """

    source: str
    definition: Any
    variables: frozenset[str] = frozenset()
    collected: frozenset[str] = frozenset()
    update_ops: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    train_ops: tuple[str, ...] = ()
    savers: tuple[str, ...] = ()

    @classmethod
    def from_graph(cls, graph: tf.Graph, *, source: str = "graph") -> GraphFacts:
        """Reads the facts of a live v1 graph."""
        return cls(
            source=source,
            definition=graph.as_graph_def(),
            variables=frozenset(_holders(graph.get_collection(_KEYS.GLOBAL_VARIABLES))),
            collected=frozenset(_holders(graph.get_collection(_KEYS.TRAINABLE_VARIABLES))),
            update_ops=_names(graph.get_collection(_KEYS.UPDATE_OPS)),
            losses=_names(graph.get_collection(_KEYS.LOSSES)),
            train_ops=_names(graph.get_collection(_KEYS.TRAIN_OP)),
            savers=tuple(
                (saver if hasattr(saver, "save_tensor_name") else saver.saver_def).save_tensor_name
                for saver in graph.get_collection(_KEYS.SAVERS)
            ),
        )


def _holders(variables: Iterable[Any]) -> list[str]:
    """The nodes of variables; a partitioned variable has a node for each part, and a Keras variable wraps one."""
    found = []
    for variable in variables:
        variable = variable if isinstance(variable, tf.Variable) else getattr(variable, "value", variable)
        found += [part.op.name for part in (variable if hasattr(variable, "as_tensor") else [variable])]
    return found


def _names(members: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member if isinstance(member, str) else member.name for member in members))
