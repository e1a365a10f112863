"""The audit is right on graphs whose answer is known, and on what really moves when their train op is run."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import audit_flow  # noqa: F401  (adds its graphs)
import audit_graphs
import audit_leaks  # noqa: F401  (adds its graphs)
import pytest
import tensorflow as tf
from audit_graphs import BUILDERS, NOT_BY_REFERENCE, X, Y

from engine.audit.graph_audit import AuditError, audit_graph
from engine.audit.graph_collections import GraphFacts
from engine.digests import digest

v1 = tf.compat.v1
QUICK = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
QUICK.graph_options.rewrite_options.disable_meta_optimizer = True


def digests(session: Any, variables: list[Any]) -> dict[str, str]:
    names = [variable.op.name for variable in variables]
    return {n: digest(n, value) for n, value in zip(names, session.run(variables), strict=True)}


def every_variable() -> list[Any]:
    found = [*v1.global_variables(), *v1.local_variables()]
    return [part for v in found for part in (v if hasattr(v, "as_tensor") else [v])]


def moved(graph: Any, known: audit_graphs.Known, fetched: Any) -> set[str]:
    """Names of the variables whose bytes change in 3 runs of the train op."""
    with v1.Session(graph=graph, config=QUICK) as session:
        session.run(v1.variables_initializer(v1.trainable_variables()))  # reference averages begin at their values
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer(), *known.initialise])
        fed = {
            name: value
            for name, value in (("x:0", X), ("y:0", Y), ("tower_0/x:0", X), ("tower_0/y:0", Y))
            if _has(graph, name)
        }
        for _ in range(3):
            if known.before is not None:
                session.run(known.before, fed)
        variables = every_variable()
        before = digests(session, variables)
        for _ in range(3):
            session.run(fetched, fed)
        after = digests(session, variables)
    return {name for name in before if before[name] != after[name]}


def _has(graph: Any, name: str) -> bool:
    return any(op.name == name.removesuffix(":0") for op in graph.get_operations())


@pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "reference"])
@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_audit_of_a_known_graph_is_exact_and_agrees_with_a_run(name: str, use_resource: bool) -> None:
    if not use_resource and name.endswith(NOT_BY_REFERENCE):
        pytest.skip("TensorFlow takes no reference variables into functions")
    with tf.Graph().as_default() as graph, v1.variable_scope("", use_resource=use_resource):
        known = BUILDERS[name]()
        facts = GraphFacts.from_graph(graph)
        found = audit_graph(facts, known.train.name)
        for given in (facts, dataclasses.replace(facts, train_ops=())):
            with contextlib.suppress(AuditError):  # several, such as two optimizers by turns, are never guessed
                alone = audit_graph(given)
                assert [row.written for row in alone.variables] == [row.written for row in found.variables]
        assert {row.path for row in found.variables} == {v.op.name for v in every_variable()}
        assert {r.path: {kind for _, kind in r.by} for r in found.variables if r.written} == {
            path: set(kinds) for path, kinds in known.kinds.items()
        }
        for path, gradient in known.gradient.items():
            got = found.row(path).gradient
            assert got == gradient or (gradient == "cut at" and got.startswith("cut at ")), f"{path}: {got}"
        assert [(f.path, f.rule.partition(":")[0]) for f in found.findings] == list(known.findings)
        assert all(finding.fix for finding in found.findings)
        written = {row.path for row in found.variables if row.written}
        assert moved(graph, known, known.train) == written - set(known.rests)
        for other, names in known.others:
            apart = audit_graph(GraphFacts.from_graph(graph), other.name)
            assert {row.path for row in apart.variables if row.written} == set(names)
            assert moved(graph, known, other) == set(names)
