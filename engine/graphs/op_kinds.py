"""What an operation does besides computing: reads, writes, draws random numbers, asserts or prints.

One answer for the frost line, the micro-batches and the audit. An operation that takes a variable by handle or
reference writes it unless it is known only to read, so an operation that is unknown here is never missed. A call
does what the functions of the graph's library do that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.graphs.graph_variables import HOLDERS

# Take a variable by reference or handle, and leave it as it is.
READS = frozenset(
    [
        "DebugGradientRefIdentity",
        "DisableCopyOnRead",
        "IsVariableInitialized",
        "ReadVariableOp",
        "ReadVariableXlaSplitND",
        "RefEnter",
        "RefExit",
        "RefIdentity",
        "RefMerge",
        "RefNextIteration",
        "RefSelect",
        "RefSwitch",
        "ResourceGather",
        "ResourceGatherNd",
        "VarIsInitializedOp",
        "VariableShape",
        "_ReadVariablesOp",
    ]
)
# Take the handle of a table, and leave the table as it is.
_LOOKUPS = frozenset(["LookupTableFind", "LookupTableFindV2", "LookupTableSizeV2"])
_CALLS = frozenset(["Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"])
_SPEAKS = frozenset(["Assert", "Print", "PrintV2"])
# Registered as stateful, but without an effect of their own that a run could lose.
_HARMLESS = _CALLS | HOLDERS | _SPEAKS | frozenset(["NoOp", "Placeholder"])


def is_random(kind: str) -> bool:
    """Whether operations of this type draw random numbers from a state of their own, not from seeds given to them.

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
    """What the operations of one graph do, themselves or in the library functions that they call.

    Args:
        graph: a ``tf.Graph`` or the graph of a function.
    """

    def __init__(self, graph: Any) -> None:
        self._library = {function.signature.name: function for function in graph.as_graph_def().library.function}

    def written(self, op: Any) -> list[Any]:
        """The handles and references among an operation's inputs that it writes to."""
        given = [tensor for tensor in op.inputs if is_handle(tensor)]
        if not given or op.type in READS or op.type in _LOOKUPS:
            return []
        handles = [tensor for tensor in given if tensor.dtype == tf.resource]
        arguments = zip(
            op.op_def.input_arg, op.inputs, strict=False
        )  # an argument that is a list follows the references
        references = [tensor for argument, tensor in arguments if argument.is_ref]
        names = list(_functions(op.node_def))
        if not names:
            return references + (handles if op.type not in _HARMLESS and op.op_def.is_stateful else [])
        return handles if any(self._has(name, _node_writes, set()) for name in names) else []

    def draws(self, op: Any) -> bool:
        """Whether an operation draws random numbers from a state of its own."""
        return is_random(op.type) or self._calls(op, lambda node: is_random(node.op))

    def speaks(self, op: Any) -> bool:
        """Whether an operation asserts or prints: an effect, but none that changes from step to step."""
        return op.type in _SPEAKS or self._calls(op, lambda node: node.op in _SPEAKS)

    def has_other_effect(self, op: Any) -> bool:
        """Whether an operation has an effect other than writing a variable, drawing and speaking."""
        if op.type in READS or op.type in _LOOKUPS or not op.op_def.is_stateful or is_random(op.type):
            return False
        if any(True for _ in _functions(op.node_def)):
            return self._calls(op, _node_has_unknown_effect)
        return op.type not in _HARMLESS

    def has_effect(self, op: Any) -> bool:
        """Whether an operation has an effect that a run of the graph must not lose."""
        return bool(self.written(op)) or self.speaks(op) or self.has_other_effect(op)

    def _calls(self, op: Any, rule: Callable[[Any], bool]) -> bool:
        return any(self._has(name, rule, set()) for name in _functions(op.node_def))

    def _has(self, name: str, rule: Callable[[Any], bool], seen: set[str]) -> bool:
        """Whether a node of a library function, or of those that it calls, is of a kind."""
        if name in seen or name not in self._library:
            return False
        seen.add(name)
        nodes = self._library[name].node_def
        return any(rule(n) or any(self._has(f, rule, seen) for f in _functions(n)) for n in nodes)


def _functions(node: Any) -> Iterator[str]:
    """Library functions that a node runs."""
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
    known = node.op in READS or node.op in _LOOKUPS or node.op in _HARMLESS
    return not known and not is_random(node.op) and _is_stateful(node.op)


def _is_stateful(kind: str) -> bool:
    found = tensorflow_private.op_definition(kind)
    return found is None or found.is_stateful
