"""Turns a trace of a SavedModel into one checked graph without calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import GraphError
from engine.graphs import safety
from engine.graphs.inlining import expand_calls
from engine.graphs.node_editing import all_nodes, producer, replace_node, tensor_name
from engine.models.saved_model.reading import SavedFile
from engine.models.saved_model.traces import Trace

CUSTOM_GRADIENT = "_gradient_op_type"
_BRANCHES = {"If": ("then_branch", "else_branch"), "StatelessIf": ("then_branch", "else_branch")}
_HOW = ("config", "config_proto", "executor_type")  # attributes of calls that only concern how they run
_MOST_FOLDS = 16  # switches within the branches of switches


@dataclass(frozen=True, eq=False)
class Flat:
    """A trace as one graph.

    Attributes:
        definition: the GraphDef. Its placeholders are the images and the handles of variables.
        data: the placeholder of the images.
        output: the tensor of the features.
        handles: the placeholder of each handle -> the number of its variable.
        custom: the nodes whose gradient the file defines by a function of its own.
    """

    definition: Any
    data: str
    output: str
    handles: Mapping[str, int]
    custom: frozenset[str]


def flatten_trace(file: SavedFile, trace: Trace, output: str, *, training: bool) -> Flat:
    """The operations of a trace, with all function calls expanded and the branches of a switch for training chosen.

    Everything that the trace calls is checked before (engine.graphs.safety). Raises UnsafeGraphError if it does more than
    compute and move variables; GraphError if it needs a table, a file or another object that is not a variable; FileError
    if the file contradicts itself.
    """
    where = str(file.folder)
    definition, handles = _call(file, trace, training)
    safety.check_graph(definition, where=f"{where}, {trace.source}", changes=True)
    tensor = f"call:{trace.output(output).place}"
    try:
        for _ in range(_MOST_FOLDS):
            definition, _, renamed = expand_calls(definition)
            tensor = renamed.get(tensor, tensor)
            if not _fold_branches(definition):
                break
    except (ValueError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, GraphError):
            raise GraphError(f"{where}: {error}") from None
        raise file.damaged(
            f"the function {trace.function} cannot be read ({' '.join(str(error).split())[:200]})"
        ) from None
    nodes = {node.name: node for node in definition.node}
    custom = frozenset(
        name for name, node in nodes.items() if CUSTOM_GRADIENT in node.attr and not _is_swish(nodes, node)
    )
    _drop_attributes(definition)
    return Flat(definition, f"given_{trace.data[0]}", tensor, handles, custom)


def _call(file: SavedFile, trace: Trace, training: bool) -> tuple[Any, dict[str, int]]:
    """A graph that calls the trace; and the placeholders of the variables' handles, with the variables' numbers."""
    definition = tf.compat.v1.GraphDef(versions=file.definition.graph_def.versions)
    for function in file.library(trace.function):
        kept = definition.library.function.add()
        kept.CopyFrom(function)
        for field in ("attr", "arg_attr", "resource_arg_unique_id"):
            kept.ClearField(field)
    signature = file.functions[trace.function].signature
    handles: dict[str, int] = {}
    first = len(signature.input_arg) - len(trace.captures)
    for place, argument in enumerate(signature.input_arg):
        node = definition.node.add(name=f"given_{place}")
        dtype = _as_dtype(file, argument.type)
        if place < first:
            if place in trace.switches:
                replace_node(node, "Const", (), {"dtype": tf.bool, "value": np.bool_(training)})
            else:
                replace_node(node, "Placeholder", (), {"dtype": dtype})
            continue
        number = trace.captures[place - first]
        kind = file.nodes[number].WhichOneof("kind")
        if kind == "variable" and dtype == tf.resource:
            handles[node.name] = number
            replace_node(node, "Placeholder", (), {"dtype": dtype})
        elif kind == "constant" and dtype != tf.resource:
            value = file.constant(number)
            if value.dtype != dtype.as_numpy_dtype:
                raise file.damaged(f"the constant of {argument.name} is {value.dtype.name}, not {dtype.name}")
            replace_node(node, "Const", (), {"dtype": dtype, "value": value})
        else:
            what = {"resource": "a lookup table or another resource", "asset": "a file"}.get(kind or "", f"a {kind}")
            raise GraphError(
                f"{file.folder}: {trace.source} reads {what} ({file.place(number) or argument.name}), which is not loaded; "
                "signature= names a function without it"
            )
    call = definition.node.add(name="call", op="StatefulPartitionedCall")
    call.input.extend(f"given_{place}" for place in range(len(signature.input_arg)))
    call.attr["f"].func.name = trace.function
    call.attr["Tin"].list.type.extend(argument.type for argument in signature.input_arg)
    call.attr["Tout"].list.type.extend(argument.type for argument in signature.output_arg)
    return definition, handles


def _as_dtype(file: SavedFile, number: int) -> tf.DType:
    try:
        return tf.as_dtype(number).base_dtype
    except TypeError:
        raise file.damaged(f"an argument has the dtype {number}, which TensorFlow does not know") from None


def _fold_branches(definition: Any) -> bool:
    """Replaces branches on a constant by calls of the branch that is taken; whether there was one."""
    nodes = {node.name: node for node in definition.node}
    found = False
    for node in definition.node:
        if node.op in _BRANCHES and (value := _constant(nodes, node.input[0])) is not None:
            branch = node.attr[_BRANCHES[node.op][0 if value else 1]].func.name
            types = list(node.attr["Tin"].list.type), list(node.attr["Tout"].list.type)
            replace_node(node, "StatefulPartitionedCall", list(node.input[1:]), {})
            node.attr["f"].func.name = branch
            node.attr["Tin"].list.type.extend(types[0])
            node.attr["Tout"].list.type.extend(types[1])
            found = True
    return found


def _constant(nodes: Mapping[str, Any], name: str) -> bool | None:
    """The value of a boolean constant, through identities; None for anything else."""
    node = nodes.get(producer(name))
    while node is not None and node.op == "Identity":
        node = nodes.get(producer(node.input[0]))
    if node is None or node.op != "Const" or node.attr["dtype"].type != tf.bool.as_datatype_enum:
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return bool(value.reshape(-1)[0]) if value.size == 1 else None


def _is_swish(nodes: Mapping[str, Any], node: Any) -> bool:
    """Whether a node returns x * sigmoid(x), perhaps with a factor inside, whose own gradient only saves memory."""

    def source(name: str) -> Any:
        found = nodes.get(producer(name))
        while found is not None and found.op == "Identity":
            found = nodes.get(producer(found.input[0]))
        return found

    product = source(node.input[0]) if node.op == "IdentityN" and node.input else None
    if product is None or product.op != "Mul":
        return False
    factors = [source(name) for name in product.input[:2]]
    gates = [factor for factor in factors if factor is not None and factor.op == "Sigmoid"]
    if len(gates) != 1:
        return False
    x, gate = next(factor for factor in factors if factor is not gates[0]), source(gates[0].input[0])
    return gate is x or (gate is not None and gate.op == "Mul" and any(source(name) is x for name in gate.input[:2]))


def _drop_attributes(definition: Any) -> None:
    """Drops devices, and attributes that only concern how operations run or what was inferred of them."""
    for node in all_nodes(definition):
        node.device = ""
        node.ClearField("experimental_debug_info")
        for name in [name for name in node.attr if name.startswith("_") or name in _HOW]:
            del node.attr[name]


def needed_nodes(definition: Any, tensors: list[str]) -> Any:
    """A GraphDef of the nodes that some tensors need, and the functions."""
    nodes = {node.name: node for node in definition.node}
    found = dict.fromkeys(producer(tensor_name(name)) for name in tensors)
    pending = list(found)
    for name in pending:  # grows
        for source in nodes[name].input:
            if producer(source) in nodes and producer(source) not in found:
                found[producer(source)] = None
                pending.append(producer(source))
    part = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
    part.node.extend(node for node in definition.node if node.name in found)
    return part
