"""The kinds of losses: what the outputs of a network and the labels of examples make of each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from engine.training.loss_names import LossError


class Values(NamedTuple):
    """What a kind of loss makes of a batch.

    Attributes:
        values: the loss of each example, [B].
        weights: the weight of each example, [B], which depends on this example alone; None for weights of 1.
        metrics: by name, values [B] and weights [B] or None, which are averaged like the loss but have no gradient.
    """

    values: Any
    weights: Any
    metrics: Mapping[str, tuple[Any, Any]] = {}


class LossKind(Protocol):
    """Computes the loss of each example. It may take further options by keyword.

    Args:
        outputs: what the network returns for this task, in at least float32, [B, ...].
        labels: the labels of the task, [B, ...]. Those of examples of weight 0 may be anything, NaN included.
        weights: the weights of the examples, [B]; None for weights of 1.
    """

    def __call__(self, outputs: Any, labels: Any, weights: Any, /, *, label_smoothing: float = 0.0) -> Values: ...


def use_present(labels: Any, weights: Any) -> Any:
    """Replaces labels of weight 0 by 0: a missing label may be NaN, which would make the gradient NaN."""
    labels = tf.convert_to_tensor(labels)
    if weights is None or not labels.dtype.is_floating or len(weights.shape) != 1:
        return labels
    present = tf.reshape(tf.convert_to_tensor(weights) != 0, [-1] + [1] * (labels.shape.rank - 1))
    return tf.where(present, labels, tf.zeros([], labels.dtype))


def compute_softmax(logits: Any, labels: Any, weights: Any, *, label_smoothing: float = 0.0) -> Values:
    """The cross entropy of C classes: logits [B, C], labels int [B]."""
    labels = use_present(labels, weights)
    classes = logits.shape[-1]
    if logits.shape.rank != 2 or classes < 2:
        raise LossError(f"loss=softmax: the model's outputs have shape {logits.shape}; expected [B, classes >= 2]")
    if labels.shape.rank not in (1, None):
        raise LossError(
            f"loss=softmax: labels have shape {labels.shape}; expected [B], the number of a class for each example "
            "(tf.argmax of one-hot labels, axis=-1)"
        )
    labels = tf.cast(labels, tf.int32)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if label_smoothing:
        spread = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        values = (1.0 - label_smoothing) * values + label_smoothing * spread
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
    return Values(values, weights, {"accuracy": (tf.cast(hits, logits.dtype), weights)})


def compute_sigmoid(logits: Any, labels: Any, weights: Any, *, label_smoothing: float = 0.0) -> Values:
    """The mean cross entropy of labels of which each is 0 or 1: logits [B, C], labels [B, C], or [B] for one."""
    labels = use_present(labels, weights)
    targets = _as_columns(tf.cast(labels, logits.dtype), logits, "sigmoid")
    smooth = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    values = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=smooth, logits=logits), axis=-1)
    hits = tf.equal(logits > 0, targets > 0.5)
    right = tf.reduce_mean(tf.cast(hits, logits.dtype), axis=-1)
    return Values(values, weights, {"accuracy": (right, weights)})


def compute_mse(outputs: Any, labels: Any, weights: Any, *, label_smoothing: float = 0.0) -> Values:
    """The mean of squared differences: outputs and labels [B, C], or labels [B] for one output."""
    labels = use_present(labels, weights)
    targets = _as_columns(tf.cast(labels, outputs.dtype), outputs, "mse")
    return Values(tf.reduce_mean(tf.square(outputs - targets), axis=-1), weights)


def _as_columns(targets: Any, outputs: Any, kind: str) -> Any:
    if targets.shape.rank == 1:
        targets = targets[:, None]
    if outputs.shape.rank != 2 or targets.shape.rank != 2 or targets.shape[1] != outputs.shape[1]:
        raise LossError(
            f"loss={kind}: labels have shape {targets.shape}, but the model's outputs have {outputs.shape}; "
            "expected one output per label column"
        )
    return targets


KINDS: Mapping[str, LossKind] = {"softmax": compute_softmax, "sigmoid": compute_sigmoid, "mse": compute_mse}
