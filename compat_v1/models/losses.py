"""The loss of an old graph as a loss function of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from compat_v1.models.network import GraphNetwork
from engine.training.loss_names import LossError
from engine.training.losses import Loss, LossFunction
from engine.training.precision import widen


def make_loss(network: GraphNetwork, name: str) -> LossFunction:
    """Makes the loss function of a tensor of the graph: one value for each example [B], or one for the batch.

    A value for the batch is taken for a mean over its examples. Computed as micro-batches, it is the mean of their values,
    weighted by their sizes: the same for a plain mean, but not where the graph chooses examples or divides by weights.
    Raises GraphError if there is no such tensor, or nothing says what the labels are fed to.
    """
    old = network.old
    tensor = old.tensor(name, argument="loss")
    arrays = old.find_arrays(tensor)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        if absent := sorted(set(arrays.values()) - set(batch)):
            raise LossError(f"loss=graph:{name}: it needs batch[{absent[0]}]; the batch has {', '.join(sorted(batch))}")
        given = {array: batch[key] for array, key in arrays.items()}
        value, *outputs = network.compute(
            [tensor], batch["image"], training=training, seeds=seeds, given=given, also=[old.output]
        )
        values, weights = widen(value), batch.get("weight")
        if values.shape.rank == 0:
            if weights is not None:
                raise LossError(
                    f"loss=graph:{name}: it is one value for the whole batch, so examples cannot be weighted; name a tensor with "
                    "one value for each example"
                )
            values = tf.fill(tf.shape(batch["image"])[:1], values)
        elif values.shape.rank != 1:
            raise LossError(
                f"loss=graph:{name}: its shape is {values.shape}; expected one value, or one for each example, [B]"
            )
        metrics = {}
        labels = tf.convert_to_tensor(batch.get("label", 0.0))
        if labels.dtype.is_integer and labels.shape.rank == 1 and outputs[0].shape.rank == 2:
            right = tf.equal(tf.argmax(outputs[0], axis=1), tf.cast(labels, tf.int64))
            metrics["accuracy"] = (tf.cast(right, values.dtype), weights)
        return Loss(terms={"graph": (values, weights)}, metrics=metrics)

    return loss_fn
