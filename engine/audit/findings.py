"""Findings of an audit: where a graph contradicts itself, or what it was expected to leave alone.

Each rule is meant to be silent on an ordinary training graph; RULES lists them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from engine.audit.gradient_paths import GradientPaths
from engine.audit.graph_collections import GraphFacts
from engine.audit.graphdef import FlatGraph, Node, data_ancestors
from engine.audit.write_kinds import Kinds
from engine.audit.writes import Holders, Write
from engine.errors import InputError
from engine.graphs.graph_variables import GraphVariable
from engine.selection.filters import Filter, FilterError
from engine.selection.selection import matching
from engine.text import join_some

RULES = {
    "frozen but written": "a variable that --expect_frozen names may be written",
    "trains outside the collection": "an optimizer writes a variable that is not in the trainable collection",
    "only a regulariser moves it": "no gradient of a loss on examples reaches it, but that of a regulariser does",
    "only decay moves it": "no gradient of a loss on examples reaches it, but an assignment shrinks it",
    "a zero gradient is no freeze": "the optimizer gets a gradient that is always zero, and moves by its state",
    "statistics move under a frozen layer": "moving statistics are written, but no weight of their layer is",
    "would be lost": "a saver of the graph saves other variables, but not this one",
    "unseen write": "an op writes a variable that cannot be told, or Python code runs that can write any",
    "moved though not written": "its bytes changed, but no op that writes it runs",
}
_FIXES = {
    "optimizer apply": "take it out of var_list, or cut its gradient and leave it out of apply_gradients",
    "regulariser path": "build the regulariser from the trained variables only, or take it out of var_list",
    "UPDATE_OPS": "run its layer in inference mode, or leave its ops out of the UPDATE_OPS that the train op waits for",
    "EMA": "leave it out of what the train op averages",
    "assign": "restrict what assigns it (such as decoupled decay) to the trained variables",
}
# Kernels that do nothing with a gradient of zeros.
_WITHOUT_STATE = frozenset(["ApplyGradientDescent", "ResourceApplyGradientDescent"])


@dataclass(frozen=True)
class Finding:
    """One contradiction: ``rule`` begins with a key of RULES, ``fix`` says what to do."""

    path: str
    rule: str
    fix: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an audit found out.

    Attributes:
        running: the nodes that run.
        run: the writes among them.
        states: variables that are no part of the model.
        zero: optimizers' ops whose gradient is always zero.
    """

    facts: GraphFacts
    flat: FlatGraph
    holders: Holders
    paths: GradientPaths
    kinds: Kinds
    running: Set[Node]
    run: Sequence[Write]
    states: frozenset[str]
    zero: frozenset[Node]


def find(rows: Sequence[Any], evidence: Evidence, *, expect_frozen: Filter | None) -> list[Finding]:
    """All findings, in the order of the variables; of one variable each rule once.

    Raises:
        FilterError: an item of ``expect_frozen`` matches no variable of the model.
    """
    frozen = _expected(evidence, expect_frozen)
    lost = _lost(evidence)
    found: list[Finding] = []
    for row in rows:
        if row.path in frozen:
            found += frozen_but_written(row)
        elif row.path not in evidence.states:
            found += _against_itself(row, evidence, rows)
        if row.path in lost:
            found.append(
                Finding(
                    row.path, f"would be lost: {lost[row.path]} does not save it", "make the Saver over all variables"
                )
            )
    found += unseen_writes(evidence.run)
    if expect_frozen is not None:
        found += _python(evidence.running)
    return list(dict.fromkeys(found))


def frozen_but_written(row: Any) -> Iterator[Finding]:
    """A finding for each kind of write that a variable gets which must get none."""
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
    return expected_frozen(model, wanted, source=evidence.facts.source)


def expected_frozen(model: Mapping[str, GraphVariable], wanted: Filter | str | None, *, source: str) -> frozenset[str]:
    """Names of the model's variables that a filter expects to be frozen.

    Raises:
        FilterError: an item matches nothing, or there is no variable.
    """
    if wanted is None:
        return frozenset()
    if not model:
        raise FilterError(f"expect_frozen: {source} has no variable of a model")
    try:
        return matching(model, wanted)
    except InputError as error:
        raise FilterError(
            f"expect_frozen: {error}; optimizers' state, step counters and averages are no variables of the model"
        ) from None


