"""The features of a network: the tensors at the border below some of its variables, such as those of its head."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine.errors import InputError
from engine.frostline.watch import find_frontier
from engine.graphs import dataflow, tracing
from engine.recipes.predictor import Predictor
from engine.selection.filters import Filter
from engine.selection.selection import matching_paths
from engine.selection.variables import ModelVariables

HEAD = "@head"


def build_features(predictor: Predictor, variables: ModelVariables, above: Filter | str = HEAD) -> Any:
    """A concrete function from prepared images to the tensors that are computed without some variables, and read with them.

    Args:
        above: the variables above the features, as a filter; by default the head, so that the features are its input.

    Raises InputError if the filter matches nothing, or there is nothing below these variables.
    """
    paths = matching_paths(variables, above)
    if not paths:
        raise InputError(f"features_below={str(above)!r}: no variable matches; name those above the features")
    with tracing.inlined():
        traced = predictor.compile(predictor.call)
    traced = tracing.inline_calls(traced)
    graph, given = traced.graph, traced.graph.inputs[: max(1, len(predictor.inputs))]
    handles = dataflow.captured_handles(graph, [entry.variable for entry in variables if entry.path in paths])
    found = [
        tensor
        for tensor in find_frontier(graph, varying=handles, inputs=given)
        if tensor.shape.rank and tensor.shape[0] is None and not any(tensor is each for each in given)
    ]
    if not found:
        raise InputError(
            f"features_below={str(above)!r}: the model computes nothing from its inputs without these variables; name "
            "variables further up, such as @head"
        )
    captured = dataflow.captured_tensors(graph)

    def compute(images: Any) -> list[Any]:
        own = dict(zip(map(id, given), tf.nest.flatten(images), strict=True))
        copied = dataflow.copy_tensors(found, captured | own)
        return [tf.cast(value, tf.float32) if value.dtype.size < 4 else value for value in copied]

    return predictor.compile(compute)
