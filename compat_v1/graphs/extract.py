"""Extracts and checks the part of an old graph that its outputs need, to run it in TensorFlow 2.

Nothing but this part is imported: no ``import_meta_graph``, no restore operations, no queues. Variables are mapped
in: a resource variable as the handle of a new one, a reference variable as a tensor with its value.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import branch_folding, saver_keys, subgraph
from compat_v1.graphs.endpoints import PLACEHOLDERS, Graph, all_nodes, dtype_of, producer, shape_of
from compat_v1.graphs.saver_keys import Wanted
from compat_v1.graphs.unused_results import drop_unused_results
from engine.graphs import safety
from engine.graphs.library_names import make_names_unique
from engine.graphs.op_allowlist import FILLS_TABLE, TABLES, VARIABLES
from engine.graphs.op_kinds import is_random
from engine.text import join_some

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class Input:
    """A tensor that is fed. ``shape`` is None for an unknown rank, and has None for unknown lengths."""

    name: str
    dtype: tf.DType
    shape: Shape


@dataclass(frozen=True)
class OldVariable:
    """A variable of the old graph, by the name of its operation.

    ``resource`` says whether it is read through a handle; otherwise it is a reference variable. ``saved`` is where a
    checkpoint has its value.
    """

    node: str
    dtype: tf.DType
    shape: Shape
    resource: bool
    saved: Wanted


@dataclass(frozen=True, eq=False)
class Extracted:
    """What the outputs of an old graph need.

    Attributes:
        path: the file of the graph, for messages.
        definition: the checked GraphDef of the part, without its variables and inputs.
        tables: a GraphDef that fills the lookup tables of the part, and the operations that do so.
        inputs, fixed: the tensors that are fed, and tensor -> its fixed value.
        outputs: the names of the output tensors, in the order requested.
        random: the operations of the part that draw random numbers; if there are any, no two runs are equal.
    """

    path: str
    definition: Any
    tables: tuple[Any, tuple[str, ...]]
    inputs: tuple[Input, ...]
    fixed: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    variables: tuple[OldVariable, ...]
    random: tuple[str, ...]

    def summary(self) -> str:
        """A one-line summary for the user."""
        fixed = [f"{name}={_brief(value)}" for name, value in self.fixed.items()]
        inputs = [f"{each.name} {_shown(each.shape)} {each.dtype.name}" for each in self.inputs]
        line = f"{len(self.definition.node)} operations, {len(self.variables)} variables"
        return f"{line}; {', '.join([*inputs, *fixed]) or 'no input'} -> {', '.join(self.outputs)}"


def extract(
    meta: Any,
    *,
    path: str | os.PathLike[str],
    inputs: Mapping[str, Any] | Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Extracted:
    """Extracts from a MetaGraphDef what the outputs need, and checks it (engine.graphs.safety).

    Raises GraphError if there is no such tensor, there are several candidates (the message lists them), or a
    placeholder has no value; UnsafeGraphError if the part does more than compute.

    Args:
        path: the file of the MetaGraphDef, for messages.
        inputs: the tensors that are fed, as ``scope/op`` or ``op:0``. This can be any tensor; what it depends on is
            left out. A tuple states the shape of a tensor, where the graph does not, with None for an unknown length.
            A tensor with another value (``{"is_training": False}``, an array, a list) is fixed instead of fed, and
            branches that a fixed condition does not take are left out. None takes the only input.
        outputs: the tensors to compute. None takes those of the only signature, or the floating-point tensor that
            nothing reads.
    """
    where = os.fspath(path)
    definition = tf.compat.v1.GraphDef()
    definition.CopyFrom(meta.graph_def)
    graph = Graph(definition, where=where)
    given = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(inputs or ())
    named = {graph.tensor(name, argument="inputs"): value for name, value in given.items()}
    stated = {name: value for name, value in named.items() if isinstance(value, tuple)}
    fixed = {
        name: _fixed(graph, name, value) for name, value in named.items() if value is not None and name not in stated
    }
    fed = [name for name in named if name not in fixed]
    wanted = [graph.tensor(name, argument="outputs") for name in outputs or ()]
    if not wanted:
        fed, wanted = find_endpoints(meta, graph, fed, fixed)
    branch_folding.fold_branches(definition, fixed)
    subgraph.upgrade_ops(definition)
    graph = Graph(definition, where=where)
    if not fed:
        fed = find_only_input(graph, wanted, fixed)
    cut = [*fed, *fixed]
    needed = graph.needed(wanted, cut)
    _all_fed(graph, needed)
    tables = _tables(graph, needed)
    part = subgraph.cut_out(graph, needed)
    drop_unused_results(part, wanted)
    part = subgraph.cut_out(trimmed := Graph(part, where=where), trimmed.needed(wanted, cut))
    random = tuple(node.name for node in all_nodes(part) if is_random(node.op))
    for each in (part, tables[0]):
        safety.check_graph(each, where=where)
        make_names_unique(each)
    read = {producer(name) for node in part.node for name in node.input} | {producer(name) for name in wanted}
    return Extracted(
        where,
        part,
        tables,
        tuple(Input(name, graph.type_of(name), _shape(graph, name, stated.get(name))) for name in fed),
        fixed,
        tuple(wanted),
        list_variables(meta, graph, needed & read),
        random,
    )


def find_endpoints(meta: Any, graph: Graph, fed: list[str], fixed: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Finds the inputs and outputs that the caller did not name; GraphError where there are several candidates."""
    signatures = {name: each for name, each in meta.signature_def.items() if each.outputs and name[:2] != "__"}
    chosen = signatures.get("serving_default") or (next(iter(signatures.values())) if len(signatures) == 1 else None)
    if chosen is not None:
        outputs = [graph.tensor(each.name, argument="outputs") for _, each in sorted(chosen.outputs.items())]
        floating = [name for name in outputs if graph.type_of(name).is_floating] or outputs
        known = [graph.tensor(each.name, argument="inputs") for _, each in sorted(chosen.inputs.items())]
        needed = graph.needed(floating)
        data = [name for name in known if graph.type_of(name) != tf.bool]  # others are switches
        return fed or [name for name in data if name not in fixed and producer(name) in needed], floating
    inputs, found = graph.find_outputs(fed, [producer(name) for name in fixed])
    if not found:
        raise GraphError(
            f"{graph.where}: no network was found; name its outputs with outputs=; the graph is fed {join_some(inputs, most=12)}"
        )
    if len(found) > 1:
        raise GraphError(
            f"outputs=: {graph.where} has {len(found)} candidates; choose from: {join_some(found, most=12)}"
        )
    return inputs, found