def _against_itself(row: Any, evidence: Evidence, rows: Sequence[Any]) -> Iterator[Finding]:
    mine = [write for write in evidence.run if write.variable == row.path]
    updates = [
        write for write in mine if (evidence.kinds.is_update(write) and write.position == 0) or not write.is_apply
    ]
    updates = [write for write in updates if evidence.kinds.is_update(write)]
    kinds = {kind for _, kind in row.by}
    if updates and not row.trainable_collection and evidence.facts.collected:
        yield Finding(
            row.path,
            f"trains outside the collection: {join_some([w.node.name for w in updates], most=3)} updates it, though it was made "
            "with trainable=False",
            "take it out of var_list; or, if it is to train, make it trainable",
        )
    if "regulariser path" in kinds:
        yield Finding(
            row.path,
            f"only a regulariser moves it: the loss's gradient is {row.gradient}",
            _FIXES["regulariser path"],
        )
    # an optimizer's op for a weight whose every path is cut: the gradient that it gets was made up, of zeros
    made_up = evidence.paths.known and row.gradient.startswith("cut") and "regulariser path" not in kinds
    zero = [
        write
        for write in updates
        if (made_up or write.node in evidence.zero) and write.is_apply and write.node.op not in _WITHOUT_STATE
    ]
    if zero:
        yield Finding(
            row.path,
            f"a zero gradient is no freeze: {join_some([w.node.name for w in zero], most=3)} gets one",
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
    if (
        "UPDATE_OPS" in kinds
        and evidence.kinds.is_statistic(row.path)
        and _layer_is_frozen(row.path, mine, evidence, rows)
    ):
        yield Finding(
            row.path,
            "statistics move under a frozen layer: no weight of it, nor of what feeds it, is updated",
            _FIXES["UPDATE_OPS"],
        )


def _is_decay(write: Write, evidence: Evidence) -> bool:
    """Whether an op assigns what it makes of the variable itself and of scalars alone."""
    held = evidence.holders.nodes()
    others = [t for position, t in enumerate(write.node.inputs) if position != write.position]
    names = {held[node] for node in data_ancestors(others) if node in held}
    mine = evidence.holders.variables[write.variable or ""]
    alone = all(evidence.holders.variables[name].shape == () for name in names - {write.variable})
    return write.variable in names and alone and mine.dtype.is_floating


def _layer_is_frozen(path: str, mine: Sequence[Write], evidence: Evidence, rows: Sequence[Any]) -> bool:
    """Whether no optimizer writes the weights beside a statistic, nor those nearest before it in the graph."""
    scope = path.rpartition("/")[0]
    updated = {w.variable for w in evidence.run if evidence.kinds.is_update(w)}
    near = {
        row.path
        for row in rows
        if row.path.rpartition("/")[0] == scope
        and row.path not in evidence.states
        and not evidence.kinds.is_statistic(row.path)
    }
    before = _nearest_weights([write.node for write in mine], evidence)
    return bool(near or before) and not (near | before) & updated


def _nearest_weights(nodes: Sequence[Node], evidence: Evidence) -> set[str]:
    """Weights that are read on the way from these nodes back to the examples, the first on each way."""
    held = evidence.holders.nodes()
    found: set[str] = set()
    seen: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        here = {name for name in (_read(t.node, held) for t in node.inputs) if name is not None}
        here = {n for n in here if not evidence.kinds.is_statistic(n) and n not in evidence.states}
        found |= here
        if not here:
            pending.extend(tensor.node for tensor in node.inputs)
    return found


def _read(node: Node, held: Mapping[Node, str]) -> str | None:
    """The variable whose value a node gives on as it is."""
    for _ in range(20):
        if node in held:
            return held[node]
        if node.op in ("Identity", "ReadVariableOp", "Cast", "Switch", "Enter") or (
            node.passes and len(node.inputs) == 1
        ):
            node = node.inputs[0].node
        else:
            return None
    return None


def _lost(evidence: Evidence) -> dict[str, str]:
    """Global variable -> the saver that leaves it out, where every saver does."""
    saved: set[str] = set()
    names = []
    held = evidence.holders.nodes()
    for name in evidence.facts.savers:
        root = evidence.flat.node(name.partition(":")[0])
        if root is None:
            continue
        names.append(root.name)
        for node in evidence.flat.runs([root]):
            if node.op in ("SaveV2", "Save", "SaveSlices"):
                saved |= {held[one] for one in data_ancestors(node.inputs) if one in held}
    if not names:
        return {}
    return {
        name: names[0] for name in evidence.holders.variables if name in evidence.facts.variables and name not in saved
    }


def unseen_writes(run: Iterable[Write]) -> Iterator[Finding]:
    """A finding for each op that writes a variable which cannot be told."""
    for write in run:
        if write.variable is None:
            yield Finding(
                write.node.name,
                f"unseen write: {write.node.op} writes a variable that cannot be told from the graph",
                "give the op the variable itself, not a handle that comes out of a list, a queue or an argument",
            )


def _python(running: Iterable[Node]) -> Iterator[Finding]:
    for node in sorted((n for n in running if "PyFunc" in n.op), key=lambda n: n.name):
        yield Finding(
            node.name,
            "unseen write: Python code runs, and can write what is expected to be frozen",
            "feed its result instead, or compare digests before and after training",
        )


def moved_though_not_written(path: str, when: str) -> Finding:
    return Finding(
        path,
        f"moved though not written: its bytes changed {when}, and nothing that runs writes it",
        "look for an assignment outside of training (a restored checkpoint, another fetch, a callback)",
    )
