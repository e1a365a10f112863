"""Builds the suffix: the part of a traced function above the frost line, as a function of the tensors that cross it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.frostline.analysis import Analysis, Crossing
from engine.graphs import dataflow
from engine.training.microbatch import MicroBatch

# ``id`` of a tensor in a graph -> the number of the line's tensor that it equals, and the crossing that it would be there
Same = dict[int, tuple[int, Crossing]]


@dataclass(frozen=True)
class FrostTensor:
    """A tensor at the frost line.

    Attributes:
        key, name: its names in a batch and in the traced graph.
        shape, dtype: the shape for one example, and the type that the step computes in.
        after: the path of the last variable read before it; "" if there is none.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: tf.DType
    after: str

    @property
    def bytes(self) -> int:
        """The size of one example in bytes."""
        return int(self.dtype.size) * math.prod(self.shape)


@dataclass(frozen=True)
class Suffix:
    """The part of a function above a frost line.

    Attributes:
        function: a concrete function like the whole one, whose batch has the line's tensors in place of the images.
        weights: for a micro-batch, term -> the sum of its weights in the function's graph, or None.
        ops: the name of an operation of the whole function -> its copy.
    """

    function: Any
    weights: Mapping[str, Any]
    ops: Mapping[str, Any]


def build_suffix(
    analysis: Analysis,
    tensors: Sequence[FrostTensor],
    same: Same,
    *,
    without: set[Any],
    micro: MicroBatch | None = None,
) -> Suffix:
    """Builds the part above the line as a separate function.

    Args:
        analysis, micro: the analysis of the function that is cut, and the micro-batch if it is that of one.
        tensors, same: the tensors that cross the line, and the tensors of the graph that equal them.
        without: operations that must not be copied; a ValueError is raised if the part above needs one.
    """
    outputs = analysis.graph.structured_outputs
    flat = tf.nest.flatten(outputs)
    weights = {} if micro is None else {name: weight for name, weight in micro.weights.items() if weight is not None}
    kept: dict[str, Any] = {}

    def suffix(batch: Mapping[str, Any], *others: Any) -> Any:
        feeds = dataflow.captured_tensors(analysis.graph) | build_feeds(tensors, same, batch)
        feeds |= {id(analysis.inputs[name]): value for name, value in batch.items() if name in analysis.inputs}
        feeds |= {id(placeholder): value for placeholder, value in zip(analysis.others, others, strict=True)}
        count = tf.shape(batch[tensors[0].key])[0]
        feeds |= {id(tensor): value for tensor, value in analysis.shape_values(count, without)}
        found = dataflow.copy_tensors(
            [*flat, *weights.values()], feeds, effects=analysis.find_effects(), without=without, name="suffix"
        )
        kept.update(zip(weights, found[len(flat) :], strict=True))
        return tf.nest.pack_sequence_as(outputs, found[: len(flat)])

    batch = {n: tf.TensorSpec(p.shape, p.dtype, name=n) for n, p in analysis.other_inputs.items()}
    batch |= {t.key: tf.TensorSpec([None, *t.shape], t.dtype, name=t.key) for t in tensors}
    scalars = [tf.TensorSpec(p.shape, p.dtype, name=p.op.name) for p in analysis.others]
    function = tf.function(suffix, autograph=False).get_concrete_function(batch, *scalars)
    ops = {op.name.removeprefix("suffix/"): op for op in function.graph.get_operations()}
    named = {} if micro is None else {name: kept.get(name) for name in micro.weights}
    return Suffix(function, named, ops)


def build_feeds(tensors: Sequence[FrostTensor], same: Same, values: Mapping[str, Any]) -> dict[int, Any]:
    """``id`` of a tensor in a graph -> the value that replaces it, in the shape that it has there."""
    return {key: reshape_rows(values[tensors[number].key], c.row_shape) for key, (number, c) in same.items()}


def reshape_rows(value: Any, shape: tuple[int, ...]) -> Any:
    """An array or tensor as [B, *shape]."""
    if tuple(value.shape[1:]) == shape:
        return value
    return value.reshape(-1, *shape) if isinstance(value, np.ndarray) else tf.reshape(value, [-1, *shape])
