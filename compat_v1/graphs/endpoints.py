"""Finds the inputs and outputs of an old graph from its GraphDef alone.

Besides the network, a training graph has labels, losses, gradients, savers and summaries. The input of the network is
the source from which alone something is computed with variables. Its outputs are the floating-point tensors that
depend on no other source and that no other part of the network reads, and the last activations (a softmax, a sigmoid).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from compat_v1.errors import GraphError
from engine import tensorflow_private
from engine.graphs.node_editing import all_nodes as all_nodes
from engine.graphs.node_editing import producer as producer
from engine.graphs.node_editing import tensor_name as tensor_name
from engine.graphs.op_allowlist import VARIABLES
from engine.graphs.reach import reach
from engine.text import nearest

PLACEHOLDERS = ("Placeholder", "PlaceholderV2")  # those that must be fed
_MOST_OUTPUTS = 1 << 20  # per operation
_FED = re.compile(r"Dequeue|IteratorGetNext|ReaderRead|Unstage")
_TRAINING = re.compile(r"(^|/)(gradients(_\d+)?|[^/]*(loss|xentropy)[^/]*)/")  # scopes outside of the network
_ACTIVATIONS = frozenset(["Softmax", "Sigmoid", "LogSoftmax"])
_PASSES = frozenset([
    "Cast", "ExpandDims", "Identity", "Reshape", "Slice", "Squeeze", "StridedSlice", "Transpose",
])  # fmt: skip
_ENDS = re.compile(r"^(Assign|Apply|Resource(Apply|Scatter|Sparse)|Scatter(Add|Sub|Update)|Save|Assert|Print|NoOp)")


def dtype_of(number: int) -> tf.DType:
    """Returns a dtype from its number in a file, without "ref"; raises GraphError if there is no such type."""
    try:
        return tf.as_dtype(number).base_dtype
    except TypeError:
        raise GraphError(
            f"a tensor has the dtype {number}, which TensorFlow does not know; the graph is damaged"
        ) from None


def _may_be_weight(node: Any) -> bool:
    """Whether a node is a constant of floating-point numbers that is not a single one."""
    tensor = node.attr["value"].tensor if node.op == "Const" else None
    return tensor is not None and dtype_of(tensor.dtype).is_floating and len(tensor.tensor_shape.dim) > 0


def types_of(node: Any, functions: Mapping[str, Any]) -> list[tf.DType]:
    """Returns the dtypes of a node's outputs, without "ref"; [] for an unknown operation."""
    definition = tensorflow_private.op_definition(node.op)
    if definition is None and node.op in functions:
        definition = functions[node.op].signature
    found: list[tf.DType] = []
    for output in definition.output_arg if definition is not None else ():
        listed = node.attr[output.type_list_attr].list.type if output.type_list_attr in node.attr else ()
        if output.type_list_attr:
            found += [dtype_of(each) for each in listed]
            continue
        number = output.type or (node.attr[output.type_attr].type if output.type_attr in node.attr else 0)
        if not number:
            number = next((a.default_value.type for a in definition.attr if a.name == output.type_attr), 0)
        repeats = node.attr[output.number_attr].i if output.number_attr in node.attr else 1
        if repeats > _MOST_OUTPUTS:
            raise GraphError(f"{node.name} ({node.op}) declares {repeats:,} outputs; the graph is damaged")
        found += [dtype_of(number) if number else tf.variant] * int(repeats)
    return found


def shape_of(node: Any) -> tuple[int | None, ...] | None:
    """Returns the shape of a placeholder or variable in the graph; None where the rank is unknown."""
    if "shape" not in node.attr or node.attr["shape"].shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in node.attr["shape"].shape.dim)


