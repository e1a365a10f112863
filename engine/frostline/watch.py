"""The frozen output: the output of the frozen part, watched for the same examples at every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from engine.graphs import dataflow
from engine.selection.selection import Selection


def frozen_output_norms(selection: Selection, examples: Any) -> Any | None:
    """The L2 norm of each example at the frozen part's output, [B], in the graph that is being traced.

    ``examples`` is the placeholder of the model's input, or those of its inputs by name. The tensors are those of ``find_frontier`` that depend on a frozen variable. The cut of engine.frostline.search may lie
    elsewhere: it also weighs bytes against recomputation, and looks into the functions of a SavedModel. None if no frozen
    operation of this graph itself lies below the trained part.
    """
    traced = tf.compat.v1.get_default_graph()
    inputs = list(examples.values()) if isinstance(examples, Mapping) else [examples]
    varying = dataflow.captured_handles(traced, [e.variable for e in (*selection.trained, *selection.moving)])
    frozen = dataflow.dependents(traced, dataflow.captured_handles(traced, [e.variable for e in selection.frozen]))
    tensors = find_frontier(traced, varying=varying, inputs=inputs)
    tensors = [t for t in tensors if t.op in frozen and t.shape.rank and t.shape[0] is None]
    if not tensors:
        return None
    rows = [tf.shape(inputs[0])[0], -1]  # a tensor may have those of all positions of an example: [B * T, D]
    squares = [tf.reduce_sum(tf.reshape(tf.square(tf.cast(t, tf.float64)), rows), axis=1) for t in tensors]
    return tf.sqrt(tf.add_n(squares))


def find_frontier(graph: Any, *, varying: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """The tensors that varying operations read and that depend on ``inputs`` but on nothing varying.

    ``varying`` are tensors such as the captured handles of trained variables, ``inputs`` the placeholders of the examples.
    Of several tensors that hold the same bytes in different shapes, the first is returned.
    """
    varying_ops, inputs = dataflow.dependents(graph, varying), list(inputs)
    input_dependent, sources = dataflow.dependents(graph, inputs), {id(tensor) for tensor in inputs}
    found: dict[int, Any] = {}
    for op in graph.get_operations():
        if op not in varying_ops:
            continue
        for tensor in op.inputs:
            invariant = tensor.op not in varying_ops and (tensor.op in input_dependent or id(tensor) in sources)
            if invariant and tensor.dtype.is_floating:
                tensor = _viewed(tensor)
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def _viewed(tensor: Any) -> Any:
    """The tensor whose bytes this one shows in another shape or under another name."""
    while tensor.op.type in ("Reshape", "Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor
