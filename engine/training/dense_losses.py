"""Losses of a class for each pixel: cross-entropy, and the soft Dice coefficient.

An example's value is the weighted mean over its pixels, and its weight the sum of the weights of its pixels over their
number. So the weighted mean over examples of one size is that over all pixels, however a step is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from engine.data.part import IGNORED
from engine.training.loss_names import LossError

_SMOOTH = 1e-6  # pixels: keeps the gradient of Dice finite


def is_dense(labels: Any) -> bool:
    """Whether labels are a class for each pixel, [B, height, width]."""
    return labels.shape.rank == 3


def check_dense(outputs: Any, labels: Any, kind: str) -> None:
    """Raises LossError unless labels are [B, height, width], and outputs [B, height, width, classes >= 2]."""
    if not is_dense(labels):
        raise LossError(
            f"loss={kind}: it is for masks, a class for each pixel, but the labels have shape {labels.shape}; expected "
            "[B, height, width] (softmax takes a class for each example)"
        )
    if outputs.shape.rank != 4 or outputs.shape[-1] is None or outputs.shape[-1] < 2:
        raise LossError(
            f"loss={kind}: the labels are masks, {labels.shape}, but the model's outputs have shape {outputs.shape}; expected "
            "[B, height, width, classes >= 2] (--head=unet or --head=aspp)"
        )
    if not outputs.shape[1:3].is_compatible_with(labels.shape[1:3]):
        raise LossError(
            f"loss={kind}: the model's outputs have shape {outputs.shape}, but the masks have {labels.shape}; both must have "
            "one height and width"
        )


def pixel_weights(labels: Any, dtype: Any, class_weights: Sequence[float] | None = None) -> tuple[Any, Any]:
    """Labels as int32 without ignored ones (which become 0), and the weight of each pixel, 0 where it is ignored.

    Both are [B, height, width]. ``class_weights`` are the weights of the classes, by number.
    """
    counted = tf.not_equal(tf.cast(labels, tf.int32), IGNORED)
    classes = tf.where(counted, tf.cast(labels, tf.int32), 0)
    weights = tf.cast(counted, dtype)
    if class_weights is not None:
        weights *= tf.gather(tf.constant(list(class_weights), dtype), classes)
    return classes, weights


def mean_over_pixels(values: Any, weights: Any) -> tuple[Any, Any]:
    """The weighted mean of values [B, height, width] over the pixels of each example, and the example's weight: [B], [B].

    The weight is the sum of the pixels' weights over their number. An example of weight 0 has the mean 0.
    """
    total = tf.reduce_sum(weights, axis=[1, 2])
    mean = tf.math.divide_no_nan(tf.reduce_sum(tf.math.multiply_no_nan(values, weights), axis=[1, 2]), total)
    pixels = tf.cast(tf.shape(weights)[1] * tf.shape(weights)[2], weights.dtype)
    return mean, tf.stop_gradient(total / pixels)


def compute_cross_entropy(
    outputs: Any, labels: Any, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> tuple[Any, Any]:
    """The softmax cross-entropy of each example's pixels, and its weight.

    Args:
        outputs, labels: logits [B, height, width, C], and classes [B, height, width], ``IGNORED`` where no pixel counts.
        label_smoothing: the share of the target that is spread over all classes.
        class_weights: the weight of a pixel by its class, [C]; None weighs all alike.
    """
    check_dense(outputs, labels, "softmax")
    classes, weights = pixel_weights(labels, outputs.dtype, class_weights)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=outputs)
    if label_smoothing:
        spread = -tf.reduce_mean(tf.nn.log_softmax(outputs), axis=-1)
        values = (1.0 - label_smoothing) * values + label_smoothing * spread
    return mean_over_pixels(values, weights)


def compute_dice(outputs: Any, labels: Any, *, class_weights: Sequence[float] | None = None) -> tuple[Any, Any]:
    """1 - the soft Dice coefficient of each example, averaged over the classes that it has; and its weight, 0 or 1.

    For a class c with probabilities p and targets t, 0 or 1, of the pixels that count, it is 2 sum(p t) / (sum(p) + sum(t))
    (Milletari et al., arXiv:1606.04797, with p and t not squared, as in Sudre et al., arXiv:1707.03237). A class without a
    pixel in an example has no coefficient there; what is taken for it lowers those of the others.

    Args:
        outputs, labels: as of ``compute_cross_entropy``.
        class_weights: the weights of the classes in the average, [C]; None weighs all alike.
    """
    check_dense(outputs, labels, "dice")
    classes, counted = pixel_weights(labels, outputs.dtype)
    count = outputs.shape[-1]
    chances = tf.nn.softmax(outputs) * counted[..., None]
    targets = tf.one_hot(classes, count, dtype=outputs.dtype) * counted[..., None]
    own = tf.reduce_sum(targets, axis=[1, 2])
    both = tf.reduce_sum(chances * targets, axis=[1, 2])
    each = 1.0 - (2.0 * both + _SMOOTH) / (tf.reduce_sum(chances, axis=[1, 2]) + own + _SMOOTH)
    weights = tf.cast(own > 0, outputs.dtype)
    if class_weights is not None:
        if len(class_weights) > count:
            raise LossError(f"class_weights: {len(class_weights)} weights for a model with {count} classes")
        given = [*class_weights, *([1.0] * (count - len(class_weights)))]  # classes that the data lack never occur
        weights *= tf.constant(given, outputs.dtype)
    total = tf.reduce_sum(weights, axis=-1)
    return tf.math.divide_no_nan(tf.reduce_sum(each * weights, axis=-1), total), tf.cast(total > 0, outputs.dtype)


def compute_accuracy(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """The share of each example's pixels that are classified rightly, and the share of its pixels that count: [B], [B]."""
    classes, weights = pixel_weights(labels, outputs.dtype)
    hits = tf.equal(tf.argmax(outputs, axis=-1, output_type=tf.int32), classes)
    return mean_over_pixels(tf.cast(hits, outputs.dtype), weights)