def find_only_input(graph: Graph, wanted: Sequence[str], fixed: Iterable[str]) -> list[str]:
    """Returns the only input that the outputs need, not counting switches such as ``is_training``; or none."""
    found = [f"{name}:0" for name in graph.sources(graph.needed(wanted, fixed))]
    data = [name for name in found if graph.type_of(name) != tf.bool]
    if len(data) > 1:
        raise GraphError(
            f"inputs=: {', '.join(wanted)} of {graph.where} need {len(data)} inputs; name them: {join_some(data, most=12)}"
        )
    return data


def _all_fed(graph: Graph, needed: Iterable[str]) -> None:
    """Raises GraphError if the outputs still need a source that is neither fed nor fixed."""
    for name in graph.sources(needed):
        node = graph.nodes[name]
        if node.op not in PLACEHOLDERS:
            raise GraphError(
                f"inputs=: the outputs need {name}:0 ({node.op}), which reads a queue or an iterator; "
                f"feed it with inputs={name}:0"
            )
        kind = graph.type_of(f"{name}:0")
        value = "False" if kind == tf.bool else "[VALUE,...]" if _shape(graph, f"{name}:0") else "VALUE"
        raise GraphError(
            f"inputs=: the outputs also need the {kind.name} placeholder {name}; fix its value with inputs={name}={value}"
        )


