"""Audit of a training graph: what may be written when the train op is fetched, by which op, and why.

The graph is read as data; nothing of it is run. ``audit`` is for v1 graphs and MetaGraphs, ``with_moved`` adds what did
move, by digest. For the engine's own steps and runs see ``audit_training``.

Known limits, each told in ``notes`` where it matters: Python functions (py_func) can write what they like; a dataset's
function counts as run as soon as anything takes from an iterator; an iterator's or queue's own threads are not part of
what a train op fetches; a gradient that the user built by hand is judged by what feeds the optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import text
from engine.audit import findings
from engine.audit.findings import Finding
from engine.audit.gradient_paths import GradientPaths, find_losses, is_zero
from engine.audit.graph_collections import GraphFacts
from engine.audit.graphdef import FlatGraph, Node, Tensor, data_ancestors
from engine.audit.write_kinds import Kinds
from engine.audit.writes import Holders, Write, gradient_inputs, slots_by_name, writes
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable
from engine.selection import filters
from engine.selection.filters import Filter
from engine.text import join_some, table


class AuditError(InputError):
    """A graph without the train op that is asked for, or one that cannot be audited."""


@dataclass(frozen=True)
class Row:
    """One variable, as in audit.json.

    Attributes:
        path: its name.
        written: whether an op that may write it runs.
        by: (op, kind) of each such op; engine.audit.graph_audit.write_kinds says what the kinds mean.
        gradient: "yes": the gradient of a loss on examples can reach it; "cut at OP"; "none": no way to such a loss.
        trainable_collection: whether it is in the collection of trainable variables.
        slots: variables that an optimizer keeps for it.
        moved: whether its bytes changed, where that was asked.
    """

    path: str
    written: bool
    by: tuple[tuple[str, str], ...]
    gradient: str
    trainable_collection: bool
    slots: tuple[str, ...]
    moved: bool | None = None

    def to_json(self) -> dict[str, Any]:
        row = dataclasses.asdict(self) | {
            "by": [{"op": op, "kind": kind} for op, kind in self.by],
            "slots": list(self.slots),
        }
        if self.moved is None:
            del row["moved"]
        return row


@dataclass(frozen=True)
class Audit:
    """The result. ``notes`` are limits of it, for people; audit.json has none."""

    source: str
    train_op: str
    variables: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def row(self, path: str) -> Row:
        return next(row for row in self.variables if row.path == path)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "train_op": self.train_op,
            "variables": [row.to_json() for row in self.variables],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        """As aligned text: the variables, then the findings."""
        head = ("variable", "written", "gradient", "trainable", "slots", "by")
        body = [
            (
                row.path,
                ("yes" if row.written else "no") + {None: "", True: ", moved", False: ", did not move"}[row.moved],
                row.gradient,
                "yes" if row.trainable_collection else "no",
                str(len(row.slots)),
                ", ".join(f"{op} ({kind})" for op, kind in row.by),
            )
            for row in self.variables
        ]
        lines = [table([head, *body])]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"finding: {finding.path}: {finding.rule}\n    {finding.fix}" for finding in self.findings]
        return "\n".join(lines)


def audit_graph(
    facts: GraphFacts,
    train_op: str | Sequence[str] | None = None,
    *,
    expect_frozen: Filter | str | None = None,
) -> Audit:
    """Audits a training graph.

    Args:
        facts: the graph: ``GraphFacts.of_graph(graph)``, or a MetaGraph's ``facts()``.
        train_op: name(s) of what is fetched to train; None: the one that is found.
        expect_frozen: variables that must not be written; each one that may be is a finding. Optimizer's state, step
            counters and averages are no variables to it.

    Raises:
        AuditError: no such op, none or several found (they are listed).
        FilterError: an item of ``expect_frozen`` matches nothing.
        FlatGraphError: the graph contradicts itself.
    """
    flat = FlatGraph(facts.definition)
    names = _train_ops(flat, facts, train_op)
    roots = [node for name in names for node in _named(flat, name)]
    holders = Holders(flat, collected=facts.collected)
    everywhere = writes(flat.nodes, holders)
    running = flat.runs(roots)
    run = [write for write in everywhere if write.node in running]
    updates = [write for write in everywhere if write.is_apply and write.position == 0]
    weights = {write.variable for write in updates if write.variable}
    weights |= {name for name, variable in holders.variables.items() if variable.collected}
    assigned = [tensor for write in everywhere for tensor in write.node.inputs]
    paths = GradientPaths(flat, holders, losses=find_losses(flat, assigned, facts.losses), weights=weights)
    kinds = Kinds(flat, holders, paths, writes=everywhere, update_ops=facts.update_ops)
    slots = owned_slots(everywhere, holders, paths)
    by_variable: dict[str | None, list[Write]] = {}
    for write in run:
        by_variable.setdefault(write.variable, []).append(write)
    rows = []
    for name, variable in holders.variables.items():
        mine = by_variable.get(name, [])
        rows.append(
            Row(
                path=name,
                written=bool(mine),
                by=tuple(dict.fromkeys((write.node.name, kinds.of(write)) for write in mine)),
                gradient=_gradient(name, paths, flat, holders, updates),
                trainable_collection=variable.collected,
                slots=slots.get(name, ()),
            )
        )
    found = findings.find(
        rows,
        findings.Evidence(
            facts=facts,
            flat=flat,
            holders=holders,
            paths=paths,
            kinds=kinds,
            running=running,
            run=run,
            states=_states(rows, slots, holders, paths, kinds),
            zero=frozenset(
                write.node
                for write in updates
                if (grads := gradient_inputs(write.node)) and all(is_zero(grad) for grad in grads)
            ),
        ),
        expect_frozen=filters.parse_filter(expect_frozen) if isinstance(expect_frozen, str) else expect_frozen,
    )
    notes = [] if paths.known else ["no loss was found: gradients are judged by what feeds the optimizer"]
    python = sorted(node.name for node in running if "PyFunc" in node.op)
    if python:
        notes.append(f"Python functions run, and can write what they like: {', '.join(python[:5])}")
    return Audit(facts.source, ", ".join(names), tuple(rows), tuple(found), tuple(notes))


def with_moved(found: Audit, before: Mapping[str, str], after: Mapping[str, str]) -> Audit:
    """The audit with its dynamic side: what moved between two moments around real training.

    Args:
        before, after: path -> digest (``engine.selection.selection.digest``) of the variables; rows without one are left as is.
    """
    rows = []
    added = []
    for row in found.variables:
        if row.path in before and row.path in after:
            row = dataclasses.replace(row, moved=before[row.path] != after[row.path])
        if row.moved and not row.written:
            added.append(findings.moved_though_not_written(row.path, "in training"))
        rows.append(row)
    return dataclasses.replace(found, variables=tuple(rows), findings=(*found.findings, *added))


def train_op_candidates(flat: FlatGraph, facts: GraphFacts) -> list[str]:
    """Ops that may be the train op: those of the collection of that name; else all that an optimizer's op runs for
    and that nothing waits for."""
    collected = [name for name in facts.train_ops if flat.node(name.partition(":")[0])]
    if collected:
        return collected
    waited = {before for node in flat.nodes for before in (*node.controls, *(t.node for t in node.inputs))}
    waited |= {node for node in waited if node.op == "_Ret"}
    found = []
    for node in flat.top.values():
        if node in waited or any(result in waited for result in node.results):
            continue
        if any(Write(one, None, 0).is_apply for one in flat.runs([node])):
            found.append(node.name)
    return found


def _train_ops(flat: FlatGraph, facts: GraphFacts, wanted: str | Sequence[str] | None) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if wanted is not None and names and all(_named(flat, name) for name in names):
        return names
    candidates = train_op_candidates(flat, facts)
    listed = join_some(candidates, most=10)
    if wanted is None:
        if len(candidates) == 1:
            return candidates
        if not candidates:
            raise AuditError(f"{facts.source}: no train op: no optimizer's op is in the graph; name what is fetched")
        raise AuditError(f"{facts.source}: train_op=None: {len(candidates)} ops may be it; name one of: {listed}")
    if not names:
        raise AuditError("train_op=[]: at least one op is fetched")
    missing = next(name for name in names if not _named(flat, name))
    hint = f"; candidates: {listed}" if listed else text.nearest(missing, list(flat.top))
    raise AuditError(f"train_op={missing!r}: {facts.source} has no such op{hint}")


def _named(flat: FlatGraph, name: str) -> list[Node]:
    """The node of an op or tensor by name, only where it can be fetched: not within a function."""
    node = flat.top.get(name.removeprefix("^").partition(":")[0])
    return [] if node is None else [node, *node.results]


def owned_slots(everywhere: Iterable[Write], holders: Holders, paths: GradientPaths) -> dict[str, tuple[str, ...]]:
    """Variable -> its slots: what an optimizer's op takes after the weight, and what is named like it."""
    found: dict[str, dict[str, None]] = {}
    by_node: dict[Node, list[Write]] = {}
    for write in everywhere:
        if write.is_apply:
            by_node.setdefault(write.node, []).append(write)
    for same in by_node.values():
        weights = [write.variable for write in same if write.position == 0]
        for write in same:
            for weight in weights:
                if weight and write.position > 0 and write.variable:
                    found.setdefault(weight, {})[write.variable] = None
    for weight, slot in slots_by_name(holders.variables):
        if slot not in paths.read_by_losses:
            found.setdefault(weight, {})[slot] = None
    return {weight: tuple(slots) for weight, slots in found.items()}


