"""What a training graph declares beside its nodes: its collections and savers, of a live graph or of a file alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

_KEYS = tf.compat.v1.GraphKeys


@dataclass(frozen=True, eq=False)
class GraphFacts:
    """A graph as data. All names are those of nodes or tensors.

    Attributes:
        source: what it is, for the report.
        definition: the GraphDef.
        variables: nodes of the variables in the collection of global variables.
        collected: nodes of those in the collection of trainable variables.
        update_ops, losses, train_ops: collections of these.
        savers: for each saver the tensor that saves.
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
    def of_graph(cls, graph: tf.Graph, *, source: str = "graph") -> GraphFacts:
        """Of a live v1 graph."""
        return cls(
            source=source,
            definition=graph.as_graph_def(),
            variables=frozenset(_holders(graph.get_collection(_KEYS.GLOBAL_VARIABLES))),
            collected=frozenset(_holders(graph.get_collection(_KEYS.TRAINABLE_VARIABLES))),
            update_ops=_names(graph.get_collection(_KEYS.UPDATE_OPS)),
            losses=_names(graph.get_collection(_KEYS.LOSSES)),
            train_ops=_names(graph.get_collection(_KEYS.TRAIN_OP)),
            savers=_savers(graph),
        )


def _holders(variables: Iterable[Any]) -> list[str]:
    """Nodes of variables; a partitioned one has a node for each part, a Keras variable wraps one."""
    found = []
    for variable in variables:
        variable = variable if isinstance(variable, tf.Variable) else getattr(variable, "value", variable)
        found += [part.op.name for part in (variable if hasattr(variable, "as_tensor") else [variable])]
    return found


def _names(members: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member if isinstance(member, str) else member.name for member in members))


def _savers(graph: tf.Graph) -> tuple[str, ...]:
    found = []
    for saver in graph.get_collection(_KEYS.SAVERS):
        definition = saver if hasattr(saver, "save_tensor_name") else saver.saver_def
        found.append(definition.save_tensor_name)
    return tuple(found)
