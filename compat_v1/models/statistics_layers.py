"""Finds the layers of an old graph that keep statistics, and the operations that update these."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from compat_v1.graphs.endpoints import Graph, producer, tensor_name
from compat_v1.models.values import ASSIGNMENTS, find_written, use_values
from engine.graphs.op_allowlist import VARIABLES
from engine.graphs.reach import reach
from engine.selection.statistics import is_statistic, statistic_layer

_PASSES = frozenset(["Identity", "StopGradient", "Cast", "Mul", "Sub", "Add", "AddV2", "Neg", "RealDiv", "Switch"])


@dataclass(frozen=True)
class StatisticsLayer:
    """A layer that keeps statistics.

    Attributes:
        path: the scope of its variables.
        scope: the scope of its operations, which may differ.
        updates: variable -> the assignment that moves it in training.
        moments: variable -> the tensor of the batch that it averages, where that is clear.
    """

    path: str
    scope: str
    updates: Mapping[str, str]
    moments: Mapping[str, str]


def find_statistics_layers(
    graph: Graph, update_ops: Sequence[str], inputs: Collection[str]
) -> tuple[StatisticsLayer, ...]:
    """Finds the layers whose statistics move in training.

    ``update_ops`` is the collection of that name. If it is empty, the assignments to variables with the name of a
    statistic count that depend on the nodes ``inputs``, which the data are fed to.
    """
    variables = {name for name, node in graph.nodes.items() if node.op in VARIABLES}
    if update_ops:
        ends = [producer(name) for name in update_ops if producer(name) in graph.nodes]
    else:
        fed = graph.dependents(inputs, control=False)
        ends = [
            name
            for name, node in graph.nodes.items()
            if node.op in ASSIGNMENTS and name in fed and is_statistic(_whole(find_written(graph, name)))
        ]
    grouped: dict[str, dict[str, str]] = {}
    for end in ends:
        found = [name for name in _assignments(graph, end) if find_written(graph, name) in variables]
        if not found:
            continue
        last = end if end in found else found[-1]
        layer = _layer(find_written(graph, last))
        for name in found:
            grouped.setdefault(layer, {})[find_written(graph, name)] = name
    moments = _find_moments(graph, {v: name for updates in grouped.values() for v, name in updates.items()}, inputs)
    return tuple(
        StatisticsLayer(path, _scope(list(updates.values())), updates, {v: moments[v] for v in updates if v in moments})
        for path, updates in grouped.items()
    )


def _whole(name: str) -> str:
    return re.sub(r"/part_\d+$", "", name)


def _layer(variable: str) -> str:
    name = _whole(variable)
    return statistic_layer(name) if is_statistic(name) else name.rpartition("/")[0]


def _assignments(graph: Graph, end: str) -> list[str]:
    """The assignments that an update operation is or waits for within the scope of its layer, the first to run first."""
    scope = _scope([end])

    def before(name: str) -> list[str]:
        names = [producer(source) for source in graph.nodes[name].input if producer(source) in graph.nodes]
        return [each for each in names if not scope or each.startswith(f"{scope}/")]

    return [name for name in reversed(list(reach([end], before))) if graph.nodes[name].op in ASSIGNMENTS]


def _scope(nodes: Sequence[str]) -> str:
    """The scope that all operations of a layer lie in, given the assignments to its statistics."""
    parts = [name.split("/")[:-1] for name in nodes]
    common: list[str] = []
    for each in zip(*parts, strict=False):
        if len(set(each)) > 1:
            break
        common.append(each[0])
    while common and re.fullmatch(r"(Assign(MovingAvg|Sub|Add)?|cond)(_\d+)?", common[-1]):
        common.pop()
    return "/".join(common)


def _find_moments(graph: Graph, updates: Mapping[str, str], inputs: Collection[str]) -> dict[str, str]:
    """The tensor that each statistic averages: the only one of the data in its update, where there is only one.

    What only helps to update another statistic, as the counter of a zero-debiased average does, has none.
    """
    definition = tf.compat.v1.GraphDef()
    definition.node.extend(graph.nodes.values())
    use_values(definition, updates.values(), where=graph.where)
    pure = Graph(definition, where=graph.where)
    fed = pure.dependents(inputs, control=False)
    helping = {
        name for name in updates.values() if pure.dependents([name], control=False) & set(updates.values()) - {name}
    }
    found = {}
    for variable, name in updates.items():
        leaves: dict[str, None] = {}
        pending = [] if name in helping else [name]
        for source in pending:  # grows
            node = pure.nodes[producer(source)]
            if node.name not in fed:
                continue
            if node.op in _PASSES:
                data = [each for each in node.input if not each.startswith("^")]
                pending += data[:1] if node.op == "Switch" else data
            else:
                leaves[tensor_name(source)] = None
        if len(leaves) == 1:
            found[variable] = next(iter(leaves))
    return found
