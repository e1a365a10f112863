"""What a checkpoint and a graph hold, in a few lines each, and what is damaged. Nothing of a graph is built or run."""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.checkpoints.inventory import Inventory, take_inventory
from compat_v1.checkpoints.reader import open_source
from compat_v1.graphs.endpoints import PLACEHOLDERS, dtype_of, shape_of
from compat_v1.graphs.metagraph import MetaGraph, read_metagraph
from compat_v1.migration.commands import count
from compat_v1.porting.slots import count_steps
from engine.audit.graph_audit import audit_graph
from engine.errors import InputError
from engine.graphs.graph_variables import HOLDERS
from engine.porting.readers import verify
from engine.text import join_some

# What a strange graph can make of code that expects another: it is told, and the rest is reported.
REFUSALS = (InputError, ValueError, TypeError, LookupError, NotImplementedError, RecursionError, tf.errors.OpError)
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class WeightsFacts:
    """What a weights file holds: lines for people, the same for programs, and a line for each damage.

    ``problem`` is why a whole graph gives no weights, although it is not damaged.
    """

    source: str
    lines: tuple[str, ...]
    damage: tuple[str, ...]
    data: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def readable(self) -> bool:
        """Whether the names and shapes can be read."""
        return bool(self.lines)


def describe_weights(source: str, *, verify_all: bool = True) -> WeightsFacts:
    """Reads a checkpoint, or a frozen graph, and tells what it holds. With ``verify_all``, every tensor is read."""
    try:
        with open_source(source) as opened:
            found = take_inventory(opened, verify_all=verify_all)
            return WeightsFacts(source, *_describe(found))
    except InputError as error:
        if source.endswith((".pb", ".pbtxt")):  # a graph that can be read, but none of whose constants is a weight
            return WeightsFacts(source, (), (), problem=str(error))
        return WeightsFacts(source, (), (str(error),))


def _describe(found: Inventory) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    source, families = found.source, found.families
    variables = families.variables
    elements = sum(math.prod(family.shape) for family in variables)
    types = Counter(np.dtype(family.dtype).name for family in variables)
    averages = sum(family.ema is not None for family in variables)
    listed = ", ".join(f"{number} {name}" for name, number in types.most_common())
    lines = [
        f"{found.kind}: {count(len(variables), 'variable')} of {count(elements, 'parameter')} ({listed or 'none'})"
    ]
    slots: list[dict[str, Any]] = []
    for kind, held in families.kinds().items():
        try:
            steps = count_steps(source, families, kind)
            number: int | None = steps.t
            said = f"after {count(steps.t, 'step')} (known from {steps.origin})"
            if not steps.t and steps.origin.startswith("nothing"):
                number, said = None, "whose number of steps is not known, and does not matter to it"
        except InputError as error:
            number, said = None, f"whose number of steps is not known ({error})"
        slots.append({"optimizer": kind, "variables": held, "steps": number})
        lines.append(f"slots of {kind} for {count(held, 'variable')}, {said}")
    if not slots:
        lines.append("no slots of an optimizer")
    lines.append(f"moving averages of {count(averages, 'variable')}" if averages else "no moving averages of variables")
    others = list(source.others()) if hasattr(source, "others") else []
    if any(_OBJECTS in name for name in others):
        lines.append("its names are those of the objects of TensorFlow 2 (tf.train.Checkpoint)")
    if found.verified and not found.damage:
        lines.append(
            "no damage: every tensor was read" if source.checksums else "every tensor was read; it has no checksums"
        )
    if not found.verified:
        lines.append("damage was not looked for (--noverify)")
    data = {
        "variables": len(variables),
        "parameters": elements,
        "dtypes": dict(types),
        "slots": slots,
        "averages": averages,
        "damaged": sorted(found.damaged),
    }
    return tuple(lines), tuple(verify.describe_damage(found.damage)), data


@dataclass(frozen=True)
class GraphFacts:
    """What a graph holds, as ``WeightsFacts``; ``meta`` is the graph that would be trained, None if it cannot be read."""

    path: pathlib.Path
    lines: tuple[str, ...]
    problem: str
    meta: MetaGraph | None
    data: dict[str, Any] = field(default_factory=dict)


def describe_graph(path: pathlib.Path, *, tags: Collection[str] | None = None) -> GraphFacts:
    """Reads a graph as data and tells what it holds, what trains, and what the audit finds."""
    try:
        meta = read_metagraph(path, tags=tags)
    except InputError as error:
        return GraphFacts(path, (), str(error), None)
    definition = meta.definition.graph_def
    version = meta.definition.meta_info_def.tensorflow_version
    held = sum(node.op in HOLDERS for node in definition.node)
    lines = [
        f"{count(len(definition.node), 'operation')}, {count(held, 'variable')}"
        + ("" if held else ": a frozen graph, or one without weights")
    ]
    if meta.note:
        lines.append(meta.note)
    if version:
        lines[0] += f", written by TensorFlow {version}"
    lines += [f"repaired: {repair}" for repair in meta.repairs]
    fed = [_describe_input(node) for node in definition.node if node.op in PLACEHOLDERS]
    lines.append(f"placeholders: {join_some(fed) or 'none'}")
    signatures = [name for name in meta.definition.signature_def if name[:2] != "__"]
    if signatures:
        lines.append(f"signatures: {join_some(signatures)}")
    data: dict[str, Any] = {"operations": len(definition.node), "variables": held, "signatures": signatures}
    if unknown := meta.unknown_note():
        lines.append(unknown)
    data["unknown"] = unknown
    if held:
        told, data["audit"] = _audit(path, tags)
        lines += told
    return GraphFacts(path, tuple(lines), "", meta, data)


def _describe_input(node: Any) -> str:
    try:
        dtype = dtype_of(node.attr["dtype"].type).name
    except InputError:
        dtype = "unknown"
    shape = shape_of(node)
    text = "of any shape" if shape is None else str(["?" if n is None else n for n in shape]).replace("'", "")
    return f"{node.name} {text} {dtype}"


def _audit(path: pathlib.Path, tags: Collection[str] | None) -> tuple[list[str], dict[str, Any]]:
    """What trains: the collection, the train op, and what the audit of the graph that trains finds."""
    try:
        meta = read_metagraph(path, tags=tags, training=True)
        collected = meta.variable_names("trainable_variables")
        updates = len(meta.names("update_ops"))
        lines = [
            f"trainable collection: {count(len(collected), 'variable')}; update operations of statistics: {updates}"
        ]
        found = audit_graph(meta.facts(), None)
    except REFUSALS as error:
        why = str(error).removeprefix(f"{path}: ")
        return [f"audit: no train op was audited, so nothing shows what trains ({why})"], {"problem": str(error)}
    written = sum(row.written for row in found.variables)
    lines.append(f"train op: {found.train_op}, which may write {written} of {len(found.variables)} variables")
    lines.append(
        f"audit: {count(len(found.findings), 'finding')}" + ("" if found.findings else "; nothing contradicts itself")
    )
    lines += [f"  {each.path}: {each.rule}; {each.fix}" for each in found.findings[:4]]
    if len(found.findings) > 4:
        lines.append(f"  ... and {len(found.findings) - 4} more; `frostline audit-graph --graph={path}` lists them")
    return lines, found.to_json()
