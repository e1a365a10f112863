"""What an operation does besides computing: it may read, write, draw random numbers, assert or print.

The frost line, the micro-batches and the audit all ask here. An operation that takes a variable by handle or reference
is assumed to write it unless it is known only to read, so that an unknown operation is never missed. A call does
whatever the library functions that it calls do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.graph_variables import HOLDERS
from engine.graphs.reach import reach

# Operations that take a variable by reference or handle and do not change it.
READS = frozenset(
    ["DebugGradientRefIdentity", "DisableCopyOnRead", "IsVariableInitialized", "ReadVariableOp",
     "ReadVariableXlaSplitND", "RefEnter", "RefExit", "RefIdentity", "RefMerge", "RefNextIteration", "RefSelect",
     "RefSwitch", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp", "VariableShape", "_ReadVariablesOp"]
)  # fmt: skip
# Operations that take the handle of a table and do not change the table.
_LOOKUPS = frozenset(["LookupTableFind", "LookupTableFindV2", "LookupTableSizeV2"])
_CALLS = frozenset(["Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"])
# The position of the input of a call that becomes the first argument of its functions.
_ARGUMENTS = {"PartitionedCall": 0, "StatefulPartitionedCall": 0, "While": 0, "StatelessWhile": 0, "If": 1,
              "StatelessIf": 1, "Case": 1, "StatelessCase": 1}  # fmt: skip
_MESSAGES = frozenset(["Assert", "Print", "PrintV2"])
# Operations that are registered as stateful but have no effect of their own that could get lost.
_HARMLESS = _CALLS | HOLDERS | _MESSAGES | frozenset(["NoOp", "Placeholder"])


def is_random(kind: str) -> bool:
    """Whether operations of this type draw random numbers from a state of their own, not from an input.

    Example:
        >>> is_random("Multinomial"), is_random("StatelessRandomUniformV2")
        (True, False)
    """
    if kind.startswith("Stateless"):
        return False
    return (
        "Random" in kind
        or "CandidateSampler" in kind
        or kind in ("Multinomial", "ParameterizedTruncatedNormal", "TruncatedNormal", "Skipgram")
        or kind.startswith(
            ("SampleDistortedBoundingBox", "StatefulStandardNormal", "StatefulTruncatedNormal", "StatefulUniform")
        )
    )


def is_product(kind: str) -> bool:
    """Whether operations of this type multiply and add: convolutions and matrix products.

    Example:
        >>> is_product("DepthwiseConv2dNative"), is_product("Mul")
        (True, False)
    """
    return any(word in kind for word in ("Conv", "MatMul", "Einsum"))


def is_handle(tensor: Any) -> bool:
    """Whether a tensor stands for a variable (or another resource), not for a value."""
    return bool(tensor.dtype == tf.resource or tensor.dtype != tensor.dtype.base_dtype)


def handle_sources(handle: Any) -> list[Any]:
    """Returns a handle or reference, and those that it may come from through loops and branches."""
    found = reach([handle.ref()], lambda ref: [source.ref() for source in ref.deref().op.inputs if is_handle(source)])
    return [ref.deref() for ref in found]


class OpKinds:
    """What the operations of one graph (also of a function) do, either themselves or in library functions they call."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._writes: dict[str, set[int]] = {}

    @functools.cached_property
    def _library(self) -> dict[str, Any]:
        return {function.signature.name: function for function in self._graph.as_graph_def().library.function}

    def written(self, op: Any) -> list[Any]:
        """Returns those inputs of an operation, handles or references, that it writes to."""
        given = [tensor for tensor in op.inputs if is_handle(tensor)]
        if not given or op.type in READS or op.type in _LOOKUPS:
            return []
        handles = [tensor for tensor in given if tensor.dtype == tf.resource]
        arguments = zip(op.op_def.input_arg, op.inputs, strict=False)  # a list follows the references
        references = [tensor for argument, tensor in arguments if argument.is_ref]
        if not any(True for _ in called_functions(op.node_def)):
            return references + (handles if op.type not in _HARMLESS and op.op_def.is_stateful else [])
        places = self._written_inputs(op.node_def, len(op.inputs))
        return [tensor for place, tensor in enumerate(op.inputs) if place in places and tensor.dtype == tf.resource]

    def written_captures(self) -> list[Any]:
        """Returns the captured handles, as the graph's placeholders for them, that the graph writes to."""
        captured = {id(inner): inner for _, inner in self._graph.captures if inner.dtype == tf.resource}
        readers = reach(
            [op for inner in captured.values() for op in inner.consumers()],
            lambda op: [reader for output in op.outputs if is_handle(output) for reader in output.consumers()],
        )
        written = {id(source) for op in readers for given in self.written(op) for source in handle_sources(given)}
        return [inner for key, inner in captured.items() if key in written]

    def draws(self, op: Any) -> bool:
        """Whether an operation draws random numbers from a state of its own."""
        return is_random(op.type) or self._calls(op, lambda node: is_random(node.op))

    def asserts_or_prints(self, op: Any) -> bool:
        """Whether an operation asserts or prints, an effect that leaves no state behind."""
        return op.type in _MESSAGES or self._calls(op, lambda node: node.op in _MESSAGES)

    def has_other_effect(self, op: Any) -> bool:
        """Whether an operation has an effect besides writing a variable, drawing, asserting and printing."""
        if op.type in READS or op.type in _LOOKUPS or not op.op_def.is_stateful or is_random(op.type):
            return False
        if any(True for _ in called_functions(op.node_def)):
            return self._calls(op, _node_has_unknown_effect)
        return op.type not in _HARMLESS

    def has_effect(self, op: Any) -> bool:
        """Whether an operation has an effect that must not be lost when the graph is rewritten."""
        return bool(self.written(op)) or self.asserts_or_prints(op) or self.has_other_effect(op)

    def find_holders(self) -> list[Any]:
        """Returns the nodes that hold a variable of their own, in the graph or in a library function that it calls."""
        ops = self._graph.get_operations()
        calls = [name for op in ops if _may_call(op.type) for name in called_functions(op.node_def)]
        names = reach(calls, lambda name: [other for node in self._nodes(name) for other in called_functions(node)])
        inside = [node for name in names for node in self._nodes(name) if node.op in HOLDERS]
        return [op.node_def for op in ops if op.type in HOLDERS] + inside

    def _nodes(self, name: str) -> Iterable[Any]:
        return self._library[name].node_def if name in self._library else ()

    def _written_inputs(self, node: Any, count: int) -> set[int]:
        """The positions among ``count`` inputs of a node that calls functions, of the handles that these write to."""
        names = list(called_functions(node))
        if node.op not in _ARGUMENTS:  # it is not known which input becomes which argument
            return set(range(count)) if any(self._has(name, _node_writes, set()) for name in names) else set()
        first = _ARGUMENTS[node.op]
        return {first + place for name in names for place in self._written_arguments(name)}

    def _written_arguments(self, name: str) -> set[int]:
        """The positions of the arguments of a library function that are handles it writes to."""
        if name in self._writes or name not in self._library:
            return self._writes.get(name, set())
        self._writes[name] = found = set()  # a function that calls itself adds nothing
        function = self._library[name]
        sources = {argument.name: {place} for place, argument in enumerate(function.signature.input_arg)
                   if argument.type == tf.resource.as_datatype_enum}  # fmt: skip
        nodes, before = list(function.node_def), -1
        while before != sum(map(len, sources.values())):  # nodes are in no particular order
            before = sum(map(len, sources.values()))
            for node in nodes:
                if node.op in READS or node.op in _LOOKUPS:
                    continue
                given = [sources.get(text.split(":")[0], set()) for text in node.input if not text.startswith("^")]
                if not (all_given := set().union(*given)):
                    continue
                if any(True for _ in called_functions(node)):
                    places = self._written_inputs(node, len(given))
                    found |= {source for place in places if place < len(given) for source in given[place]}
                elif node.op not in _HARMLESS and (_node_writes(node) or _node_has_unknown_effect(node)):
                    found |= all_given
                sources.setdefault(node.name, set()).update(all_given)
        return found

    def _calls(self, op: Any, rule: Callable[[Any], bool]) -> bool:
        return any(self._has(name, rule, set()) for name in called_functions(op.node_def))

    def _has(self, name: str, rule: Callable[[Any], bool], seen: set[str]) -> bool:
        """Whether the rule holds for a node of a library function or of the functions that it calls."""
        if name in seen or name not in self._library:
            return False
        seen.add(name)
        nodes = self._library[name].node_def
        return any(rule(n) or any(self._has(f, rule, seen) for f in called_functions(n)) for n in nodes)


@functools.cache
def _may_call(kind: str) -> bool:
    """Whether operations of this type run library functions; an unknown type may."""
    found = tensorflow_private.op_definition(kind)
    return found is None or any(attribute.type in ("func", "list(func)") for attribute in found.attr)


def called_functions(node: Any) -> Iterator[str]:
    """Yields the names of the library functions that a node runs."""
    for value in node.attr.values():
        if value.WhichOneof("value") == "func":
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _node_writes(node: Any) -> bool:
    return "Assign" in node.op or node.op.startswith(
        ("ResourceApply", "ResourceSparseApply", "ResourceScatter", "Stateful")
    )


def _node_has_unknown_effect(node: Any) -> bool:
    if node.op in READS or node.op in _LOOKUPS or node.op in _HARMLESS or is_random(node.op):
        return False
    found = tensorflow_private.op_definition(node.op)
    return found is None or found.is_stateful
