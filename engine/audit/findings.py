"""Derives the findings of an audit: where a graph contradicts itself, or what it was expected to leave alone.

Each rule is designed to be silent on an ordinary training graph. RULES lists them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from engine.audit.gradient_paths import GradientPaths
from engine.audit.graph_collections import GraphFacts
from engine.audit.write_kinds import WriteKinds
from engine.audit.writes import Holders, Write
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Node, find_data_ancestors
from engine.graphs.reach import reach
from engine.selection.filters import Filter, FilterError
from engine.selection.selection import matching_paths
from engine.text import join_some

RULES = {
    "frozen but written": "a variable that --expect_frozen names may be written",
    "trains outside the collection": "an optimizer writes a variable that is not in the trainable collection",
    "only a regulariser moves it": "the gradient of a regulariser reaches it, but no gradient of a loss on examples does",
    "only decay moves it": "an assignment shrinks it, but no gradient of a loss on examples reaches it",
    "a zero gradient does not freeze": "the optimizer gets a gradient that is always zero, and moves it by its state",
    "statistics move under a frozen layer": "moving statistics are written, but no weight of their layer is",
    "would be lost": "a saver of the graph saves other variables, but not this one",
    "unseen write": "an op writes an unknown variable, or runs Python code that can write any",
    "moved though not written": "its bytes changed, but no op that writes it runs",
}
_FIXES = {
    "optimizer apply": "take it out of var_list, or cut its gradient and leave it out of apply_gradients",
    "regulariser path": "build the regulariser from the trained variables only, or take it out of var_list",
    "UPDATE_OPS": "run its layer in inference mode, or leave its ops out of the UPDATE_OPS that the train op waits for",
    "EMA": "leave it out of the averages that the train op updates",
    "assign": "restrict the op that assigns it (such as decoupled decay) to the trained variables",
}
# Kernels that a gradient of zeros leaves without effect.
_WITHOUT_STATE = frozenset(["ApplyGradientDescent", "ResourceApplyGradientDescent"])


@dataclass(frozen=True)
class Finding:
    """One finding: ``rule`` begins with a key of RULES, and ``fix`` says what to do about it."""

    path: str
    rule: str
    fix: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """The facts from which findings are derived.

    Attributes:
        facts, flat, holders, paths, kinds: the graph, its variables, its gradients, and the kinds of its writes.
        running, run: the nodes that run, and the writes among them.
        states: the names of variables that are not part of the model.
        zero: the optimizers' ops whose gradient is always zero.
    """

    facts: GraphFacts
    flat: FlatGraph
    holders: Holders
    paths: GradientPaths
    kinds: WriteKinds
    running: Set[Node]
    run: Sequence[Write]
    states: frozenset[str]
    zero: frozenset[Node]


def collect_findings(rows: Sequence[Any], evidence: Evidence, *, expect_frozen: Filter | None) -> list[Finding]:
    """Collects all findings in the order of the variables, with each rule at most once per variable.

    Raises FilterError if an item of ``expect_frozen`` matches no variable of the model.
    """
    frozen = _expected(evidence, expect_frozen)
    lost = _lost(evidence)
    found: list[Finding] = []
    for row in rows:
        if row.path in frozen:
            found += find_frozen_writes(row)
        elif row.path not in evidence.states:
            found += _contradictions(row, evidence, rows)
        if row.path in lost:
            rule = f"would be lost: {lost[row.path]} does not save it"
            found.append(Finding(row.path, rule, "create the Saver for all variables"))
    found += find_unseen_writes(evidence.run)
    if expect_frozen is not None:
        found += _python(evidence.running)
    return list(dict.fromkeys(found))


def find_frozen_writes(row: Any) -> Iterator[Finding]:
    """A finding for each kind of write to a variable that must not be written."""
    kinds: dict[str, list[str]] = {}
    for op, kind in row.by:
        kinds.setdefault(kind, []).append(op)
    for kind, ops in kinds.items():
        yield Finding(row.path, f"frozen but written: by {join_some(ops, most=3)} ({kind})", _FIXES[kind])


def _expected(evidence: Evidence, wanted: Filter | None) -> frozenset[str]:
    model = {
        name: dataclasses.replace(variable, statistic=evidence.kinds.is_statistic(name))
        for name, variable in evidence.holders.variables.items()
        if name not in evidence.states
    }
    return match_expected(model, wanted, source=evidence.facts.source)


def match_expected(model: Mapping[str, GraphVariable], wanted: Filter | str | None, *, source: str) -> frozenset[str]:
    """The names of the model's variables that a filter expects to be frozen; FilterError if an item matches nothing."""
    if wanted is None:
        return frozenset()
    if not model:
        raise FilterError(f"expect_frozen: {source} has no variables of a model")
    try:
        return matching_paths(model, wanted)
    except InputError as error:
        raise FilterError(
            f"expect_frozen: {error}; the optimizer's state, step counters and averages do not count as variables of the model"
        ) from None


