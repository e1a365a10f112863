"""Dataflow on a ``tf.Graph``: what depends on what, and where the frozen part of a model ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def dependents(graph: Any, sources: Iterable[Any]) -> set[Any]:
    """All operations that depend on one of the source tensors, by data or by control."""
    found: set[Any] = set()
    pending = [op for tensor in sources for op in tensor.consumers()]
    followers: dict[Any, list[Any]] = {}
    for op in graph.get_operations():
        for before in op.control_inputs:
            followers.setdefault(before, []).append(op)
    while pending:
        op = pending.pop()
        if op in found:
            continue
        found.add(op)
        pending.extend(consumer for output in op.outputs for consumer in output.consumers())
        pending.extend(followers.get(op, ()))
    return found


def frontier(graph: Any, *, hot: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """The tensors at the frost line: they depend on ``inputs`` but on nothing hot, and hot ops read them.

    Args:
        hot: source tensors, such as the captured handles of trained variables.
        inputs: placeholders of the examples.
    """
    hot_ops = dependents(graph, hot)
    inputs = list(inputs)
    warm = dependents(graph, inputs)
    sources = {id(tensor) for tensor in inputs}
    found: dict[int, Any] = {}
    for op in graph.get_operations():
        if op not in hot_ops:
            continue
        for tensor in op.inputs:
            cold = tensor.op not in hot_ops and (tensor.op in warm or id(tensor) in sources)
            if cold and tensor.dtype.is_floating:
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def captured_handles(graph: Any, variables: Iterable[Any]) -> list[Any]:
    """The placeholders by which a function graph reads those of the variables that it reads."""
    wanted = {id(variable.handle) for variable in variables}
    return [inner for outer, inner in graph.captures if id(outer) in wanted]


def is_backward(op: Any) -> bool:
    """True for an operation that tf.GradientTape added."""
    return "gradient_tape/" in op.name


def saved_bytes(graph: Any, batch_size: int) -> int:
    """Bytes of forward tensors with a batch axis that the backward pass reads: the activations kept."""
    kept: dict[tuple[int, int], int] = {}
    for op in graph.get_operations():
        if not is_backward(op):
            continue
        for tensor in op.inputs:
            shape = tensor.shape
            if (
                is_backward(tensor.op)
                or shape.rank in (None, 0)
                or shape[0] is not None
                or not tensor.dtype.is_floating
            ):
                continue
            elements = batch_size
            for length in shape[1:]:
                elements *= length or 1
            kept[(id(tensor.op), tensor.value_index)] = elements * tensor.dtype.size
    return sum(kept.values())
