"""The nodes and edges of a graph that is read as data, and what the registry of ops says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from engine import tensorflow_private
from engine.errors import InputError
from engine.graphs.reach import reach

RESOURCE = tf.resource.as_datatype_enum


class FlatGraphError(InputError):
    """A graph that contradicts itself: an edge to a missing node, an op with the wrong number of inputs."""


class Tensor(NamedTuple):
    """One output of a node."""

    node: Node
    output: int


class Node:
    """One op.

    Attributes:
        name: unique; ``CALL:NODE`` in the body of a function.
        op: the type of the op; "_Arg", "_Loop" and "_Ret" are arguments and results of bodies and return their input.
        definition: the NodeDef; None for arguments and results.
        inputs, controls: the tensors that the op takes, and the nodes that run before it.
        input_types, output_types: the data types (enums) of inputs and outputs; empty for arguments and results.
        references: the positions of the inputs that it takes by reference.
        stateful: whether the op is registered as stateful.
        known: whether this TensorFlow knows the op.
        body, results: for a call, the nodes that run inside it, and one per output, which others read instead of the call.
    """

    __slots__ = (
        "body", "controls", "definition", "input_types", "inputs", "known", "name", "op", "output_types", "references",
        "results", "stateful",
    )  # fmt: skip

    def __init__(self, name: str, op: str, definition: Any = None) -> None:
        self.name, self.op, self.definition = name, op, definition
        self.inputs: list[Tensor] = []
        self.controls: list[Node] = []
        self.body: list[Node] = []
        self.results: list[Node] = []
        self.input_types: list[int] = []
        self.output_types: list[int] = []
        self.references: frozenset[int] = frozenset()
        self.stateful = False
        self.known = True

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"

    @property
    def passes(self) -> bool:
        """Whether this is an argument or a result, which returns its input."""
        return self.op in ("_Arg", "_Loop", "_Ret")

    def attr(self, name: str) -> Any:
        """An attribute (AttrValue), or None."""
        return self.definition.attr[name] if self.definition is not None and name in self.definition.attr else None


def find_ancestors(roots: Iterable[Node]) -> set[Node]:
    """All nodes that these need by data or control, including the bodies of calls and the nodes themselves."""
    return set(reach(roots, lambda node: [*(tensor.node for tensor in node.inputs), *node.controls, *node.body]))


def find_data_ancestors(tensors: Iterable[Tensor]) -> set[Node]:
    """All nodes from whose values these tensors are computed, including their own."""
    return set(reach([tensor.node for tensor in tensors], lambda node: [tensor.node for tensor in node.inputs]))


def find_argument_names(node: Node) -> Iterator[str]:
    """The registered name of each input, such as "var" or "grad"."""
    signature = tensorflow_private.op_definition(node.op)
    for argument in signature.input_arg if signature is not None else ():
        for _ in find_types(node.definition, signature, [argument])[0]:
            yield argument.name


def find_types(definition: Any, signature: Any, arguments: Iterable[Any]) -> tuple[list[int], list[int]]:
    """The data types of a node's inputs or outputs, and the positions of those that are references."""
    kinds: list[int] = []
    references: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            here = list(_attr(definition, signature, argument.type_list_attr).list.type)
        else:
            count = _attr(definition, signature, argument.number_attr).i if argument.number_attr else 1
            if not 0 <= count <= 1_000_000:
                raise FlatGraphError(f"{definition.name} declares an implausible number of inputs or outputs: {count}")
            kind = argument.type or _attr(definition, signature, argument.type_attr).type
            here = [kind] * count
        if argument.is_ref:
            references.extend(range(len(kinds), len(kinds) + len(here)))
        kinds += here
    return kinds, references


def _attr(definition: Any, signature: Any, name: str) -> Any:
    if name in definition.attr:
        return definition.attr[name]
    for one in signature.attr:
        if one.name == name and one.HasField("default_value"):
            return one.default_value
    raise FlatGraphError(f"{definition.name}: {definition.op} lacks the attribute {name}")
