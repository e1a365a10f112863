"""The part of an old graph that its outputs need, cut out, checked, and run in TensorFlow 2.

Nothing is imported but this part: no ``import_meta_graph``, no restore operations, no queues. Variables are mapped
in: of a resource variable the handle of one of our own, of a reference variable its value as a tensor.
"""

from __future__ import annotations

import ast
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs import branch_folding, safety, saver_keys, subgraph
from compat_v1.graphs.endpoints import PLACEHOLDERS, Graph, dtype_of, producer, shape_of
from compat_v1.graphs.op_allowlist import FILLS_TABLE, RANDOM, TABLES, VARIABLES
from compat_v1.graphs.saver_keys import Wanted
from engine.text import join_some

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class Input:
    """A tensor that is fed. ``shape``: None for an open rank, and in it for open lengths."""

    name: str
    dtype: tf.DType
    shape: Shape


@dataclass(frozen=True)
class OldVariable:
    """A variable of the old graph.

    Attributes:
        node: its operation.
        dtype, shape: as the graph says them.
        resource: whether it is read by a handle; else it is a reference variable.
        saved: where a checkpoint has its value.
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
        path: the graph's file, for messages.
        definition: GraphDef of the part, checked; its variables and inputs are not in it.
        tables: GraphDef that fills the part's look-up tables, and the operations that do.
        inputs: what is fed.
        fixed: tensor -> the value that it has.
        outputs: tensor names, in the order asked for.
        variables: those that the part reads.
        random: operations of the part that draw random numbers: with any, two runs differ.
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
        """One line for people."""
        fixed = [f"{name}={value}" for name, value in self.fixed.items()]
        inputs = [f"{each.name} {_shown(each.shape)} {each.dtype.name}" for each in self.inputs]
        line = f"{len(self.definition.node)} operations, {len(self.variables)} variables"
        return f"{line}; {', '.join([*inputs, *fixed]) or 'no input'} -> {', '.join(self.outputs)}"


def parse_inputs(text: str) -> dict[str, Any]:
    """``a,b:0=False,c=0.5`` as {"a": None, "b:0": False, "c": 0.5}: what is fed, and what has a value.

    Raises:
        GraphError: a value is no number and not True or False.
    """
    found: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals:
            found[name] = None
            continue
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = None
        if not isinstance(found[name], (bool, int, float)):
            raise GraphError(f"inputs={item}: the value is a number, True or False")
    return found


def extract(
    meta: Any,
    *,
    path: str | os.PathLike[str],
    inputs: Mapping[str, Any] | Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Extracted:
    """Cuts out of a MetaGraphDef what the outputs need, and checks it (compat_v1.graphs.safety).

    Args:
        meta: a MetaGraphDef.
        path: its file, for messages.
        inputs: tensors that are fed, ``scope/op`` or ``op:0``: any tensor, what lies before it is left out. With a
            value (``{"is_training": False}``) it has that instead; branches of a known condition are not taken in. Without
            any, the one that there is.
        outputs: tensors wanted. None: those of the one signature, or the floating tensor that nothing reads.

    Raises:
        GraphError: no such tensor, several candidates (they are listed), a placeholder without a value.
        UnsafeGraphError: the part does more than compute.
    """
    where = os.fspath(path)
    definition = tf.compat.v1.GraphDef()
    definition.CopyFrom(meta.graph_def)
    graph = Graph(definition, where=where)
    given = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(inputs or ())
    named = {graph.tensor(name, argument="inputs"): value for name, value in given.items()}
    fixed = {name: _fixed(graph, name, value) for name, value in named.items() if value is not None}
    fed = [name for name in named if name not in fixed]
    wanted = [graph.tensor(name, argument="outputs") for name in outputs or ()]
    if not wanted:
        fed, wanted = _find(meta, graph, fed, fixed)
    branch_folding.branches(definition, fixed)
    subgraph.upgrade(definition)
    graph = Graph(definition, where=where)
    if not fed:
        fed = _only(graph, wanted, fixed)
    cut = [*fed, *fixed]
    needed = graph.needed(wanted, cut)
    _all_fed(graph, needed)
    tables = _tables(graph, needed)
    part = subgraph.cut_out(graph, needed)
    for each in (part, tables[0]):
        safety.check(each, where=where)
        subgraph.make_names_unique(each)
    read = {producer(name) for node in part.node for name in node.input} | {producer(name) for name in wanted}
    return Extracted(
        where,
        part,
        tables,
        tuple(Input(name, graph.type_of(name), _shape(graph, name)) for name in fed),
        fixed,
        tuple(wanted),
        _variables(meta, graph, needed & read),
        _random(part),
    )


def _find(meta: Any, graph: Graph, fed: list[str], fixed: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Inputs and outputs that the caller did not name."""
    signatures = {name: each for name, each in meta.signature_def.items() if each.outputs and name[:2] != "__"}
    chosen = signatures.get("serving_default") or (next(iter(signatures.values())) if len(signatures) == 1 else None)
    if chosen is not None:
        outputs = [graph.tensor(each.name, argument="outputs") for _, each in sorted(chosen.outputs.items())]
        floating = [name for name in outputs if graph.type_of(name).is_floating] or outputs
        known = [graph.tensor(each.name, argument="inputs") for _, each in sorted(chosen.inputs.items())]
        needed = graph.needed(floating)
        return fed or [name for name in known if name not in fixed and producer(name) in needed], floating
    inputs, found = graph.find_outputs(fed, [producer(name) for name in fixed])
    if not found:
        raise GraphError(
            f"{graph.where}: no network is found by itself; outputs= names what is wanted, of {join_some(inputs, most=12)}"
        )
    if len(found) > 1:
        raise GraphError(
            f"outputs=: {graph.where} has {len(found)} candidates; name those wanted: {join_some(found, most=12)}"
        )
    return inputs, found


def _only(graph: Graph, wanted: Sequence[str], fixed: Iterable[str]) -> list[str]:
    """The one input that the outputs need, switches such as ``is_training`` apart; none where they need none."""
    found = [f"{name}:0" for name in graph.sources(graph.needed(wanted, fixed))]
    data = [name for name in found if graph.type_of(name) != tf.bool]
    if len(data) > 1:
        raise GraphError(
            f"inputs=: {', '.join(wanted)} of {graph.where} need {len(data)}; name them: {join_some(data, most=12)}"
        )
    return data


def _all_fed(graph: Graph, needed: Iterable[str]) -> None:
    """Every source among what is needed must have been cut off."""
    for name in graph.sources(needed):
        node = graph.nodes[name]
        if node.op not in PLACEHOLDERS:
            raise GraphError(
                f"inputs=: the outputs need {name}:0 ({node.op}), which takes from a queue or an iterator; "
                f"inputs={name}:0 feeds it instead"
            )
        kind = graph.type_of(f"{name}:0")
        value = "False" if kind == tf.bool else "VALUE"
        raise GraphError(
            f"inputs=: the outputs need the {kind.name} placeholder {name} too; inputs={name}={value} gives it a value"
        )


def _fixed(graph: Graph, name: str, value: Any) -> np.ndarray:
    dtype = graph.type_of(name)
    array = np.asarray(value)
    wanted = np.dtype(dtype.as_numpy_dtype)
    if (array.dtype.kind == "b") > (wanted.kind == "b") or not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise GraphError(f"inputs={name}={value!r}: {dtype.name} is wanted")
    return array.astype(wanted)


def _tables(graph: Graph, needed: set[str]) -> tuple[Any, tuple[str, ...]]:
    """What fills the look-up tables among the nodes. Tables get names that nothing else in this process has."""
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
                f"{graph.where}: the table {node.input[0]} is filled from a file ({name}); inputs= cuts after it"
            )
    return subgraph.cut_out(graph, graph.needed(fills)), tuple(fills)


def _variables(meta: Any, graph: Graph, names: set[str]) -> tuple[OldVariable, ...]:
    saved = saver_keys.keys_of_variables(meta)
    found = []
    for name, node in graph.nodes.items():
        if name in names and node.op in VARIABLES:
            dtype = dtype_of(node.attr["dtype"].type)
            place = saved.get(name, Wanted(name, None, None, name))
            found.append(OldVariable(name, dtype, shape_of(node), node.op == "VarHandleOp", place))
    return tuple(found)


def _shape(graph: Graph, name: str) -> Shape:
    node, index = graph.nodes[producer(name)], int(name.rpartition(":")[2])
    if "shape" in node.attr:
        shape = shape_of(node)
        return None if shape == () and graph.versions.producer < 24 else shape  # then, () said nothing
    shapes = node.attr["output_shapes"].list.shape if "output_shapes" in node.attr else ()
    if index < len(shapes) and not shapes[index].unknown_rank:
        return tuple(None if dim.size < 0 else int(dim.size) for dim in shapes[index].dim)
    return None


def _random(part: Any) -> tuple[str, ...]:
    return tuple(node.name for node in subgraph.all_nodes(part) if node.op in RANDOM)


def _shown(shape: Shape) -> str:
    return (
        "of any shape"
        if shape is None
        else str([length if length is not None else "?" for length in shape]).replace("'", "")
    )
