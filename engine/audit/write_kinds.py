"""What kind of write it is that a variable gets: the five words of audit.json, and how each is recognised.

optimizer apply
    an optimizer's kernel (``ResourceApplyAdam``, ``SparseApplyMomentum`` ...) takes the variable, as weight or as slot;
    or an assignment of a value computed from a gradient, to a variable that a loss reads (optimizers without a kernel,
    sparse updates).
regulariser path
    the same, where the gradient of no loss on examples reaches the weight (there is no way, or ``stop_gradient`` cuts
    it) but that of a regulariser does: a norm of weights moves it alone.
EMA
    the variable's name ends in ``ExponentialMovingAverage`` (what TensorFlow names shadows by default), or the op is
    TensorFlow's ``assign_moving_average`` and neither of the rules of UPDATE_OPS holds.
UPDATE_OPS
    the op is in the collection of that name, or makes one of its members; or the variable is a statistic by its name
    (``moving_mean`` ...).
assign
    all else: decoupled decay, step counters, Adam's powers, accumulators, ops unknown here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

from engine.audit.gradient_paths import GradientPaths, forward, is_seed
from engine.audit.graphdef import FlatGraph, Node
from engine.audit.writes import Holders, Write
from engine.selection.statistics import is_statistic

Kind = Literal["optimizer apply", "regulariser path", "EMA", "UPDATE_OPS", "assign"]

_SHADOW = re.compile(r"(.*/)?ExponentialMovingAverage(/(biased|local_step))?")
_GATHERS = frozenset(["NoOp", "Identity", "IdentityN", "Merge", "_Ret", "_Loop", "_Arg"])


class Kinds:
    """Tells the kind of each write of a graph.

    Args:
        flat, holders, paths: the graph, its variables and its gradients.
        writes: all that are asked about.
        update_ops: names in the collection UPDATE_OPS.
        statistics, averages: names of variables known to be such, beside those that are named like it.
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

    def of(self, write: Write) -> Kind:
        if self.is_update(write):
            weight = self._weight(write)
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
        return name in self._statistics or is_statistic(name)

    def is_shadow(self, name: str) -> bool:
        return name in self._averages or _SHADOW.fullmatch(name) is not None

    def _weight(self, write: Write) -> str | None:
        """The weight that an optimizer's op updates; write may be that of a slot."""
        return self._weights.get(write.node, write.variable) if write.is_apply else write.variable

    def _fed(self, flat: FlatGraph, holders: Holders) -> set[Node]:
        """Nodes computed from a gradient, also by way of a state that no loss reads, such as Adam's m."""
        found = forward(flat, (node for node in flat.nodes if is_seed(node)))
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
            found |= forward(flat, (node for node, name in holders.nodes().items() if name in new))
        return found


def _gathered(nodes: Iterable[Node]) -> set[Node]:
    """The nodes, and those that they only gather: behind groups, identities and calls."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        pending.extend(node.body)
        if node.op in _GATHERS or node.results:
            pending.extend(tensor.node for tensor in node.inputs if node.op in _GATHERS)
            pending.extend(node.controls if node.op != "_Arg" else [])
    return found
