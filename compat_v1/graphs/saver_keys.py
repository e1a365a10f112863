"""Finds what the Saver of an old graph restores from a checkpoint: which keys, in what slices, for which variables.

This is read from the restore operations that ``SaverDef`` names and not guessed from names, so a Saver of a dict, of
averages or of partitioned variables is understood correctly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import variable_pb2

from compat_v1.graphs.endpoints import dtype_of, producer
from engine.graphs.reach import reach

_RESTORES = ("RestoreV2", "RestoreSlice", "Restore")
_PASSES = ("Identity", "Reshape", "Cast", "Squeeze")


@dataclass(frozen=True)
class Slice:
    """A part of a tensor in a checkpoint: the ``full`` shape of the tensor, and the begin and shape of the part."""

    full: tuple[int, ...]
    begin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def spec(self) -> str:
        """The slice as RestoreV2 and SaveV2 expect it, such as ``4 3 0,2:0,3``; lengths are explicit, as in tf.train.Saver."""
        parts = (f"{start},{length}" for start, length in zip(self.begin, self.shape, strict=True))
        return f"{' '.join(map(str, self.full))} {':'.join(parts)}"


@dataclass(frozen=True)
class Wanted:
    """One tensor that a Saver restores.

    Attributes:
        key, part: the key in the checkpoint, and the slice that is restored, None for the whole tensor.
        dtype: the dtype; None where the restore operation does not state it.
        variable: the node of the variable that it is assigned to; "" for anything else, such as a table.
    """

    key: str
    part: Slice | None
    dtype: tf.DType | None
    variable: str


def list_wanted(meta: Any) -> list[Wanted]:
    """Lists everything that the Saver of a MetaGraphDef restores, in its order; [] if it has no Saver."""
    nodes = {node.name: node for node in meta.graph_def.node}
    target = meta.saver_def.restore_op_name.partition(":")[0]
    restores: dict[str, None] = {}
    assigned: dict[tuple[str, int], str] = {}

    def before(name: str) -> list[str]:
        node = nodes[name]
        ends = node.op in _RESTORES or _assigns(node)
        return [] if ends else [producer(each) for each in reversed(node.input) if producer(each) in nodes]

    for name in reach([target] if target in nodes else [], before):
        node = nodes[name]
        if node.op in _RESTORES:
            restores[name] = None
        elif _assigns(node) and (source := _origin(node.input[1], nodes)) is not None:
            assigned[source] = producer(node.input[0])
            restores[source[0]] = None
    order = {node.name: number for number, node in enumerate(meta.graph_def.node)}
    return [each for name in sorted(restores, key=order.__getitem__) for each in _of(nodes[name], nodes, assigned)]


def find_variable_keys(meta: Any) -> dict[str, Wanted]:
    """Returns variable node -> where its value is in a checkpoint, by the Saver or else by the VariableDefs."""
    found = {each.variable: each for each in list_wanted(meta) if each.variable}
    for collection in meta.collection_def.values():
        for entry in collection.bytes_list.value:
            try:
                record = variable_pb2.VariableDef.FromString(entry)
            except Exception:  # another kind of collection; the type depends on the implementation of protobuf
                continue
            node, info = record.variable_name.partition(":")[0], record.save_slice_info_def
            if node and node not in found and info.full_name:
                full, begin, shape = (tuple(values) for values in (info.full_shape, info.var_offset, info.var_shape))
                if len(full) == len(begin) == len(shape):
                    found[node] = Wanted(info.full_name, Slice(full, begin, shape), None, node)
    return found


def _assigns(node: Any) -> bool:
    return node.op in ("Assign", "AssignVariableOp") and len(node.input) >= 2


def _origin(name: str, nodes: dict[str, Any]) -> tuple[str, int] | None:
    """Returns the restore operation and output that a value comes from."""
    for _ in range(8):
        node = nodes.get(name.partition(":")[0])
        if node is None:
            return None
        if node.op in _RESTORES:
            return node.name, int(name.partition(":")[2] or 0)
        if node.op not in _PASSES or not node.input:
            return None
        name = node.input[0]
    return None


def _of(node: Any, nodes: dict[str, Any], assigned: dict[tuple[str, int], str]) -> list[Wanted]:
    names = _texts(node, 1, nodes)
    specs = _texts(node, 2, nodes) if len(node.input) > 2 else []
    types = list(node.attr["dtypes"].list.type) or [node.attr["dt"].type]
    return [
        Wanted(
            key,
            parse_slice(specs[number]) if number < len(specs) else None,
            dtype_of(types[number]) if number < len(types) and types[number] else None,
            assigned.get((node.name, number), ""),
        )
        for number, key in enumerate(names)
    ]


def _texts(node: Any, position: int, nodes: dict[str, Any]) -> list[str]:
    """Returns the strings of a constant input."""
    source = nodes.get(node.input[position].partition(":")[0]) if position < len(node.input) else None
    if source is None or source.op != "Const":
        return []
    return [text.decode(errors="replace") for text in source.attr["value"].tensor.string_val]


def parse_slice(spec: str) -> Slice | None:
    """Parses the slice specification of RestoreV2; None for a whole tensor or an invalid text."""
    *full, parts = spec.split() or [""]
    if not full or not all(length.isdigit() for length in full):
        return None
    begin, shape = [], []
    pieces = parts.split(":")
    if len(pieces) != len(full):
        return None
    for whole, piece in zip(full, pieces, strict=True):
        if piece != "-" and not re.fullmatch(r"\d+,\d+", piece):
            return None
        start, length = piece.split(",") if piece != "-" else ("0", whole)
        begin.append(int(start))
        shape.append(int(length))
    return Slice(tuple(map(int, full)), tuple(begin), tuple(shape))
