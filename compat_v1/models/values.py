"""Turns a graph that reads and writes variables into one that only computes, from values to values.

Afterwards a variable is a node whose output is its value, whether it was read by reference or through a handle, and an
assignment is a node whose output is the new value. The caller feeds the values and assigns what was computed, so no
operation of the old graph changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.endpoints import Graph, dtype_of, producer
from engine.graphs.node_editing import add_constant, replace_node
from engine.graphs.op_allowlist import VARIABLES

# Assignment -> the operation that computes the new value from the old one and the second input.
ASSIGNMENTS = {
    **dict.fromkeys(("Assign", "AssignVariableOp"), "Identity"),
    **dict.fromkeys(("AssignAdd", "AssignAddVariableOp"), "AddV2"),
    **dict.fromkeys(("AssignSub", "AssignSubVariableOp"), "Sub"),
}
_RESOURCE = tf.resource.as_datatype_enum
_AXIS = "compat_v1/axis"
_PASSES = frozenset(["Switch", "Merge", "Enter", "Exit", "NextIteration", "Identity"])
# Call -> the position of the first argument of its functions, and the attribute that lists their dtypes.
_CALLS = {
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall"), (0, "Tin")),
    **dict.fromkeys(("If", "StatelessIf", "Case", "StatelessCase"), (1, "Tin")),
    **dict.fromkeys(("While", "StatelessWhile"), (0, "T")),
}


def find_written(graph: Graph, assignment: str) -> str:
    """The variable that an assignment changes, also through the Switch of a branch or the Enter of a loop."""
    return _find_variable(graph, graph.nodes[assignment].input[0])


def _find_variable(graph: Graph, tensor: str) -> str:
    """The node that a handle or reference comes from; that of the tensor itself, if it is a value."""
    node = graph.nodes[producer(tensor)]
    while node.op.removeprefix("Ref") in _PASSES and (node.op[:3] == "Ref" or node.attr["T"].type == _RESOURCE):
        node = graph.nodes[producer(node.input[0])]
    return str(node.name)


def use_values(definition: Any, assigned: Iterable[str], *, where: str) -> None:
    """Changes a GraphDef in place, so that variables are values and the nodes ``assigned`` give new values.

    What reads a variable after one of these assignments (by data or control) reads the new value. Other assignments stay
    as they are, and are refused where they are needed (engine.graphs.safety). Raises GraphError if two of the
    assignments change one variable.
    """
    graph = Graph(definition, where=where)
    variables = {name: node for name, node in graph.nodes.items() if node.op in VARIABLES}
    later: dict[str, tuple[str, set[str]]] = {}
    for name in assigned:
        variable = find_written(graph, name)
        if variable in later:
            raise GraphError(f"{where}: both {later[variable][0]} and {name} change {variable} in a step")
        later[variable] = name, graph.dependents([name], control=True) - {name}
    for node in definition.node:
        for position, source in enumerate(node.input):
            change = None if source.startswith("^") else later.get(_find_variable(graph, source))
            if change is not None and node.name in change[1] and node.op not in ASSIGNMENTS:
                node.input[position] = change[0]
    changes = {name for name, _ in later.values()}
    variable_of = {name: variable for variable, (name, _) in later.items()}
    functions = _Functions(definition)
    held = {name: dtype_of(node.attr["dtype"].type) for name, node in variables.items()}
    held |= {name: held[variable] for name, variable in variable_of.items()}
    _pass_values(definition, held)
    for node in list(definition.node):
        if node.name in changes:
            data = [source for source in node.input if not source.startswith("^")]
            op = ASSIGNMENTS[node.op]
            inputs = [*(data[1:] if op == "Identity" else data), *_controls(node)]
            replace_node(node, op, inputs, {"T": held[producer(data[0])]})
        elif node.op in _CALLS:
            functions.pass_values(node, held)
        elif node.input and producer(node.input[0]) in held:
            _read_value(node, held[producer(node.input[0])])
    for node in variables.values():
        if node.op == "VarHandleOp":
            replace_node(node, "VariableV2", (), {name: _copy(node.attr[name]) for name in ("dtype", "shape")})
    if any(producer(source) == _AXIS for node in definition.node for source in node.input):
        add_constant(definition, _AXIS, np.int32(0))


def _pass_values(definition: Any, held: dict[str, tf.DType]) -> None:
    """Makes what passes on the handle of a variable pass on its value, and adds it to ``held``."""
    passing = [node for node in definition.node if node.op in _PASSES and node.attr["T"].type == _RESOURCE]
    while passing:
        ready = [node for node in passing if any(producer(each) in held for each in node.input if each[0] != "^")]
        if not ready:
            return
        for node in ready:
            dtype = next(held[producer(each)] for each in node.input if each[0] != "^" and producer(each) in held)
            node.attr["T"].type = dtype.as_datatype_enum
            held[node.name] = dtype
        passing = [node for node in passing if node.name not in held]


def _copy(value: Any) -> Any:
    copied = tf.compat.v1.AttrValue()
    copied.CopyFrom(value)
    return copied


def _controls(node: Any) -> list[str]:
    return [source for source in node.input if source.startswith("^")]


def _read_value(node: Any, dtype: tf.DType) -> None:
    """What reads a variable of this dtype through its handle becomes what does the same with its value."""
    attributes = {name: _copy(value) for name, value in node.attr.items()}
    if node.op == "ReadVariableOp":
        replace_node(node, "Identity", node.input, {"T": dtype})
    elif node.op in ("ResourceGather", "ResourceGatherNd"):
        types = {"Tparams": dtype, "Tindices": attributes["Tindices"]}
        if node.op == "ResourceGatherNd":
            replace_node(node, "GatherNd", node.input, types)
            return
        data = [source for source in node.input if not source.startswith("^")]
        batch = attributes.get("batch_dims", 0)
        replace_node(
            node, "GatherV2", [*data, _AXIS, *_controls(node)], types | {"Taxis": tf.int32, "batch_dims": batch}
        )
    elif node.op == "VariableShape":
        kind = attributes.get("out_type", tf.int32)
        replace_node(node, "Shape", node.input, {"out_type": kind, "T": dtype})


class _Functions:
    """The library functions of a GraphDef, of which it makes versions that take values in place of handles."""

    def __init__(self, definition: Any) -> None:
        self._library = definition.library
        self._known = {function.signature.name: function for function in definition.library.function}
        self._made: dict[tuple[Any, ...], str] = {}

    def pass_values(self, call: Any, held: Mapping[str, tf.DType]) -> None:
        """Changes a call that is given handles, so that it is given the values of these variables."""
        first, listed = _CALLS[call.op]
        types = list(call.attr[listed].list.type)
        arguments = [source for source in call.input if not source.startswith("^")][first:]
        given = {
            place: held[producer(source)]
            for place, source in enumerate(arguments)
            if producer(source) in held and types[place] == _RESOURCE
        }
        if given:
            self._change(call, given)

    def _change(self, call: Any, given: Mapping[int, tf.DType]) -> None:
        _, listed = _CALLS[call.op]
        for place, dtype in given.items():
            call.attr[listed].list.type[place] = dtype.as_datatype_enum
        for value in call.attr.values():
            for function in [value.func] if value.HasField("func") else value.list.func:
                if function.name in self._known:
                    function.name = self._by_value(function.name, given)

    def _by_value(self, name: str, given: Mapping[int, tf.DType]) -> str:
        """The name of a version of a function whose arguments at these places are values; it is made if there is none."""
        key = (name, tuple(sorted((place, dtype.name) for place, dtype in given.items())))
        if key in self._made:
            return self._made[key]
        made = self._library.function.add()
        made.CopyFrom(self._known[name])
        made.signature.name = self._made[key] = f"{name}_of_values_{len(self._made)}"
        self._known[made.signature.name] = made
        arguments = {}
        for place, dtype in given.items():
            made.signature.input_arg[place].type = dtype.as_datatype_enum
            made.signature.input_arg[place].ClearField("handle_data")
            arguments[made.signature.input_arg[place].name] = dtype
        made.arg_attr.clear()
        made.resource_arg_unique_id.clear()
        renamed: dict[str, str] = {}
        for node in made.node_def:
            data = [source for source in node.input if not source.startswith("^")]
            if node.op in _CALLS:
                first, _ = _CALLS[node.op]
                inner = {place: arguments[source] for place, source in enumerate(data[first:]) if source in arguments}
                if inner:
                    self._change(node, inner)
            elif data and data[0] in arguments:
                if node.op == "Identity":
                    replace_node(node, "Identity", node.input, {"T": arguments[data[0]]})
                    arguments[f"{node.name}:output:0"] = arguments[data[0]]
                    continue
                before = node.op
                _read_value(node, arguments[data[0]])
                if node.op == "GatherV2":
                    axis = made.node_def.add(name=f"{node.name}_axis")
                    replace_node(axis, "Const", (), {"dtype": tf.int32, "value": np.int32(0)})
                    places = [f"{axis.name}:output:0" if source == _AXIS else source for source in node.input]
                    replace_node(node, "GatherV2", places, {n: _copy(v) for n, v in node.attr.items()})
                elif before == "ReadVariableOp":
                    renamed[f"{node.name}:value:0"] = f"{node.name}:output:0"
        for node in made.node_def:
            for position, source in enumerate(node.input):
                node.input[position] = renamed.get(source, source)
        for output in made.signature.output_arg:
            source = made.ret[output.name]
            made.ret[output.name] = renamed.get(source, source)
            if output.type == _RESOURCE and source in arguments:
                output.type = arguments[source].as_datatype_enum
                output.ClearField("handle_data")
        return made.signature.name
