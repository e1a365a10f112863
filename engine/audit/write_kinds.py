"""Classifies the writes to a graph's variables: the five kinds in audit.json, and how each is recognised.

- optimizer apply: an optimizer's kernel takes the variable, as a weight or as a slot; or a value computed from a gradient
  is assigned to a variable that a loss reads (optimizers without a kernel, sparse updates).
- regulariser path: as above, but no gradient of a loss on examples reaches the weight, while that of a regulariser does.
- EMA: the variable's name is that of a shadow (``ExponentialMovingAverage``), or the op is TensorFlow's
  ``assign_moving_average`` and neither of the rules of UPDATE_OPS applies.
- UPDATE_OPS: the op is in that collection, or computes one of its members; or the variable's name is that of a statistic.
- assign: everything else, such as decoupled decay, step counters, Adam's powers, accumulators and unknown ops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from engine.audit.gradient_paths import GradientPaths, find_dependents, is_seed
from engine.audit.writes import Holders, Write
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node
from engine.graphs.reach import reach
from engine.porting.slot_names import is_average
from engine.selection.statistics import is_statistic

Kind = Literal["optimizer apply", "regulariser path", "EMA", "UPDATE_OPS", "assign"]

_GATHERS = frozenset(["NoOp", "Identity", "IdentityN", "Merge", "_Ret", "_Loop", "_Arg"])


class WriteKinds:
    """Classifies each of the writes of a graph.

    ``update_ops`` are the names in the collection UPDATE_OPS; ``statistics`` and ``averages`` are the names of variables
    known to be such, in addition to those recognised by their names.
    """

    def __init__(
        self,
        flat: FlatGraph,
        holders: Holders,
        paths: GradientPaths,
        *,
        writes: Iterable[Write],
        update_ops: Iterable[str],
        statistics: Collection[str] = (),
        averages: Collection[str] = (),
    ) -> None:
        self._paths = paths
        self._statistics, self._averages = statistics, averages
        members = (flat.node(name.partition(":")[0]) for name in update_ops)
        self._update_ops = _gathered(node for node in members if node is not None)
        self._writes = list(writes)
        self._weights = {write.node: write.variable for write in self._writes if write.position == 0}
        self._from_gradients = self._fed(flat, holders)

    def classify(self, write: Write) -> Kind:
        """The kind of a write."""
        if self.is_update(write):
            # that of the optimizer's op, also for a write to one of its slots
            weight = self._weights.get(write.node, write.variable) if write.is_apply else write.variable
            read = weight not in self._paths.reached and weight in self._paths.regularised
            return "regulariser path" if self._paths.known and read else "optimizer apply"
        name = write.variable or ""
        if self.is_shadow(name):
            return "EMA"
        if write.node in self._update_ops or self.is_statistic(name):
            return "UPDATE_OPS"
        return "EMA" if "AssignMovingAvg" in write.node.name else "assign"

    def is_update(self, write: Write) -> bool:
        """Whether an optimizer makes this write."""
        return write.is_apply or (write.node in self._from_gradients and write.variable in self._paths.read_by_losses)

    def is_statistic(self, name: str) -> bool:
        """Whether a variable is a moving statistic, such as BatchNorm's."""
        return name in self._statistics or is_statistic(name)

    def is_shadow(self, name: str) -> bool:
        """Whether a variable is a moving average of another."""
        return name in self._averages or is_average(name)

    def _fed(self, flat: FlatGraph, holders: Holders) -> set[Node]:
        """The nodes computed from a gradient, possibly through a state that no loss reads, such as Adam's m."""
        found = find_dependents(flat, (node for node in flat.nodes if is_seed(node)))
        states: set[str] = set()
        while found:
            new = {
                write.variable
                for write in self._writes
                if write.variable and write.node in found and write.variable not in self._paths.read_by_losses
            } - states
            if not new:
                break
            states |= new
            found |= find_dependents(flat, (node for node, name in holders.nodes().items() if name in new))
        return found


def _gathered(nodes: Iterable[Node]) -> set[Node]:
    """These nodes, and the nodes that they only group: behind NoOps, identities and calls."""

    def following(node: Node) -> Iterator[Node]:
        yield from node.body
        if node.op in _GATHERS or node.results:
            yield from (tensor.node for tensor in node.inputs if node.op in _GATHERS)
            yield from node.controls if node.op != "_Arg" else ()

    return set(reach(nodes, following))