def _states(
    rows: Iterable[Row], slots: Mapping[str, Sequence[str]], holders: Holders, paths: GradientPaths, kinds: Kinds
) -> frozenset[str]:
    """Names of variables that are no part of the model: slots, counters, averages."""
    owned = {slot for several in slots.values() for slot in several}
    found = set()
    for row in rows:
        variable: GraphVariable = holders.variables[row.path]
        if variable.collected or row.path in paths.read_by_losses:
            continue
        counter = variable.shape == () and not kinds.is_statistic(row.path)
        average = bool(row.by) and all(kind == "EMA" for _, kind in row.by)
        if row.path in owned or average or counter or kinds.is_shadow(row.path):
            found.add(row.path)
    return frozenset(found)


def _gradient(name: str, paths: GradientPaths, flat: FlatGraph, holders: Holders, updates: Iterable[Write]) -> str:
    if paths.known:
        if name in paths.reached:
            return "yes"
        cuts = paths.cuts(name)
        return f"cut at {', '.join(node.name for node in cuts)}" if cuts else "none"
    for write in updates:
        if write.variable == name and _is_computed(gradient_inputs(write.node), name, holders):
            return "yes"
    return "none"


def _is_computed(gradients: Sequence[Tensor], name: str, holders: Holders) -> bool:
    """Without a known loss: whether what the optimizer gets depends on more than the variable itself."""
    held = holders.nodes()
    return any(
        held.get(node, name) != name or (not node.inputs and node.op not in ("Const", "NoOp") and node not in held)
        for node in data_ancestors(gradients)
    )
