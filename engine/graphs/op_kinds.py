"""What an operation does besides computing: it may read, write, draw random numbers, assert or print.

The frost line, the micro-batches and the audit all ask here. An operation that takes a variable by handle or reference
is assumed to write it unless it is known only to read, so that an unknown operation is never missed. A call does
whatever the library functions that it calls do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.graph_variables import HOLDERS

# Operations that take a variable by reference or handle and do not change it.
READS = frozenset(
    ["DebugGradientRefIdentity", "DisableCopyOnRead", "IsVariableInitialized", "ReadVariableOp",
     "ReadVariableXlaSplitND", "RefEnter", "RefExit", "RefIdentity", "RefMerge", "RefNextIteration", "RefSelect",
     "RefSwitch", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp", "VariableShape", "_ReadVariablesOp"]
)  # fmt: skip
# Operations that take the handle of a table and do not change the table.
_LOOKUPS = frozenset(["LookupTableFind", "LookupTableFindV2", "LookupTableSizeV2"])
_CALLS = frozenset(["Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"])
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


def is_handle(tensor: Any) -> bool:
    """Whether a tensor stands for a variable (or another resource), not for a value."""
    return bool(tensor.dtype == tf.resource or tensor.dtype != tensor.dtype.base_dtype)


class OpKinds:
    """What the operations of one graph (also of a function) do, either themselves or in library functions they call."""

    def __init__(self, graph: Any) -> None:
        self._library = {function.signature.name: function for function in graph.as_graph_def().library.function}

    def written(self, op: Any) -> list[Any]:
        """Returns those inputs of an operation, handles or references, that it writes to."""
        given = [tensor for tensor in op.inputs if is_handle(tensor)]
        if not given or op.type in READS or op.type in _LOOKUPS:
            return []
        handles = [tensor for tensor in given if tensor.dtype == tf.resource]
        arguments = zip(op.op_def.input_arg, op.inputs, strict=False)  # a list follows the references
        references = [tensor for argument, tensor in arguments if argument.is_ref]
        if not any(True for _ in _functions(op.node_def)):
            return references + (handles if op.type not in _HARMLESS and op.op_def.is_stateful else [])
        return handles if self._calls(op, _node_writes) else []

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
        if any(True for _ in _functions(op.node_def)):
            return self._calls(op, _node_has_unknown_effect)
        return op.type not in _HARMLESS

    def has_effect(self, op: Any) -> bool:
        """Whether an operation has an effect that must not be lost when the graph is rewritten."""
        return bool(self.written(op)) or self.asserts_or_prints(op) or self.has_other_effect(op)

    def _calls(self, op: Any, rule: Callable[[Any], bool]) -> bool:
        return any(self._has(name, rule, set()) for name in _functions(op.node_def))

    def _has(self, name: str, rule: Callable[[Any], bool], seen: set[str]) -> bool:
        """Whether the rule holds for a node of a library function or of the functions that it calls."""
        if name in seen or name not in self._library:
            return False
        seen.add(name)
        nodes = self._library[name].node_def
        return any(rule(n) or any(self._has(f, rule, seen) for f in _functions(n)) for n in nodes)


def _functions(node: Any) -> Iterator[str]:
    """The names of the library functions that a node runs."""
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
