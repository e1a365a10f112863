"""Audit of what the engine trains: a step before it runs, and a run directory after."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.audit import findings
from engine.audit.gradient_paths import GradientPaths
from engine.audit.graph_audit import Audit, AuditError, Row, owned_slots, with_moved
from engine.audit.graphdef import FlatGraph, Tensor
from engine.audit.write_kinds import Kinds
from engine.audit.writes import Holders, writes
from engine.digests import digest
from engine.files import PathLike
from engine.graphs.graph_variables import GraphVariable
from engine.selection.filters import Filter
from engine.selection.selection import Selection
from engine.selection.statistics import is_statistic
from engine.training import checkpoint
from engine.training.step import TrainStep

_LARGEST_RUN = 1 << 28


def audit_step(step: TrainStep, selection: Selection, batch: Mapping[str, Any]) -> Audit:
    """Audits the compiled step of a step: it must write what the selection trains and moves, and nothing else.

    Beside the model's variables, the rows have slots (``optimizer/<path>/<slot>``), averages (``ema/<path>``) and
    variables outside the model that the user's loss takes (``outside/<name>``). ``trainable_collection`` is: the
    selection trains it.

    Args:
        batch: one as the step is given; only its shapes matter. Nothing is run.
    """
    traced = step.traced(selection, batch)
    flat = FlatGraph(traced.graph.as_graph_def())
    trained = {entry.path for entry in selection.trained}
    given = _given(traced.graph, traced.handles, selection, trained)
    holders = Holders(flat, collected=(), given=given)
    run = writes(flat.nodes, holders)
    paths = _gradient_paths(traced.micro_batch, selection, trained)
    kinds = Kinds(
        flat,
        holders,
        paths,
        writes=run,
        update_ops=(),
        statistics={entry.path for entry in selection.variables if entry.kind == "statistic"},
        averages={f"ema/{path}" for path in trained},
    )
    slots = owned_slots(run, holders, paths)
    order = [entry.path for entry in selection.variables]
    order += [name for name in sorted(holders.variables) if name not in order]
    rows = []
    for name in order:
        mine = [write for write in run if write.variable == name]
        cuts = paths.cuts(name)
        rows.append(
            Row(
                path=name,
                written=bool(mine),
                by=tuple(dict.fromkeys((write.node.name, kinds.of(write)) for write in mine)),
                gradient="yes" if name in paths.reached else f"cut at {cuts[0].name}" if cuts else "none",
                trainable_collection=name in trained,
                slots=slots.get(name, ()),
            )
        )
    frozen = {entry.path for entry in selection.frozen}
    found = [f for row in rows if row.path in frozen for f in findings.frozen_but_written(row)]
    found += findings.unseen_writes(run)
    return Audit("engine step", "step", tuple(rows), tuple(dict.fromkeys(found)))


def _given(
    traced: Any, handles: Mapping[str, str], selection: Selection, trained: set[str]
) -> dict[str, GraphVariable]:
    """Input of the graph -> the variable whose handle it is."""
    model = selection.variables.by_path()
    found = {}
    for tensor in traced.inputs:
        node = tensor.op.name
        if tensor.dtype != tf.resource or (node not in handles and not _is_variable(tensor)):
            continue
        name = handles.get(node, f"outside/{node}")
        like = model.get(name)
        found[node] = GraphVariable(
            name=name,
            node=node,
            initial="",
            collected=name in trained,
            shape=None if like is None else tuple(like.variable.shape),
            dtype=tf.float32 if like is None else like.variable.dtype,
            is_resource=True,
        )
    return found


def _is_variable(handle: Any) -> bool:
    """Whether a handle is of a variable, not of a table or a generator's queue: only a variable's says what it holds."""
    data = tensorflow_private.handle_data(handle)
    return bool(data.is_set) and bool(data.shape_and_type)


def _gradient_paths(micro: Any, selection: Selection, trained: set[str]) -> GradientPaths:
    """Of the forward pass: which variables the terms of the loss, and the regulariser, are differentiable in."""
    flat = FlatGraph(micro.graph.as_graph_def())
    own = {id(entry.variable.handle): entry.path for entry in selection.variables}
    names = {inner.op.name: own[id(outer)] for outer, inner in micro.graph.captures if id(outer) in own}
    holders = Holders(flat, collected=(), given=_given(micro.graph, names, selection, trained))
    results = micro.graph.structured_outputs

    def flattened(tensor: Any) -> list[Tensor]:
        return [flat.outputs(tensor.op.name)[tensor.value_index]]

    return GradientPaths(
        flat,
        holders,
        losses=[one for value in results["values"] for one in flattened(value)],
        weights={entry.path for entry in selection.variables},
        regularisers=flattened(results["regulariser"]),
    )


def audit_run(folder: PathLike, *, expect_frozen: Filter | str | None = None) -> Audit:
    """Audits a finished run by its own files: what its phases trained, against what moved between its checkpoints.

    ``gradient`` is "yes" for what a phase trained: a run directory holds no graph. ``moved`` compares digests of the
    oldest and the newest checkpoint that are kept, and is left out where there is one only.

    Raises:
        AuditError: no run.json, or not one of a run.
        CheckpointError: a checkpoint is damaged.
        FilterError: an item of ``expect_frozen`` matches nothing.
    """
    folder = pathlib.Path(folder)
    phases = _phases(folder)
    kept = checkpoint.listed(folder / "checkpoints")
    if not kept:
        raise AuditError(f"{folder}: it holds no checkpoint, so its variables are not known")
    last = checkpoint.read(kept[0]).arrays
    model = [name for name in last if not name.startswith(("optimizer/", "ema/", "generator/"))]
    by: dict[str, list[tuple[str, str]]] = {}
    for phase in phases:
        for key, kind in (("trained", "optimizer apply"), ("moving", "UPDATE_OPS")):
            for path in phase[key]:
                by.setdefault(path, []).append((f"phase {phase['name']}", kind))
    trained = {path for phase in phases for path in phase["trained"]}
    moving = {path for phase in phases for path in phase["moving"]}
    rows = [
        Row(
            path=path,
            written=path in by,
            by=tuple(by.get(path, ())),
            gradient="yes" if path in trained else "none",
            trainable_collection=path in trained,
            slots=tuple(name for name in last if name.startswith(f"optimizer/{path}/")),
        )
        for path in model
    ]
    variables = {
        path: GraphVariable(
            name=path,
            node=path,
            initial="",
            collected=True,
            shape=last[path].shape,
            dtype=tf.as_dtype(last[path].dtype),
            is_resource=True,
            statistic=path in moving or is_statistic(path),
        )
        for path in model
    }
    frozen = findings.expected_frozen(variables, expect_frozen, source=str(folder))
    found = [f for row in rows if row.path in frozen for f in findings.frozen_but_written(row)]
    for phase in phases:
        found += [
            findings.moved_though_not_written(path, f"in phase {phase['name']}, says its freeze proof")
            for path in phase["freeze_proof"]["changed"]
        ]
    audit = Audit(str(folder), "finetune", tuple(rows), tuple(dict.fromkeys(found)))
    if len(kept) == 1:
        return audit
    before, after = (
        {path: digest(path, arrays[path]) for path in model if path in arrays}
        for arrays in (checkpoint.read(kept[-1]).arrays, last)
    )
    note = f"moved: from {kept[-1].name} to {kept[0].name}, the oldest and the newest that are kept"
    return dataclasses.replace(with_moved(audit, before, after), notes=(note,))


def _phases(folder: pathlib.Path) -> list[dict[str, Any]]:
    """run.json's phases, as far as an audit reads them."""
    file = folder / "run.json"
    try:
        if file.stat().st_size > _LARGEST_RUN:
            raise AuditError(f"{file}: {file.stat().st_size} bytes are not believable")
        phases = json.loads(file.read_text(encoding="utf-8"))["phases"]
        for phase in phases:
            lists = [phase["trained"], phase["moving"], phase["freeze_proof"]["changed"]]
            if not all(isinstance(path, str) for paths in lists for path in paths) or not all(
                isinstance(paths, list) for paths in lists
            ):
                raise TypeError("paths are texts in lists")
            str(phase["name"])
    except OSError as error:
        raise AuditError(f"{file}: cannot be read ({error.strerror}); a run writes it when it ends") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise (
            error if isinstance(error, AuditError) else AuditError(f"{file}: no run.json of a run ({error})")
        ) from None
    return list(phases)
