"""A graph while its control flow is converted: its nodes by name, and its library, which grows.

Inside a draft an input is always written ``node:output`` or ``^node``. A node may read a tensor whose node is not in
the graph, because it is mapped in when the graph is imported (variables, inputs).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.endpoints import dtype_of, producer, tensor_name, types_of
from engine import tensorflow_private
from engine.graphs.graph_variables import HOLDERS
from engine.graphs.op_kinds import READS, called_functions
from engine.graphs.reach import reach

ARGUMENT = "_Arg"  # the operation of an argument of a function, while the function is a draft
# Stateful operations that may run more often, or in another order, without a difference.
_REPEATABLE = READS | {"Assert", "CheckNumerics", "LookupTableFindV2", "LookupTableSizeV2"}
_MOST_COPIED = 64  # numbers in a constant that is copied into a function instead of passed to it
_MOST_INPUTS = 1 << 20  # per operation

Nodes = dict[str, Any]


class Draft:
    """A GraphDef that is being converted. ``keep`` are tensors, or operations, whose names must stay."""

    def __init__(self, definition: Any, *, keep: Collection[str], where: str) -> None:
        self.where = where
        self.keep = {tensor_name(name) for name in keep}
        self.nodes: Nodes = {}
        for original in definition.node:
            node = tf.compat.v1.NodeDef()
            node.CopyFrom(original)
            self.nodes[node.name] = node
        if len(self.nodes) < len(definition.node):
            raise GraphError(f"{where}: two nodes have the same name; the file is damaged")
        for node in self.nodes.values():  # what is mapped in is there already
            texts = [tensor_name(text) if text[:1] != "^" else text for text in node.input]
            node.input[:] = [text for text in texts if text[:1] != "^" or text[1:] in self.nodes]
        self.library = {function.signature.name: function for function in definition.library.function}
        self.constants: set[str] = set()  # made here; they belong to no loop and no branch, and are copied where needed
        self.depth = 0  # of the branches that are being converted
        self._versions = definition.versions
        self._names = set(self.nodes) | set(self.library)
        self._argument = "argument"
        while any(re.fullmatch(rf"{self._argument}\d+", name) for name in self.nodes):
            self._argument += "_"
        self._outside: dict[str, tf.DType] = {}

    def definition(self) -> Any:
        """Returns the GraphDef."""
        made = tf.compat.v1.GraphDef(versions=self._versions)
        for node in self.nodes.values():
            copy = made.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [text.removesuffix(":0") for text in node.input]
            _drop_attributes(copy)
        made.library.function.extend(self.library[name] for name in self.called())
        return made

    def check(self) -> None:
        """Raises GraphError if a node has another number of inputs than its operation, or reads what no node returns."""
        counts: dict[str, int] = {}
        for node in self.nodes.values():
            data = data_inputs(node)
            expected = len(self.input_types(node))
            if find_signature(node, self.library) is not None and len(data) != expected:
                raise self.refusal(node, f"it has {len(data)} inputs, expected {expected}; the graph is damaged")
            for text in data:
                name, _, index = text.rpartition(":")
                if ":" in name or name.startswith("^"):
                    raise self.refusal(node, f"its input {text} is not the name of a tensor; the graph is damaged")
                source = self.nodes.get(name)
                if source is not None and find_signature(source, self.library) is not None:
                    count = counts.setdefault(name, len(types_of(source, self.library)))
                    if int(index) >= count:
                        raise self.refusal(node, f"its input {text} does not exist; the graph is damaged")

    def called(self) -> list[str]:
        """Returns the functions of the library that the nodes call, also through others."""

        def inner(nodes: Iterable[Any]) -> list[str]:
            return [name for node in nodes for name in (node.op, *called_functions(node)) if name in self.library]

        return list(reach(inner(self.nodes.values()), lambda name: inner(self.library[name].node_def)))

    def prune(self) -> None:
        """Removes the nodes that what is kept does not need."""
        kept = [producer(name) for name in self.keep if producer(name) in self.nodes]
        needed = reach(kept, self.producers)
        self.nodes = {name: node for name, node in self.nodes.items() if name in needed}

    def producers(self, name: str) -> list[str]:
        """Returns the nodes that a node of the graph waits for."""
        return [producer(text) for text in self.nodes[name].input if producer(text) in self.nodes]

    def readers(self) -> dict[str, list[Any]]:
        """Returns node -> the nodes that read one of its outputs or wait for it."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes.values():
            for name in dict.fromkeys(producer(text) for text in node.input):
                found.setdefault(name, []).append(node)
        return found

    def refusal(self, node: Any, why: str) -> GraphError:
        """Returns the error that says why a node cannot be converted."""
        return GraphError(f"{self.where}: {node.name} ({node.op}): {why}")

    def new_name(self, stem: str) -> str:
        """Returns a name that no node and no function has."""
        name, number = stem, 0
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name

    def argument(self, index: int) -> str:
        """Returns the name of an argument of a function."""
        return f"{self._argument}{index}"

    def add_constant(self, stem: str, value: Any, dtype: tf.DType) -> str:
        """Adds a constant that is copied wherever it is needed; returns its tensor."""
        node = make_constant(self.new_name(stem), value, dtype)
        self.nodes[node.name] = node
        self.constants.add(node.name)
        return f"{node.name}:0"

    def follow_identities(self, nodes: Mapping[str, Any], tensor: str, *, waiting: bool = False) -> str:
        """Returns the tensor that a tensor is equal to, through identities that are not kept.

        They may wait for something else only if ``waiting``.
        """
        while tensor not in self.keep:
            node = nodes.get(producer(tensor))
            if node is None or node.op != "Identity" or (len(node.input) > 1 and not waiting):
                break
            tensor = node.input[0]
        return tensor

    def is_copied(self, nodes: Mapping[str, Any], tensor: str) -> bool:
        """Whether a tensor is a small constant, which a function holds itself, so that its value stays known."""
        node = nodes.get(producer(tensor))
        if node is None or node.op != "Const" or tensor in self.keep:
            return False
        dims = [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
        return node.name in self.constants or (not node.input and math.prod(dims) <= _MOST_COPIED)

    def type_of(self, tensor: str, nodes: Mapping[str, Any] | None = None) -> tf.DType:
        """Returns the dtype of a tensor; of one whose node is not in the graph, what its readers expect."""
        nodes = self.nodes if nodes is None else nodes
        name, _, index = tensor.rpartition(":")
        if name in nodes:
            types = types_of(nodes[name], self.library)
            if int(index) >= len(types):
                raise self.refusal(nodes[name], f"it has no output {index}; the graph is damaged")
            return types[int(index)]
        if tensor not in self._outside:
            for node in self.nodes.values():
                data = [text for text in node.input if not text.startswith("^")]
                for text, dtype in zip(data, self.input_types(node), strict=False):
                    if text not in self._outside and producer(text) not in self.nodes:
                        self._outside[text] = dtype
        if tensor not in self._outside:
            raise GraphError(f"{self.where}: the dtype of {tensor} is not known")
        return self._outside[tensor]

    def input_types(self, node: Any) -> list[tf.DType]:
        """Returns the dtypes that a node expects of its inputs."""
        signature = find_signature(node, self.library)
        return [dtype for each in (signature.input_arg if signature else ()) for dtype in _expand(each, node)]

    def is_stateful(self, node: Any) -> bool:
        """Whether an operation is registered as stateful, or calls a function that is."""
        signature = find_signature(node, self.library)
        return node.op != ARGUMENT and (signature is None or signature.is_stateful)

    def has_effect(self, node: Any) -> bool:
        """Whether an operation may do anything besides computing its outputs."""
        return self.is_stateful(node) and node.op not in READS and node.op not in HOLDERS

    def is_repeatable(self, node: Any) -> bool:
        """Whether running an operation twice is the same as running it once."""
        return not self.is_stateful(node) or node.op in _REPEATABLE

    def check_movable(self, node: Any) -> None:
        """Raises GraphError if a node cannot be in a function."""
        signature = tensorflow_private.op_definition(node.op)
        if node.op in HOLDERS:
            raise self.refusal(node, "a variable that is made in a loop or a branch cannot be converted")
        if signature is not None and any(each.is_ref for each in signature.input_arg):
            raise self.refusal(
                node, "it changes a reference variable in a loop or a branch; name outputs that do not need it"
            )

    def add_function(
        self, stem: str, nodes: Mapping[str, Any], types: Sequence[tf.DType], results: Sequence[str]
    ) -> str:
        """Adds a function to the library: its nodes, the dtypes of its arguments, and its results. Returns its name."""
        made = tf.compat.v1.GraphDef().library.function.add()
        made.signature.name = self.new_name(re.sub(r"\W", "_", stem))
        for index, dtype in enumerate(types):
            made.signature.input_arg.add(name=self.argument(index), type=dtype.as_datatype_enum)

        def text(tensor: str) -> str:
            name, _, index = tensor.rpartition(":")
            return (
                name if nodes[name].op == ARGUMENT else f"{name}:{output_names(nodes[name], self.library)[int(index)]}"
            )

        for index, tensor in enumerate(results):
            dtype = self.type_of(tensor, nodes)
            made.signature.output_arg.add(name=f"result{index}", type=dtype.as_datatype_enum)
            made.ret[f"result{index}"] = text(tensor)
        for node in nodes.values():
            if node.op == ARGUMENT:
                continue
            copy = made.node_def.add()
            copy.CopyFrom(node)
            copy.input[:] = [each if each.startswith("^") else text(each) for each in node.input]
            _drop_attributes(copy)
            made.signature.is_stateful |= self.is_stateful(node)
        self.library[made.signature.name] = made
        return made.signature.name


def find_signature(node: Any, library: Mapping[str, Any]) -> Any:
    """Returns the OpDef of a node, which may call a function; None for an unknown operation."""
    return library[node.op].signature if node.op in library else tensorflow_private.op_definition(node.op)


def output_names(node: Any, library: Mapping[str, Any]) -> list[str]:
    """Returns the outputs of a node as functions name them: ``output:0``, or ``output:1`` in a list."""
    signature = find_signature(node, library)
    found: list[str] = []
    for each in signature.output_arg if signature else ():
        found += [f"{each.name}:{index}" for index in range(len(_expand(each, node)))]
    return found


def make_node(name: str, op: str, inputs: Iterable[str], **attributes: Any) -> Any:
    """Returns a NodeDef; an attribute is a dtype, a list of dtypes, a whole number, a truth value or an AttrValue."""
    node = tf.compat.v1.NodeDef(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        if isinstance(value, tf.DType):
            node.attr[key].type = value.as_datatype_enum
        elif isinstance(value, bool):
            node.attr[key].b = value
        elif isinstance(value, int):
            node.attr[key].i = value
        elif isinstance(value, list):
            node.attr[key].list.type.extend(dtype.as_datatype_enum for dtype in value)
        else:
            node.attr[key].CopyFrom(value)
    return node


def call_function(name: str) -> Any:
    """Returns the AttrValue that names a function."""
    value = tf.compat.v1.AttrValue()
    value.func.name = name
    return value


def data_inputs(node: Any) -> list[str]:
    """Returns the inputs of a node that carry data."""
    return [text for text in node.input if not text.startswith("^")]


def control_inputs(node: Any) -> list[str]:
    """Returns the inputs of a node that only make it wait, with their ``^``."""
    return [text for text in node.input if text.startswith("^")]


def make_constant(name: str, value: Any, dtype: tf.DType) -> Any:
    """Returns a Const."""
    proto = tf.compat.v1.AttrValue(tensor=tf.make_tensor_proto(value, dtype))
    return make_node(name, "Const", [], dtype=dtype, value=proto)


def _drop_attributes(node: Any) -> None:
    """Removes what names nodes or shapes that are gone, and attributes without a value (reading one makes it)."""
    for name in [name for name, value in node.attr.items() if value.WhichOneof("value") is None]:
        del node.attr[name]
    for name in ("_class", "_output_shapes"):
        node.attr.pop(name, None)


def _expand(argument: Any, node: Any) -> list[tf.DType]:
    """Returns the dtypes of an argument of an operation, which may be a list, at a node."""
    if argument.type_list_attr:
        return [dtype_of(each) for each in node.attr[argument.type_list_attr].list.type]
    number = argument.type or node.attr[argument.type_attr].type
    if not number:
        found = tensorflow_private.op_definition(node.op)
        number = next((each.default_value.type for each in found.attr if each.name == argument.type_attr), 0)
    count = int(node.attr[argument.number_attr].i) if argument.number_attr else 1
    if count > _MOST_INPUTS:
        raise GraphError(f"{node.name} ({node.op}) declares {count:,} inputs or outputs; the graph is damaged")
    return [dtype_of(number)] * count
