"""What XLA can compile of a traced function, and what it says of an operation that it cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from engine import tensorflow_private
from engine.graphs import dataflow
from engine.graphs.op_kinds import called_functions, is_random
from engine.graphs.reach import reach
from engine.text import join_some

_LEFT_OUT = frozenset(["NoOp", "Placeholder"])  # they have no kernels, and need none
_OF_CALLS = re.compile(
    r"(StatefulPartitionedCall|PartitionedCall|while|cond|If|While)(_\d+)?|gradient_tape"
)  # scopes, not layers


def find_obstacle(function: Any, *, device: str) -> str | None:
    """Describes the first operation of a concrete function that XLA cannot compile, or not faithfully; None if it has none.

    Operations of the functions that it calls count too, and those that no result needs do not. ``device`` is the kind of
    device, "cpu" or "gpu".
    """
    kernels = f"XLA_{device.upper()}_JIT"
    for node in _nodes(function.graph):
        if is_random(node.op) and not node.op.startswith("Stateful"):
            return f"{_describe(node.op, node.name)} draws random numbers from a generator that XLA does not seed"
        if node.op not in _LEFT_OUT and kernels not in tensorflow_private.kernel_devices(node.op):
            return f"{_describe(node.op, node.name)} cannot be compiled"
    return None


def find_assertions(function: Any) -> str | None:
    """Says which assertions of a concrete function XLA leaves out; None if it has none."""
    found = [_describe(node.op, node.name) for node in _nodes(function.graph) if node.op == "Assert"]
    return f"XLA leaves out what the step asserts: {join_some(found)}" if found else None


def _nodes(graph: Any) -> list[Any]:
    """The nodes of a graph that its results need, and those of the functions that it calls."""
    live = dataflow.ancestors(graph.outputs, ops=graph.control_outputs)
    library = {each.signature.name: each for each in graph.as_graph_def().library.function}
    own = [op.node_def for op in graph.get_operations() if op in live]
    called = reach(_calls(own), lambda name: _calls(library[name].node_def) if name in library else [])
    return [*own, *(node for name in called if name in library for node in library[name].node_def)]


def _calls(nodes: Iterable[Any]) -> list[str]:
    """The names of the library functions that nodes run."""
    return [name for node in nodes for name in called_functions(node)]


def read_error(message: str, graph: Any = None) -> str:
    """What an error of XLA says: the operation of the graph that was compiled, or else its first line."""
    name = re.search(r"\{\{node ([^}\s]+)\}\}|op_name=\"([^\"]+)\"", message)
    kind = re.search(r"No registered '(\w+)' OpKernel|op_type=\"(\w+)\"", message)
    first = message.splitlines()[0] if message else "no reason given"
    if name is None:
        return f"XLA cannot compile the step ({first})"
    place = name[1] or name[2]
    what = (kind[1] or kind[2]) if kind else re.sub(r"_\d+$", "", place.rsplit("/", 1)[-1])
    if not kind and graph is not None:
        what = next((node.op for node in _nodes(graph) if node.name == place), what)
    reason = "" if kind and kind[1] else f" ({first})"
    return f"{_describe(what, place)} cannot be compiled{reason}"


def _describe(kind: str, name: str) -> str:
    """An operation with its layer, which is the scope of its name, or else with its name.

    Example:
        >>> _describe("EagerPyFunc", "functional_1/lambda/EagerPyFunc"), _describe("PyFunc", "PyFunc_3")
        ('the operation EagerPyFunc (layer functional_1/lambda)', 'the operation PyFunc (PyFunc_3)')
    """
    layer = "/".join(part for part in name.split("/")[:-1] if not _OF_CALLS.fullmatch(part))
    return f"the operation {kind} ({f'layer {layer}' if layer else name})"
