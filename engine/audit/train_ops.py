"""Finds the train op of a graph: what is fetched so that the optimizers' updates run.

Being an optimizer's op is not enough. ``minimize`` adds its op to the collection TRAIN_OP, but a program may put more on
top of it: an Estimator adds 1 to global_step under control dependencies, others group several optimizers or update
averages afterwards. So the train op is looked for downstream of the updates, among the ops that nothing waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from engine.audit.graph_collections import GraphFacts
from engine.audit.writes import Write
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node
from engine.graphs.op_kinds import READS
from engine.graphs.reach import reach
from engine.text import join_words


@dataclass(frozen=True)
class TrainOp:
    """An op that may be the train op, and the writes that run when it is fetched."""

    name: str
    writes: frozenset[Write]

    def describe(self, updates: Collection[Write], *, total: int) -> str:
        """A line for people: how many of all variables it would write, and which of them by an optimizer."""
        names = {write.variable for write in self.writes if write.variable}
        moved = sorted({write.variable for write in self.writes if write in updates and write.variable})
        by = f"; an optimizer moves {join_words(moved, most=12)}" if moved else ""
        return f"{self.name} would write {len(names)} of {total} variables{by}"


def find_train_ops(
    flat: FlatGraph, facts: GraphFacts, *, writes: Iterable[Write], updates: Collection[Write]
) -> tuple[list[TrainOp], list[TrainOp]]:
    """Finds the ops that may be the train op, and those that run a part of what one of them runs.

    ``writes`` are all writes of the graph, and ``updates`` those that an optimizer makes. Of ops that run the same
    writes, one is named: the last one if it is in TRAIN_OP, else another member, else the op that counts steps, else a
    group. Members of TRAIN_OP that none of the found ops runs are added.
    """
    by_node: dict[Node, list[Write]] = {}
    for write in writes:
        by_node.setdefault(write.node, []).append(write)

    def at(node: Node) -> TrainOp:
        running = flat.find_running([node, *node.results])
        return TrainOp(node.name, frozenset(write for one in running for write in by_node.get(one, ())))

    collected = [n for n in (flat.top.get(name.partition(":")[0]) for name in facts.train_ops) if n is not None]
    last = [at(node) for node in _ends(flat, {update.node for update in updates})]
    for member in (at(node) for node in collected):
        if not any(member.writes <= one.writes for one in last):
            last.append(member)
    if not last:
        last = [at(node) for node in collected]
    largest = [one for one in last if not any(one.writes < other.writes for other in last)]
    counting = [node for node in flat.top.values() if node.op in ("AssignAdd", "AssignAddVariableOp")]
    order = {node.name: number for number, node in enumerate(collected)}
    groups = sorted(largest, key=lambda one: (one.name not in order, flat.top[one.name].op != "NoOp"))
    own = [one for one in groups if one.name in order]
    named: dict[frozenset[Write], TrainOp] = {}
    for one in largest:
        if one.writes not in named:
            running = flat.find_running([flat.top[one.name], *flat.top[one.name].results])
            inside = [at(node) for node in (*collected, *counting) if node in running]
            named[one.writes] = next(other for other in (*own, *inside, *groups) if other.writes == one.writes)
    partly = [one for one in last if one not in largest and flat.top[one.name].op not in READS]
    return sorted(named.values(), key=lambda one: order.get(one.name, len(order))), partly


def note_others(
    names: Sequence[str], run: Iterable[Write], candidates: Sequence[TrainOp], partly: Sequence[TrainOp], *, found: bool
) -> list[str]:
    """Returns sentences about ops that run less than the train op (if it was ``found``), or more (if it was given)."""
    if found:
        rest = [one.name for one in partly]
        return [f"{names[0]} runs more updates than {join_words(rest)}; --train_op chooses another"] if rest else []
    here = frozenset(run)
    mine = {write.variable for write in here}
    more = {one.name: len({write.variable for write in one.writes} - mine) for one in candidates if here < one.writes}
    return [
        f"{name} runs {', '.join(names)} too, and may write {count} more variables"
        for name, count in more.items()
        if count
    ]


def _ends(flat: FlatGraph, updates: Iterable[Node]) -> list[Node]:
    """Returns the ops downstream of some of these nodes, by data or control, that nothing waits for."""
    waiting: dict[Node, list[Node]] = {}
    for node in flat.nodes:
        for before in (*(tensor.node for tensor in node.inputs), *node.controls):
            waiting.setdefault(before, []).append(node)
        for inner in node.body:
            waiting.setdefault(inner, []).append(node)
    found = reach(updates, lambda node: waiting.get(node, ()))
    return [
        node
        for node in flat.top.values()
        if node in found
        and all(reader in node.results for reader in waiting.get(node, ()))
        and not any(waiting.get(result) for result in node.results)
    ]