class Graph:
    """A GraphDef with its nodes and library functions by name, and the readers of each node.

    ``versions`` are those of TensorFlow that wrote the graph and can read it; ``where`` is the file, for messages.
    """

    def __init__(self, definition: Any, *, where: str) -> None:
        self.where = where
        self.versions = definition.versions
        self.nodes = {node.name: node for node in definition.node}
        if len(self.nodes) < len(definition.node):
            raise GraphError(f"{where}: two nodes have the same name; the file is damaged")
        self.functions = {function.signature.name: function for function in definition.library.function}
        self._readers: dict[str, list[str]] = {}
        self._all_readers: dict[str, list[str]] = {}
        for node in definition.node:
            for name in dict.fromkeys(node.input):
                self._all_readers.setdefault(producer(name), []).append(node.name)
                if not name.startswith("^"):
                    self._readers.setdefault(producer(name), []).append(node.name)

    def tensor(self, name: str, *, argument: str) -> str:
        """Returns the full name of a tensor; raises GraphError (with the nearest) if the graph has none."""
        full = tensor_name(name)
        node = self.nodes.get(producer(full))
        if node is None:
            raise GraphError(
                f"{argument}={name}: {self.where} has no operation {producer(full)}"
                + nearest(producer(full), list(self.nodes))
            )
        count = len(types_of(node, self.functions))
        if not count and node.op not in self.functions and tensorflow_private.op_definition(node.op) is None:
            raise GraphError(
                f"{argument}={name}: TensorFlow does not know the operation {node.op}; name a tensor that is computed from it"
            )
        if int(full.rpartition(":")[2]) >= count:
            raise GraphError(f"{argument}={name}: the operation {node.name} ({node.op}) has {count} outputs")
        return full

    def type_of(self, name: str) -> tf.DType:
        """Returns the dtype of a tensor, given its full name."""
        return types_of(self.nodes[producer(name)], self.functions)[int(name.rpartition(":")[2])]

    def needed(self, outputs: Iterable[str], cut: Iterable[str] = (), *, control: bool = True) -> set[str]:
        """Returns the nodes that the tensors need; the traversal stops at the tensors in ``cut``."""
        ends = set(cut)

        def producers(names: Iterable[str]) -> list[str]:
            data = (name for name in names if control or not name.startswith("^"))
            return [producer(name) for name in data if tensor_name(name) not in ends and producer(name) in self.nodes]

        return set(reach(producers(outputs), lambda name: producers(self.nodes[name].input)))

    def sources(self, names: Iterable[str]) -> list[str]:
        """Returns the nodes among these that get data from outside: placeholders, and readers of queues and iterators."""
        wanted = set(names)
        return [
            n for n, node in self.nodes.items() if n in wanted and (node.op in PLACEHOLDERS or _FED.search(node.op))
        ]

    def dependents(self, names: Iterable[str], *, control: bool) -> set[str]:
        """Returns the nodes and all that depend on one of them by data, or by data and control."""
        readers = self._all_readers if control else self._readers
        return set(reach(names, lambda name: readers.get(name, ())))

    def find_outputs(self, inputs: Sequence[str], fixed: Iterable[str]) -> tuple[list[str], list[str]]:
        """Finds candidates for (inputs, outputs) of a network that depends on its inputs alone.

        Without ``inputs``, it finds the one source that is read together with variables. ``fixed`` are the nodes that
        have a fixed value, such as ``is_training``.
        """
        fixed = set(fixed)
        free = [name for name in self.sources(self.nodes) if name not in fixed and not self._is_switch(name)]
        weights = [name for name, node in self.nodes.items() if node.op in VARIABLES]
        weights = weights or [name for name, node in self.nodes.items() if _may_be_weight(node)]  # a frozen graph
        weighted = self.dependents(weights, control=False)
        training = {name for name in self.nodes if _TRAINING.search(name)}

        def ends(chosen: Sequence[str]) -> list[str]:
            """Finds the outputs of the network that depends on the chosen nodes and on no other source."""
            others = [name for name in free if name not in self.needed(chosen)]
            inside = weighted - training - self.dependents(others, control=True)
            within = inside & self.dependents(chosen or weights, control=False)
            found = self._ends(within)
            return found + [name for name in self._predictions(within, weighted, found) if name not in found]

        chosen = [producer(name) for name in inputs]
        if not chosen and free:
            chosen = [name for name in free if ends([name])]
            if len(chosen) != 1:
                return [f"{name}:0" for name in chosen or free], []
        return list(inputs) or [f"{name}:0" for name in chosen], ends(chosen)

    def _ends(self, inside: set[str]) -> list[str]:
        """Returns the floating-point tensors that no other of the nodes reads; if nothing at all reads some, only those."""
        found: list[str] = []
        unread: list[str] = []
        for name in self.nodes:
            op = self.nodes[name].op
            if name not in inside or _ENDS.match(op) or op in VARIABLES or op == "ReadVariableOp":
                continue
            types = types_of(self.nodes[name], self.functions)
            if not any(reader in inside for reader in self._readers.get(name, ())) and types and types[0].is_floating:
                found.append(f"{name}:0")
                if all(_TRAINING.search(reader) for reader in self._readers.get(name, ())):
                    unread.append(f"{name}:0")
        return unread or found

    def _predictions(self, inside: set[str], weighted: set[str], ends: Sequence[str]) -> list[str]:
        """Returns activations such as a softmax behind which there are no more weights, unless an end only passes one on.

        A loss written by hand takes their logarithm, and a prediction their largest entry; both hide what the network
        computes.
        """
        found: list[str] = []
        for name, node in self.nodes.items():
            if name not in inside or node.op not in _ACTIVATIONS:
                continue
            below = self.dependents([name], control=False)
            others = (
                producer(tensor)
                for reader in (below & inside) - {name}
                for tensor in self.nodes[reader].input
                if not tensor.startswith("^")
            )
            if any(other in weighted and other not in below for other in others):
                continue

            def passed(name: str) -> list[str]:
                return [each for each in self._readers.get(name, ()) if self.nodes[each].op in _PASSES]

            passed_on: dict[str, None] = reach([name], passed)
            if not any(producer(end) in passed_on for end in ends):
                found.append(f"{name}:0")
        return found

    def _is_switch(self, name: str) -> bool:
        """Whether a source is a switch such as ``is_training`` and not data."""
        types = types_of(self.nodes[name], self.functions)
        return bool(types) and types[0] == tf.bool
