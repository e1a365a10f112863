"""Audits a training graph: which variables may be written when the train op is fetched, by which op, and why.

Known limits; ``notes`` mentions those that matter for a graph: Python functions (py_func) can write any variable. A
dataset's function counts as run if anything reads from an iterator. The threads of iterators and queues are not part of
what a train op runs. A gradient that the user computes by hand is judged by the ops that feed the optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import text
from engine.audit import findings
from engine.audit.findings import Finding
from engine.audit.gradient_paths import GradientPaths, find_losses, is_zero
from engine.audit.graph_collections import GraphFacts
from engine.audit.train_ops import TrainOp, find_train_ops, note_others
from engine.audit.write_kinds import WriteKinds
from engine.audit.writes import Holders, Write, find_gradient_inputs, find_slots_by_name, find_writes
from engine.errors import InputError
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node, Tensor, find_data_ancestors
from engine.selection import filters
from engine.selection.filters import Filter
from engine.text import table


class AuditError(InputError):
    """The train op is missing or ambiguous, or the graph or run cannot be audited."""


@dataclass(frozen=True)
class Row:
    """One variable, as in audit.json.

    Attributes:
        written, by: whether an op that may write it runs, and (op, kind) of each (kinds: engine.audit.write_kinds).
        gradient: "yes" if the gradient of a loss on examples can reach it; "cut at OP" if an op cuts every path; "none" if
            there is no path.
        trainable_collection: whether it is in the collection of trainable variables.
        slots: the variables that an optimizer keeps for it.
        moved: whether its bytes changed; None if that was not checked.
    """

    path: str
    written: bool
    by: tuple[tuple[str, str], ...]
    gradient: str
    trainable_collection: bool
    slots: tuple[str, ...]
    moved: bool | None = None

    def to_json(self) -> dict[str, Any]:
        by = [{"op": op, "kind": kind} for op, kind in self.by]
        row = dataclasses.asdict(self) | {"by": by, "slots": list(self.slots)}
        if self.moved is None:
            del row["moved"]
        return row


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        source, train_op: the name of the graph, and those of the ops that are fetched to train.
        variables, findings: one row per variable, and the contradictions.
        notes: limits of the audit, one sentence each; they are not part of audit.json.
    """

    source: str
    train_op: str
    variables: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def row(self, path: str) -> Row:
        """The row of a variable."""
        return next(row for row in self.variables if row.path == path)

    def to_json(self) -> dict[str, Any]:
        """The content of audit.json."""
        return {
            "source": self.source,
            "train_op": self.train_op,
            "variables": [row.to_json() for row in self.variables],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        """The audit as aligned text: the variables, the notes, then the findings."""
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
    """Audits a TF1 training graph: which variables its train op may write, by which op, and whether that fits a freeze.

    The graph is read as data, and nothing in it is run.

    Args:
        facts: the graph: ``GraphFacts.from_graph(graph)``, or ``facts()`` of a MetaGraph.
        train_op: the name or names of the ops that are fetched to train; None finds it (engine.audit.train_ops).
        expect_frozen: the variables that must not be written, as a filter or its text; each that may be written is a
            finding. The optimizer's state, step counters and averages cannot be selected.

    Raises:
        AuditError: there is no such op; or none is found, or several (they are listed, with what each would write).
        FilterError: an item of ``expect_frozen`` matches nothing.
        FlatGraphError: the graph contradicts itself.

    Example:
        >>> import tensorflow as tf
        >>> from engine.audit.graph_collections import GraphFacts
        >>> with tf.Graph().as_default() as graph:
        ...     body = tf.compat.v1.get_variable("body", [3])
        ...     head = tf.compat.v1.get_variable("head", [3])
        ...     optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
        ...     train = optimizer.minimize(tf.reduce_sum(body * head), var_list=[head], name="train")
        >>> audit = audit_graph(GraphFacts.from_graph(graph), expect_frozen="body")
        >>> [(row.path, row.written, row.gradient) for row in audit.variables]
        [('body', False, 'yes'), ('head', True, 'yes')]
        >>> audit.findings
        ()
    """
    flat = FlatGraph(facts.definition)
    holders = Holders(flat, collected=facts.collected)
    everywhere = find_writes(flat.nodes, holders)
    updates = [write for write in everywhere if write.is_apply and write.position == 0]
    collected = {name for name, variable in holders.variables.items() if variable.collected}
    weights = {write.variable for write in updates if write.variable} | collected
    assigned = [tensor for write in everywhere for tensor in write.node.inputs]
    paths = GradientPaths(flat, holders, losses=find_losses(flat, assigned, facts.losses), weights=weights)
    kinds = WriteKinds(flat, holders, paths, writes=everywhere, update_ops=facts.update_ops)
    made = {write for write in everywhere if kinds.is_update(write)}
    candidates, partly = find_train_ops(flat, facts, writes=everywhere, updates=made)
    said = [one.describe(made, total=len(holders.variables)) for one in candidates]
    names = _choose_train_ops(flat, facts, train_op, candidates, said)
    running = flat.find_running([node for name in names for node in _named(flat, name)])
    run = [write for write in everywhere if write.node in running]
    slots = find_slots(everywhere, holders, paths)
    gradients = {name: _gradient(name, paths, holders, updates) for name in holders.variables}
    rows = build_rows(gradients, run, kinds, slots, trainable=collected)
    given = [(write.node, find_gradient_inputs(write.node)) for write in updates]
    zero = frozenset(node for node, grads in given if grads and all(is_zero(grad) for grad in grads))
    states = _states(rows, slots, holders, paths, kinds)
    evidence = findings.Evidence(facts, flat, holders, paths, kinds, running=running, run=run, states=states, zero=zero)
    expected = filters.parse_filter(expect_frozen) if isinstance(expect_frozen, str) else expect_frozen
    listed = findings.collect_findings(rows, evidence, expect_frozen=expected)
    notes = [] if paths.known else ["no loss was found, so gradients are judged by the ops that feed the optimizer"]
    notes += note_others(names, run, candidates, partly, found=train_op is None)
    python = sorted(node.name for node in running if "PyFunc" in node.op)
    if python:
        notes.append(f"Python functions run, and they can write any variable: {', '.join(python[:5])}")
    return Audit(facts.source, ", ".join(names), tuple(rows), tuple(listed), tuple(notes))


def build_rows(
    gradients: Mapping[str, str],
    run: Iterable[Write],
    kinds: WriteKinds,
    slots: Mapping[str, tuple[str, ...]],
    *,
    trainable: Collection[str],
) -> list[Row]:
    """One row for each variable in ``gradients``, from the writes that run."""
    by: dict[str | None, dict[tuple[str, str], None]] = {}
    for write in run:
        if write.variable in gradients:
            by.setdefault(write.variable, {})[write.node.name, kinds.classify(write)] = None
    return [
        Row(name, name in by, tuple(by.get(name, ())), gradient, name in trainable, slots.get(name, ()))
        for name, gradient in gradients.items()
    ]


def with_moved(found: Audit, before: Mapping[str, str], after: Mapping[str, str]) -> Audit:
    """Adds to an audit which variables moved between two moments around real training.

    Both moments map paths to digests (``engine.selection.proof.digests``); rows without both are left as they are.
    """
    rows, added = [], []
    for row in found.variables:
        if row.path in before and row.path in after:
            row = dataclasses.replace(row, moved=before[row.path] != after[row.path])
        if row.moved and not row.written:
            added.append(findings.report_unwritten_move(row.path, "in training"))
        rows.append(row)
    return dataclasses.replace(found, variables=tuple(rows), findings=(*found.findings, *added))


def _choose_train_ops(
    flat: FlatGraph,
    facts: GraphFacts,
    wanted: str | Sequence[str] | None,
    candidates: Sequence[TrainOp],
    said: Sequence[str],
) -> list[str]:
    """Returns the ops to fetch; ``said`` has a line for each candidate."""
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if wanted is not None and names and all(_named(flat, name) for name in names):
        return names
    known = ", ".join(one.name for one in candidates)
    if wanted is None:
        if len(candidates) == 1:
            return [candidates[0].name]
        if not candidates:
            raise AuditError(
                f"{facts.source}: no train op was found, since the graph has no optimizer's op; name the op that is fetched"
            )
        raise AuditError(
            f"{facts.source}: train_op=None: {len(candidates)} ops may be the train op; name one of: {known}, or several"
            + text.listed("what each would write", said, most=len(said))
        )
    if not names:
        raise AuditError("train_op=[]: expected at least one op")
    missing = next(name for name in names if not _named(flat, name))
    hint = f"; candidates: {known}" if known else text.nearest(missing, list(flat.top))
    raise AuditError(f"train_op={missing!r}: {facts.source} has no such op{hint}")


def _named(flat: FlatGraph, name: str) -> list[Node]:
    """The nodes of an op or tensor by name, if it can be fetched: not inside a function."""
    node = flat.top.get(name.removeprefix("^").partition(":")[0])
    return [] if node is None else [node, *node.results]


def find_slots(everywhere: Iterable[Write], holders: Holders, paths: GradientPaths) -> dict[str, tuple[str, ...]]:
    """Variable -> its slots: those that an optimizer's op takes after the weight, and those named like it."""
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
    for weight, slot in find_slots_by_name(holders.variables):
        if slot not in paths.read_by_losses:
            found.setdefault(weight, {})[slot] = None
    return {weight: tuple(slots) for weight, slots in found.items()}


def _states(
    rows: Iterable[Row], slots: Mapping[str, Sequence[str]], holders: Holders, paths: GradientPaths, kinds: WriteKinds
) -> frozenset[str]:
    """The names of variables that are not part of the model: slots, counters, averages."""
    owned = {slot for several in slots.values() for slot in several}
    found = set()
    for row in rows:
        variable = holders.variables[row.path]
        if variable.collected or row.path in paths.read_by_losses:
            continue
        counter = variable.shape == () and not kinds.is_statistic(row.path)
        average = bool(row.by) and all(kind == "EMA" for _, kind in row.by)
        if row.path in owned or average or counter or kinds.is_shadow(row.path):
            found.add(row.path)
    return frozenset(found)


def _gradient(name: str, paths: GradientPaths, holders: Holders, updates: Iterable[Write]) -> str:
    if paths.known:
        if name in paths.reached:
            return "yes"
        cuts = paths.find_cuts(name)
        return f"cut at {', '.join(node.name for node in cuts)}" if cuts else "none"
    grads = (find_gradient_inputs(write.node) for write in updates if write.variable == name)
    return "yes" if any(_is_computed(each, name, holders) for each in grads) else "none"


def _is_computed(gradients: Sequence[Tensor], name: str, holders: Holders) -> bool:
    """Whether a gradient depends on more than the variable itself; for graphs without a known loss."""
    held = holders.nodes()
    return any(
        held.get(node, name) != name or (not node.inputs and node.op not in ("Const", "NoOp") and node not in held)
        for node in find_data_ancestors(gradients)
    )
