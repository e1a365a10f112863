"""The flows of TensorArrays: numbers that operations pass on to be put in order.

An operation reads the state behind its handle, whatever flow it was given. A list has what its own flow brought. Both
are the same if a flow belongs to the array of the handle, and no two operations write from the same flow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compat_v1.graphs.draft import Draft, data_inputs
from compat_v1.graphs.endpoints import producer
from engine.graphs.reach import reach

PASSES = frozenset(["Enter", "Exit", "Identity", "Merge", "NextIteration", "Switch"])
WRITES = frozenset(["Write", "Scatter", "Split", "Unpack"])  # they return a flow
_KINDS = re.compile(
    "TensorArray(|Read|Write|Gather|Scatter|Concat|Split|Size|Close|Pack|Unpack|Grad|GradWithShape)(|V2|V3)"
)


def kind_of(op: str) -> str | None:
    """Returns what an operation does with a TensorArray ("" for creating it); None for other operations."""
    found = _KINDS.fullmatch(op)
    return found.group(1) if found else None


def check_flows(
    draft: Draft, begun: Mapping[str, str], creators: Mapping[str, Sequence[Any]], flows: Mapping[str, None]
) -> None:
    """Raises GraphError if lists would not have what the arrays have.

    Args:
        begun: the tensor that begins a flow -> the node that creates the array.
        creators: operation on an array -> the nodes that may have created the array of its handle.
        flows: all tensors that are flows.
    """
    nodes, readers = draft.nodes, draft.readers()

    def after(tensor: str) -> list[tuple[Any, list[str]]]:
        """Returns the nodes that read a flow, and the flows that they return."""
        found = []
        for node in readers.get(producer(tensor), ()):
            if tensor in node.input and (kind_of(node.op) in WRITES or node.op in PASSES):
                found.append((node, [f"{node.name}:{index}" for index in range(2 if node.op == "Switch" else 1)]))
        return found

    def follow(tensor: str) -> list[str]:
        return [each for _, returned in after(tensor) for each in returned]

    arrays: dict[str, set[str]] = {}
    for first, array in begun.items():
        for tensor in reach([first], follow):
            arrays.setdefault(tensor, set()).add(array)
    for name, created in creators.items():
        node = nodes[name]
        if kind_of(node.op) != "Close" and arrays.get(data_inputs(node)[-1]) != {each.name for each in created}:
            raise draft.refusal(node, "its flow is not that of its TensorArray; name outputs without it")
    before: dict[str, list[str]] = {}
    for tensor in flows:
        for _, returned in after(tensor):
            for each in returned:
                before.setdefault(each, []).append(tensor)
    written = [f"{name}:0" for name, node in nodes.items() if kind_of(node.op) in WRITES]
    leading = reach(written, lambda tensor: before.get(tensor, ()))  # flows that a write returns, or that lead to one
    for tensor in flows:
        ways = [(node, [each for each in returned if each in leading]) for node, returned in after(tensor)]
        ways = [(node, returned) for node, returned in ways if returned]
        used = [each.rpartition(":")[2] for _, returned in ways for each in returned]
        sides = all(node.op == "Switch" for node, _ in ways) and len({node.input[1] for node, _ in ways}) == 1
        if len(ways) > 1 and not (sides and len(set(used)) == len(used)):
            raise draft.refusal(
                ways[1][0], "two operations write to a TensorArray in no order; name outputs without it"
            )
    for tensor in written:
        if not any(tensor in node.input for node in readers.get(producer(tensor), ())):
            raise draft.refusal(
                nodes[producer(tensor)], "nothing reads the flow that it returns; name outputs that do not wait for it"
            )