def _contradictions(row: Any, evidence: Evidence, rows: Sequence[Any]) -> Iterator[Finding]:
    mine = [write for write in evidence.run if write.variable == row.path]
    updates = [w for w in mine if evidence.kinds.is_update(w) and (w.position == 0 or not w.is_apply)]
    kinds = {kind for _, kind in row.by}
    if updates and not row.trainable_collection and evidence.facts.collected:
        yield Finding(
            row.path,
            f"trains outside the collection: {join_some([w.node.name for w in updates], most=3)} updates it, though it was "
            "created with trainable=False",
            "take it out of var_list, or make it trainable if it should train",
        )
    if "regulariser path" in kinds:
        yield Finding(
            row.path,
            f"only a regulariser moves it: the loss's gradient is {row.gradient}",
            _FIXES["regulariser path"],
        )
    # an optimizer's op for a weight whose every path is cut gets a made-up gradient of zeros
    made_up = evidence.paths.known and row.gradient.startswith("cut") and "regulariser path" not in kinds
    zero = [
        write
        for write in updates
        if (made_up or write.node in evidence.zero) and write.is_apply and write.node.op not in _WITHOUT_STATE
    ]
    if zero:
        yield Finding(
            row.path,
            f"a zero gradient does not freeze: {join_some([w.node.name for w in zero], most=3)} gets one",
            "leave it out of apply_gradients: momentum, Adam and Ftrl move a weight whose gradient is zero",
        )
    if row.trainable_collection and evidence.paths.known and row.gradient != "yes":
        decays = [write for write in mine if not evidence.kinds.is_update(write) and _is_decay(write, evidence)]
        if decays:
            yield Finding(
                row.path,
                f"only decay moves it: {join_some([w.node.name for w in decays], most=3)}; the loss's gradient is {row.gradient}",
                "restrict decay to the variables that the loss trains",
            )
    moves = "UPDATE_OPS" in kinds and evidence.kinds.is_statistic(row.path)
    if moves and _layer_is_frozen(row.path, mine, evidence, rows):
        yield Finding(
            row.path,
            "statistics move under a frozen layer: neither its weights nor those of the layers that feed it are updated",
            _FIXES["UPDATE_OPS"],
        )


def _is_decay(write: Write, evidence: Evidence) -> bool:
    """Whether an op assigns a value that it computes from the variable itself and from scalars alone."""
    held = evidence.holders.nodes()
    others = [t for position, t in enumerate(write.node.inputs) if position != write.position]
    names = {held[node] for node in find_data_ancestors(others) if node in held}
    mine = evidence.holders.variables[write.variable or ""]
    alone = all(evidence.holders.variables[name].shape == () for name in names - {write.variable})
    return write.variable in names and alone and mine.dtype.is_floating


def _layer_is_frozen(path: str, mine: Sequence[Write], evidence: Evidence, rows: Sequence[Any]) -> bool:
    """Whether no optimizer writes the weights of a statistic's layer, or the nearest ones before it in the graph."""
    scope = path.rpartition("/")[0]
    updated = {w.variable for w in evidence.run if evidence.kinds.is_update(w)}
    near = {row.path for row in rows if row.path.rpartition("/")[0] == scope and row.path not in evidence.states}
    near = {name for name in near if not evidence.kinds.is_statistic(name)}
    before = _nearest_weights([write.node for write in mine], evidence)
    return bool(near or before) and not (near | before) & updated


def _nearest_weights(nodes: Sequence[Node], evidence: Evidence) -> set[str]:
    """The first weights on each path from these nodes back to the examples."""
    held = evidence.holders.nodes()
    found: set[str] = set()

    def following(node: Node) -> list[Node]:
        here = {name for name in (_read(t.node, held) for t in node.inputs) if name is not None}
        here = {n for n in here if not evidence.kinds.is_statistic(n) and n not in evidence.states}
        found.update(here)
        return [] if here else [tensor.node for tensor in node.inputs]

    reach(nodes, following)
    return found


def _read(node: Node, held: Mapping[Node, str]) -> str | None:
    """The variable whose value a node returns unchanged."""
    for _ in range(20):
        if node in held:
            return held[node]
        alone = node.passes and len(node.inputs) == 1
        if not alone and node.op not in ("Identity", "ReadVariableOp", "Cast", "Switch", "Enter"):
            return None
        node = node.inputs[0].node
    return None


def _lost(evidence: Evidence) -> dict[str, str]:
    """Global variable -> a saver that leaves it out, if every saver does."""
    nodes = (evidence.flat.node(name.partition(":")[0]) for name in evidence.facts.savers)
    roots = [node for node in nodes if node is not None]
    if not roots:
        return {}
    held = evidence.holders.nodes()
    saving = [node for node in evidence.flat.find_running(roots) if node.op in ("SaveV2", "Save", "SaveSlices")]
    saved = {held[one] for node in saving for one in find_data_ancestors(node.inputs) if one in held}
    lost = [name for name in evidence.holders.variables if name in evidence.facts.variables and name not in saved]
    return dict.fromkeys(lost, roots[0].name)


def find_unseen_writes(run: Iterable[Write]) -> Iterator[Finding]:
    """A finding for each op that writes an unknown variable."""
    for write in run:
        if write.variable is None:
            yield Finding(
                write.node.name,
                f"unseen write: the graph does not show which variable {write.node.op} writes",
                "pass the variable itself to the op, not a handle from a list, a queue or an argument",
            )


def _python(running: Iterable[Node]) -> Iterator[Finding]:
    for node in sorted((n for n in running if "PyFunc" in n.op), key=lambda n: n.name):
        yield Finding(
            node.name,
            "unseen write: Python code runs, and it can write variables that are expected to be frozen",
            "feed its result instead, or compare digests before and after training",
        )


def report_unwritten_move(path: str, when: str) -> Finding:
    """The finding for a variable whose bytes changed though nothing writes it."""
    return Finding(
        path,
        f"moved though not written: its bytes changed {when}, and nothing that runs writes it",
        "look for an assignment outside of training (a restored checkpoint, another fetch, a callback)",
    )