def _fixed(graph: Graph, name: str, value: Any) -> np.ndarray:
    """Returns the value of a fixed input as an array of its dtype; raises GraphError if it does not fit."""
    dtype = graph.type_of(name)
    try:
        array = np.asarray(value)
    except ValueError:
        raise GraphError(f"inputs={name}={value!r}: the lists in it have different lengths") from None
    kinds = "b" if dtype.is_bool else "iu" if dtype.is_integer else "iuf" if dtype.is_floating else "SU"
    if array.dtype.kind not in kinds and array.size:
        raise GraphError(f"inputs={name}={_brief(value)}: expected a value of dtype {dtype.name}")
    if dtype != tf.string:
        given, array = array, array.astype(dtype.as_numpy_dtype)
        if dtype.is_integer and not np.array_equal(given, array):
            raise GraphError(f"inputs={name}={_brief(value)}: a number in it does not fit into {dtype.name}")
    shape = _shape(graph, name)
    if not tf.TensorShape(shape).is_compatible_with(array.shape):
        raise GraphError(f"inputs={name}={_brief(value)}: got the shape {list(array.shape)}, expected {_shown(shape)}")
    return array


def _tables(graph: Graph, needed: set[str]) -> tuple[Any, tuple[str, ...]]:
    """Extracts what fills the lookup tables among the nodes, and gives the tables names unique in this process."""
    tables = {name for name in needed if graph.nodes[name].op in TABLES}
    fills = []
    for name in tables:
        graph.nodes[name].attr["shared_name"].s = f"{name}_{uuid.uuid4().hex}".encode()
        graph.nodes[name].attr["container"].s = b""
    for name, node in graph.nodes.items():
        if not node.input or producer(node.input[0]) not in tables:
            continue
        if node.op in FILLS_TABLE:
            fills.append(name)
        elif node.op.startswith("InitializeTable"):
            raise GraphError(
                f"{graph.where}: the table {node.input[0]} is filled from a file ({name}); cut after it with inputs="
            )
    return subgraph.cut_out(graph, graph.needed(fills)), tuple(fills)


def list_variables(meta: Any, graph: Graph, names: set[str]) -> tuple[OldVariable, ...]:
    """Lists the variables among some nodes, and where a checkpoint has their values."""
    saved = saver_keys.find_variable_keys(meta)
    found = []
    for name, node in graph.nodes.items():
        if name in names and node.op in VARIABLES:
            dtype = dtype_of(node.attr["dtype"].type)
            place = saved.get(name, Wanted(name, None, None, name))
            found.append(OldVariable(name, dtype, shape_of(node), node.op == "VarHandleOp", place))
    return tuple(found)


def _shape(graph: Graph, name: str, stated: Shape = None) -> Shape:
    """Returns the shape of a tensor as the graph says it, refined by the stated one."""
    shape = _shape_in_graph(graph, name)
    if stated is None:
        return shape
    if not tf.TensorShape(shape).is_compatible_with(stated):
        raise GraphError(f"inputs={name}{_shown(stated)}: the graph {graph.where} has it as {_shown(shape)}")
    return tuple(tf.TensorShape(shape).merge_with(stated).as_list())


def _shape_in_graph(graph: Graph, name: str) -> Shape:
    node, index = graph.nodes[producer(name)], int(name.rpartition(":")[2])
    if "shape" in node.attr:
        shape = shape_of(node)
        return None if shape == () and graph.versions.producer < 24 else shape  # then, () meant unknown
    shapes = node.attr["output_shapes"].list.shape if "output_shapes" in node.attr else ()
    if index < len(shapes) and not shapes[index].unknown_rank:
        return tuple(None if dim.size < 0 else int(dim.size) for dim in shapes[index].dim)
    return None


def _shown(shape: Shape) -> str:
    if shape is None:
        return "of any shape"
    return str([length if length is not None else "?" for length in shape]).replace("'", "")


def _brief(value: Any) -> str:
    """Returns a value for a message, or the shape and dtype of a large one."""
    array = np.asarray(value)
    return str(array.tolist()) if array.size <= 8 else f"{list(array.shape)} {array.dtype.name}"
