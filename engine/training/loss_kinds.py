"""The kinds of losses: what the outputs of a network and the labels of examples make of each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from engine.training import centers, dense_losses
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
    """Computes the loss of each example. Its options are keyword arguments (engine.training.loss_names.OPTIONS).

    Args:
        outputs: what the network returns for this task, in at least float32, [B, ...].
        labels: the labels of the task, [B, ...]. Those of examples of weight 0 may be anything, NaN included.
        weights: the weights of the examples, [B]; None for weights of 1.
    """

    def __call__(self, outputs: Any, labels: Any, weights: Any, /, **options: Any) -> Values: ...


def use_present(labels: Any, weights: Any) -> Any:
    """Replaces labels of weight 0 by 0: a missing label may be NaN, which would make the gradient NaN."""
    labels = tf.convert_to_tensor(labels)
    if weights is None or not labels.dtype.is_floating or len(weights.shape) != 1:
        return labels
    present = tf.reshape(tf.convert_to_tensor(weights) != 0, [-1] + [1] * (labels.shape.rank - 1))
    return tf.where(present, labels, tf.zeros([], labels.dtype))


def weigh_classes(weights: Any, labels: Any, class_weights: Sequence[float] | None, dtype: Any) -> Any:
    """The weights of examples, times those of their classes: labels int [B], class weights [C]."""
    if class_weights is None:
        return weights
    own = tf.gather(tf.constant(class_weights, dtype), labels)
    return own if weights is None else own * tf.cast(weights, dtype)


def compute_softmax(
    logits: Any,
    labels: Any,
    weights: Any,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Values:
    """The cross entropy of C classes: logits [B, C], labels int [B]; or that of pixels, [B, height, width, C] and without C."""
    labels = use_present(labels, weights)
    if dense_losses.is_dense(labels):
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "class_weights": class_weights}
        return _of_pixels(logits, labels, weights, *dense_losses.compute_cross_entropy(logits, labels, **options))
    labels = _as_classes(labels, logits, "softmax")
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if label_smoothing:
        spread = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        values = (1.0 - label_smoothing) * values + label_smoothing * spread
    weighed = weigh_classes(weights, labels, class_weights, values.dtype)
    return Values(values, weighed, {"accuracy": (_find_hits(logits, labels), weights)})


def compute_sigmoid(
    logits: Any,
    labels: Any,
    weights: Any,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Values:
    """The mean cross entropy of labels of which each is 0 or 1: logits [B, C], labels [B, C], or [B] for one.

    ``class_weights`` are those of 0 and 1, for one label.
    """
    labels = use_present(labels, weights)
    targets = _as_columns(tf.cast(labels, logits.dtype), logits, "sigmoid")
    smooth = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    values = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=smooth, logits=logits), axis=-1)
    weighed = _weigh_one(weights, targets, class_weights, "sigmoid")
    return Values(values, weighed, {"accuracy": (_find_label_hits(logits, targets), weights)})


def compute_focal(
    logits: Any,
    labels: Any,
    weights: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Sequence[float] | None = None,
) -> Values:
    """The focal loss -(1 - p)^gamma log p of the probability p of the true class (arXiv:1708.02002, equation 4).

    It is for C classes (logits [B, C], labels int [B]), or for labels of which each is 0 or 1 (float [B, C], or [B] for
    logits [B, 1]), of which it takes the mean. With ``alpha``, class 1 of two counts alpha, and class 0 1 - alpha
    (equation 5). With ``gamma`` 0 it is the cross entropy.
    """
    labels = use_present(labels, weights)
    if labels.shape.rank == 1 and logits.shape.rank == 2 and logits.shape[-1] != 1:
        return _focal_of_classes(logits, labels, weights, gamma=gamma, alpha=alpha, class_weights=class_weights)
    targets = _as_columns(tf.cast(labels, logits.dtype), logits, "focal")
    positive, negative = _focus(-logits, gamma), _focus(logits, gamma)  # of a margin of the other class
    if alpha is not None:
        positive, negative = alpha * positive, (1.0 - alpha) * negative
    values = tf.reduce_mean(targets * positive + (1.0 - targets) * negative, axis=-1)
    weighed = _weigh_one(weights, targets, class_weights, "focal")
    return Values(values, weighed, {"accuracy": (_find_label_hits(logits, targets), weights)})


def _focal_of_classes(
    logits: Any, labels: Any, weights: Any, *, gamma: float, alpha: float | None, class_weights: Sequence[float] | None
) -> Values:
    labels, classes = _as_classes(labels, logits, "focal"), logits.shape[-1]
    if alpha is not None and classes != 2:
        raise LossError(
            f"loss=focal: alpha={alpha:g} is the weight of class 1 of two, but there are {classes} classes; class_weights=FILE "
            "gives each its own"
        )
    own = tf.one_hot(labels, classes, on_value=True, off_value=False, dtype=tf.bool)
    others = tf.reduce_logsumexp(tf.where(own, tf.fill([], logits.dtype.min), logits), axis=-1)
    values = _focus(others - tf.gather(logits, labels, batch_dims=1), gamma)
    if alpha is not None:
        values *= tf.gather(tf.constant([1.0 - alpha, alpha], values.dtype), labels)
    weighed = weigh_classes(weights, labels, class_weights, values.dtype)
    return Values(values, weighed, {"accuracy": (_find_hits(logits, labels), weights)})


def _focus(margin: Any, gamma: float) -> Any:
    """-(1 - p)^gamma log p, where p = sigmoid(-margin): no power of 0, whose gradient is not finite for gamma below 1."""
    surprise = tf.math.softplus(margin)  # -log p
    return surprise if gamma == 0 else tf.exp(-gamma * tf.math.softplus(-margin)) * surprise


def compute_mse(outputs: Any, labels: Any, weights: Any) -> Values:
    """The mean of squared differences: outputs and labels [B, C], or labels [B] for one output."""
    labels = use_present(labels, weights)
    targets = _as_columns(tf.cast(labels, outputs.dtype), outputs, "mse")
    return Values(tf.reduce_mean(tf.square(outputs - targets), axis=-1), weights)


def compute_centers(
    outputs: Any, labels: Any, weights: Any, *, size_weight: float = 0.1, offset_weight: float = 1.0
) -> Values:
    """The loss of a centre head: maps [B, h, w, C + 4], and boxes [B, K, 5] (engine.training.centers).

    An example's value is divided by its number of objects, and its weight multiplied by it, so that all examples together are
    divided by all objects, as in the paper.
    """
    found = centers.measure_centers(outputs, use_present(labels, weights))
    objects = centers.count_objects(found.objects)
    counted = objects if weights is None else objects * tf.cast(weights, objects.dtype)
    total = found.heat + size_weight * found.size + offset_weight * found.offset
    parts = {"heat": found.heat, "size": found.size, "offset": found.offset}
    return Values(total / objects, counted, {name: (part / objects, counted) for name, part in parts.items()})


def compute_dice(logits: Any, labels: Any, weights: Any, *, class_weights: Sequence[float] | None = None) -> Values:
    """1 - the soft Dice coefficient of the classes of pixels: logits [B, height, width, C], labels [B, height, width]."""
    labels = tf.convert_to_tensor(labels)
    found = dense_losses.compute_dice(logits, labels, class_weights=class_weights)
    return _of_pixels(logits, labels, weights, *found)


def compute_softmax_and_dice(
    logits: Any,
    labels: Any,
    weights: Any,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Values:
    """The sum of the cross entropy of pixels and of ``compute_dice``, for each example, which weighs what the former does."""
    labels = tf.convert_to_tensor(labels)
    overlaps, _ = dense_losses.compute_dice(logits, labels, class_weights=class_weights)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "class_weights": class_weights}
    values, own = dense_losses.compute_cross_entropy(logits, labels, **options)
    return _of_pixels(logits, labels, weights, values + overlaps, own)


def _of_pixels(logits: Any, labels: Any, weights: Any, values: Any, own: Any) -> Values:
    """The values of a loss of pixels; the weights of examples are their own ones times those given."""
    right, share = dense_losses.compute_accuracy(logits, labels)
    if weights is not None:
        given = tf.cast(weights, own.dtype)
        own, share = own * given, share * given
    return Values(values, own, {"accuracy": (right, share)})


def _find_hits(logits: Any, labels: Any) -> Any:
    return tf.cast(tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels), logits.dtype)


def _find_label_hits(logits: Any, targets: Any) -> Any:
    return tf.reduce_mean(tf.cast(tf.equal(logits > 0, targets > 0.5), logits.dtype), axis=-1)


def _weigh_one(weights: Any, targets: Any, class_weights: Sequence[float] | None, kind: str) -> Any:
    """As ``weigh_classes``, for targets [B, 1] of 0 and 1; LossError if there are several."""
    if class_weights is not None and targets.shape[-1] != 1:
        raise LossError(
            f"loss={kind}: class_weights are the weights of the classes 0 and 1 of one label, but there are {targets.shape[-1]} labels"
        )
    return weigh_classes(weights, tf.cast(targets[:, 0] > 0.5, tf.int32), class_weights, targets.dtype)


def _as_classes(labels: Any, logits: Any, kind: str) -> Any:
    """Labels as int32 [B], the numbers of classes; LossError if these, or the logits [B, C], have another shape."""
    if logits.shape.rank != 2 or logits.shape[-1] < 2:
        raise LossError(f"loss={kind}: the model's outputs have shape {logits.shape}; expected [B, classes >= 2]")
    if labels.shape.rank not in (1, None):
        raise LossError(
            f"loss={kind}: labels have shape {labels.shape}; expected [B], the number of a class for each example "
            "(tf.argmax of one-hot labels, axis=-1)"
        )
    return tf.cast(labels, tf.int32)


def _as_columns(targets: Any, outputs: Any, kind: str) -> Any:
    if targets.shape.rank == 1:
        targets = targets[:, None]
    if outputs.shape.rank != 2 or targets.shape.rank != 2 or targets.shape[1] != outputs.shape[1]:
        raise LossError(
            f"loss={kind}: labels have shape {targets.shape}, but the model's outputs have {outputs.shape}; "
            "expected one output per label column"
        )
    return targets


KINDS: Mapping[str, Callable[..., Values]] = {  # each a LossKind
    "softmax": compute_softmax,
    "sigmoid": compute_sigmoid,
    "mse": compute_mse,
    "focal": compute_focal,
    "dice": compute_dice,
    "softmax+dice": compute_softmax_and_dice,
    "centers": compute_centers,
}
