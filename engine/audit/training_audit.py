"""Audits what the engine trains: a step before it runs, and a run directory afterwards."""

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
from engine.audit.graph_audit import Audit, AuditError, Row, build_rows, find_slots, with_moved
from engine.audit.write_kinds import WriteKinds
from engine.audit.writes import Holders, find_writes
from engine.digests import digest
from engine.files import PathLike
from engine.graphs.graph_variables import GraphVariable
from engine.graphs.graphdef import FlatGraph
from engine.graphs.nodes import Tensor
from engine.reading import read_file
from engine.runs.records import RUN_FORMAT
from engine.selection.filters import Filter
from engine.selection.selection import Selection
from engine.selection.statistics import is_statistic
from engine.training import checkpoint
from engine.training.auto_freeze import ARRAYS
from engine.training.step import TrainStep

_LARGEST_RUN = 1 << 28


def audit_step(step: TrainStep, selection: Selection, batch: Mapping[str, Any]) -> Audit:
    """Audits a training step before it runs: it must write what the selection trains and moves, and nothing else.

    The compiled step is read as data, and nothing is run. The rows are the model's variables, the optimizer's slots
    (``optimizer/<path>/<slot>``), averages (``ema/<path>``), and variables outside the model that the user's loss uses
    (``outside/<name>``). In a row, ``trainable_collection`` means that the selection trains the variable.

    Args:
        step: the step.
        selection: the selection that it will train.
        batch: a batch as the step takes it; only shapes and dtypes matter.

    Example:
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> from engine import SGD, TrainStep, select, supervised_loss
        >>> class Model(tf.Module):
        ...     def __init__(self):
        ...         self.body, self.head = tf.Variable(tf.eye(2)), tf.Variable(tf.ones([2, 3]))
        ...     def __call__(self, images):
        ...         return images @ self.body @ self.head
        >>> model = Model()
        >>> batch = {"image": np.ones([4, 2], np.float32), "label": np.zeros([4], np.int64)}
        >>> audit = audit_step(TrainStep(supervised_loss(model), SGD()), select(model, "head"), batch)
        >>> [(row.path, row.written, row.gradient) for row in audit.variables]
        [('body', False, 'yes'), ('head', True, 'yes')]
    """
    traced = step.traced(selection, batch)
    flat = FlatGraph(traced.graph.as_graph_def())
    trained = {entry.path for entry in selection.trained}
    given = _given(traced.graph, traced.handles, selection, trained)
    holders = Holders(flat, collected=(), given=given)
    run = find_writes(flat.nodes, holders)
    paths = _gradient_paths(traced.micro_batch, selection, trained)
    kinds = WriteKinds(
        flat,
        holders,
        paths,
        writes=run,
        update_ops=(),
        statistics={entry.path for entry in selection.variables if entry.kind == "statistic"},
        averages={f"ema/{path}" for path in trained},
    )
    gradients = {}
    for name in dict.fromkeys([*(entry.path for entry in selection.variables), *sorted(holders.variables)]):
        cuts = paths.find_cuts(name)
        gradients[name] = "yes" if name in paths.reached else f"cut at {cuts[0].name}" if cuts else "none"
    rows = build_rows(gradients, run, kinds, find_slots(run, holders, paths), trainable=trained)
    frozen = {entry.path for entry in selection.frozen}
    found = [f for row in rows if row.path in frozen for f in findings.find_frozen_writes(row)]
    found += findings.find_unseen_writes(run)
    return Audit("engine step", "step", tuple(rows), tuple(dict.fromkeys(found)))


def _given(
    traced: Any, handles: Mapping[str, str], selection: Selection, trained: set[str]
) -> dict[str, GraphVariable]:
    """Maps each input of the graph that is a variable's handle to that variable."""
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
    """Whether a handle is that of a variable, not of a table or queue: only a variable's declares what it holds."""
    data = tensorflow_private.handle_data(handle)
    return bool(data.is_set) and bool(data.shape_and_type)


def _gradient_paths(micro: Any, selection: Selection, trained: set[str]) -> GradientPaths:
    """The gradient paths of the forward pass, from the terms of the loss and the regulariser to the variables."""
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
    """Audits a finished run by its files: compares what its phases trained with what moved between its checkpoints.

    ``gradient`` is "yes" for variables that a phase trained, since a run directory holds no graph. ``moved`` compares the
    digests of the oldest and the newest checkpoint, and is None if there is only one. ``expect_frozen`` names the variables
    that must not be written, as a filter or its text.

    Raises:
        AuditError: run.json is missing or is not that of a run, or there is no checkpoint.
        CheckpointError: a checkpoint is damaged.
        FilterError: an item of ``expect_frozen`` matches nothing.
    """
    folder = pathlib.Path(folder)
    phases = _phases(folder)
    kept = checkpoint.list_checkpoints(folder / "checkpoints")
    if not kept:
        raise AuditError(f"{folder} has no checkpoint, so its variables are unknown")
    last = checkpoint.read(kept[0]).arrays
    model = [name for name in last if not name.startswith(("optimizer/", "ema/", "generator/", "metric/", ARRAYS))]
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
    frozen = findings.match_expected(variables, expect_frozen, source=str(folder))
    found = [f for row in rows if row.path in frozen for f in findings.find_frozen_writes(row)]
    for phase in phases:
        found += [
            findings.report_unwritten_move(path, f"in phase {phase['name']}, according to its freeze proof")
            for path in phase["freeze_proof"]["changed"]
        ]
    audit = Audit(str(folder), "finetune", tuple(rows), tuple(dict.fromkeys(found)))
    if len(kept) == 1:
        return audit
    before, after = (
        {path: digest(path, arrays[path]) for path in model if path in arrays}
        for arrays in (checkpoint.read(kept[-1]).arrays, last)
    )
    note = f"moved: compared between {kept[-1].name} and {kept[0].name}, the oldest and the newest checkpoint"
    return dataclasses.replace(with_moved(audit, before, after), notes=(note,))


def _phases(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the phases of run.json, and checks the parts that an audit uses."""
    file = folder / "run.json"
    try:
        run = json.loads(read_file(file, _LARGEST_RUN))
        if (number := run.get("format", RUN_FORMAT)) != RUN_FORMAT:  # runs of version 0.1 wrote none
            raise AuditError(f"{file} has format {number}; this version of Frostline reads format {RUN_FORMAT}")
        phases = run["phases"]
        for phase in phases:
            lists = [phase["trained"], phase["moving"], phase["freeze_proof"]["changed"]]
            if not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in lists):
                raise TypeError("expected lists of paths")
            str(phase["name"])
    except OSError as error:
        raise AuditError(f"{file} cannot be read ({error.strerror}); a run writes it when it ends") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise (
            error if isinstance(error, AuditError) else AuditError(f"{file} is not the run.json of a run ({error})")
        ) from None
    return list(phases)
