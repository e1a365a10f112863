"""The part of a traced function above the frost line, as a function of the tensors that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.frostline.analysis import Analysis, Crossing
from engine.graphs import dataflow
from engine.training.microbatch import MicroBatch

# ``id`` of a tensor of a graph -> the number of the crossing tensor that it is, and how it would cross there
Same = dict[int, tuple[int, Crossing]]


@dataclass(frozen=True)
class FrostTensor:
    """A tensor at the frost line.

    Attributes:
        key: its name in a batch.
        name: in the traced graph.
        shape: of one example.
        dtype: that the step computes in.
        after: path of the variable read last before it; "" when there is none.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: tf.DType
    after: str

    @property
    def bytes(self) -> int:
        """Of one example."""
        size = int(self.dtype.size)
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Suffix:
    """What is above a line.

    Attributes:
        function: concrete; as the whole one, its batch with the tensors in place of the images.
        weights: of a micro-batch: term -> the sum of its weights in the function's graph, or None.
        ops: name of an operation of the whole -> its copy.
    """

    function: Any
    weights: Mapping[str, Any]
    ops: Mapping[str, Any]


def suffix_of(
    analysis: Analysis,
    tensors: Sequence[FrostTensor],
    same: Same,
    *,
    without: set[Any],
    micro: MicroBatch | None = None,
) -> Suffix:
    """The part above the line as a function of its own.

    Args:
        analysis: of the function that is cut.
        tensors: what crosses.
        same: which tensors of the graph they are.
        without: operations that are not to be copied.
        micro: where the function is a micro-batch's.

    Raises:
        ValueError: the part above needs one of ``without``.
    """
    outputs = analysis.graph.structured_outputs
    flat = tf.nest.flatten(outputs)
    weights = {} if micro is None else {name: weight for name, weight in micro.weights.items() if weight is not None}
    kept: dict[str, Any] = {}

    def suffix(batch: Mapping[str, Any], *others: Any) -> Any:
        feeds = dataflow.outside(analysis.graph) | feeds_of(tensors, same, batch)
        feeds |= {id(analysis.inputs[name]): value for name, value in batch.items() if name in analysis.inputs}
        feeds |= {id(placeholder): value for placeholder, value in zip(analysis.others, others, strict=True)}
        count = tf.shape(batch[tensors[0].key])[0]
        feeds |= {id(tensor): value for tensor, value in analysis.shape_values(count, without)}
        found = dataflow.copy(
            [*flat, *weights.values()], feeds, effects=analysis.effects(), without=without, name="suffix"
        )
        kept.update(zip(weights, found[len(flat) :], strict=True))
        return tf.nest.pack_sequence_as(outputs, found[: len(flat)])

    batch = {n: tf.TensorSpec(p.shape, p.dtype, name=n) for n, p in analysis.inputs.items() if p is not analysis.images}
    batch |= {t.key: tf.TensorSpec([None, *t.shape], t.dtype, name=t.key) for t in tensors}
    scalars = [tf.TensorSpec(p.shape, p.dtype, name=p.op.name) for p in analysis.others]
    function = tf.function(suffix, autograph=False).get_concrete_function(batch, *scalars)
    ops = {op.name.removeprefix("suffix/"): op for op in function.graph.get_operations()}
    named = {} if micro is None else {name: kept.get(name) for name in micro.weights}
    return Suffix(function, named, ops)


def feeds_of(tensors: Sequence[FrostTensor], same: Same, values: Mapping[str, Any]) -> dict[int, Any]:
    """``id`` of a tensor -> what is given for it, in the shape that it has in its graph."""
    return {key: reshaped(values[tensors[number].key], c.own) for key, (number, c) in same.items()}


def reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """An array or tensor as [B, *shape]."""
    if tuple(value.shape[1:]) == shape:
        return value
    return value.reshape(-1, *shape) if isinstance(value, np.ndarray) else tf.reshape(value, [-1, *shape])
