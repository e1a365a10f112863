"""The Loss contract, and the supervised losses by name.

A loss function is ``loss_fn(batch, *, training, seeds) -> Loss``. Its terms hold one value and one
weight per example; each term is summed over a step (micro-batches, replicas) and divided once by
its own summed weights. That makes uneven and weighted batches exact; an average of averages is not.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from engine import keras_private
from engine.errors import InputError
from engine.selection.variables import is_keras, name_variables
from engine.text import nearest
from engine.training.precision import wide

LOSSES = ("softmax", "sigmoid", "mse")


class Loss(NamedTuple):
    """What a loss function returns.

    Attributes:
        terms: name -> (values [B], weights [B] or None for ones). The step's loss is the sum over
            terms of sum(values * weights) / sum(weights); a term whose weights are all 0 counts 0.
        regulariser: a scalar that enters once a step, or {variable path: scalar}, of which only
            the selection's enter (the path "" always does); or None.
        metrics: name -> (values [B], weights [B] or None); averaged like terms, without gradient.
    """

    terms: Mapping[str, tuple[Any, Any]]
    regulariser: Any = None
    metrics: Mapping[str, tuple[Any, Any]] = {}


class LossFunction(Protocol):
    def __call__(self, batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss: ...


class LossError(InputError):
    """A loss function, or a loss by name, that breaks the contract."""


def weighted_sums(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """name -> (sum of values * weights, sum of weights), scalars in the values' dtype (float32 for 16 bits).

    Weights are constants: no gradient flows through them.

    A negative weight, or one that is not a number, makes the sum of weights nan (``check_weights``): an
    error raised by the graph itself would come after statistics had moved.

    Raises:
        LossError: values are no vector, or weights are not of their shape.
    """
    sums = {}
    for name, (values, weights) in pairs.items():
        values = wide(tf.convert_to_tensor(values))
        if values.shape.rank != 1:
            raise LossError(f"term {name!r}: values have shape {values.shape}; one value per example, [B], is wanted")
        if weights is None:
            count = tf.cast(tf.shape(values)[0], values.dtype)
            sums[name] = (tf.reduce_sum(values), count)
        else:
            weights = tf.stop_gradient(tf.cast(weights, values.dtype))
            if not weights.shape.is_compatible_with(values.shape):
                raise LossError(f"term {name!r}: weights have shape {weights.shape}, values {values.shape}")
            nan = tf.constant(float("nan"), weights.dtype)
            mass = tf.where(tf.reduce_all(weights >= 0), tf.reduce_sum(weights), nan)
            # an example without weight counts 0 whatever its value
            sums[name] = (tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), mass)
    return sums


def objective(sums: Mapping[str, tuple[Any, Any]], regulariser: Any, *, divisors: Any = None, share: Any = None) -> Any:
    """What is differentiated: of a whole step, or of one micro-batch, which sum to it.

    Args:
        sums: as ``weighted_sums`` gives them, at least one.
        regulariser: of the step, a scalar.
        divisors: [terms], the step's summed weights; None where these are the step's own sums.
        share: the micro-batch's share of the regulariser; None is all of it.
    """
    parts = []
    for number, (value, weight) in enumerate(sums.values()):
        divisor = weight if divisors is None else tf.cast(divisors[number], value.dtype)
        parts.append(tf.math.divide_no_nan(value, tf.stop_gradient(divisor)))
    total = tf.add_n(parts)
    return total + (regulariser if share is None else regulariser * tf.cast(share, total.dtype))


def check_weights(sums: Mapping[str, Any]) -> None:
    """Looks at sums of weights that a graph gave, by name.

    Raises:
        LossError: a weight among them was negative or not a number.
    """
    for name, mass in sums.items():
        if math.isnan(float(mass)):
            raise LossError(f"loss term {name!r}: a weight is negative or not a number; weights must be at least 0")


def regulariser_of(loss: Loss, trained: frozenset[str], dtype: Any) -> Any:
    """The regulariser's scalar: of a mapping by path, the selection's share alone."""
    if loss.regulariser is None:
        return tf.zeros([], dtype)
    if isinstance(loss.regulariser, Mapping):
        shares = [tf.cast(value, dtype) for path, value in loss.regulariser.items() if not path or path in trained]
        return tf.add_n(shares) if shares else tf.zeros([], dtype)
    return tf.cast(loss.regulariser, dtype)


def supervised_loss(model: Any, kind: str = "softmax", *, label_smoothing: float = 0.0) -> LossFunction:
    """A loss function for batches {"image", "label"[, "weight"]} of a classifier or regressor.

    Args:
        model: ``model(images, training=, seeds=)`` of this project, a Keras 3 model, or any callable
            that takes images and, of these keywords, those that it names.
        kind: "softmax" (labels int [B], logits [B, C]), "sigmoid" (labels 0/1, int or float [B] with
            logits [B, 1], or [B, C] multi-label) or "mse" (targets [B] or [B, C]).
        label_smoothing: share of the target spread over all classes, 0 <= s < 1; not for "mse".

    Raises:
        LossError: unknown kind, or a smoothing outside its range.
    """
    if kind not in LOSSES:
        raise LossError(f"loss={kind!r}: known losses are {', '.join(LOSSES)}{nearest(kind, list(LOSSES))}")
    if not 0.0 <= label_smoothing < 1.0:
        raise LossError(f"label_smoothing={label_smoothing}: it lies in [0, 1)")
    if kind == "mse" and label_smoothing:
        raise LossError(f"label_smoothing={label_smoothing}: the loss mse has no classes to smooth over")
    compute: Callable[..., tuple[Any, dict[str, Any]]] = {"softmax": _softmax, "sigmoid": _sigmoid, "mse": _mse}[kind]
    penalties = _keras_penalties(model) if is_keras(model) else {}
    taken = keywords(model)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        given = {"training": training, "seeds": seeds}
        outputs = wide(model(batch["image"], **{name: given[name] for name in taken}))
        weights = batch.get("weight")
        values, metrics = compute(outputs, _present(batch["label"], weights), label_smoothing)
        regulariser = {path: penalty() for path, penalty in penalties.items()}
        if is_keras(model):
            added = [
                tf.reduce_sum(value)
                for layer in keras_private.flatten_layers(model)
                for value in keras_private.own_losses(layer)
            ]
            regulariser |= {"": tf.add_n(added)} if added else {}
        return Loss(
            terms={kind: (values, weights)},
            regulariser=regulariser or None,
            metrics={name: (metric, weights) for name, metric in metrics.items()},
        )

    return loss_fn


def keywords(model: Any) -> tuple[str, ...]:
    """Of "training" and "seeds", those that a model takes."""
    if is_keras(model):
        return ("training",)
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return ("training", "seeds")
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return tuple(name for name in ("training", "seeds") if anything or name in parameters)


def _keras_penalties(model: Any) -> dict[str, Callable[[], Any]]:
    """Keras weight regularisers by variable path (``model.losses`` cannot tell whose each one is)."""
    found: dict[str, Callable[[], Any]] = {}
    by_id = {id(entry.variable): entry.path for entry in name_variables(model)}
    for weight in model.weights:
        regularizer = getattr(weight, "regularizer", None)
        if regularizer is not None and id(weight.value) in by_id:
            found[by_id[id(weight.value)]] = functools.partial(_penalty, regularizer, weight)
    return found


def _penalty(regularizer: Any, weight: Any) -> Any:
    return regularizer(weight.value)


def _present(labels: Any, weights: Any) -> Any:
    """Labels with 0 for those of no weight: a missing one may be nan, whose gradient is nan whatever its weight."""
    labels = tf.convert_to_tensor(labels)
    if weights is None or not labels.dtype.is_floating or len(weights.shape) != 1:
        return labels
    present = tf.reshape(tf.convert_to_tensor(weights) != 0, [-1] + [1] * (labels.shape.rank - 1))
    return tf.where(present, labels, tf.zeros([], labels.dtype))


def _softmax(logits: Any, labels: Any, smoothing: float) -> tuple[Any, dict[str, Any]]:
    classes = logits.shape[-1]
    if logits.shape.rank != 2 or classes < 2:
        raise LossError(f"loss=softmax: the model's outputs have shape {logits.shape}; [B, classes >= 2] is wanted")
    labels = tf.cast(labels, tf.int32)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        spread = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        values = (1.0 - smoothing) * values + smoothing * spread
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
    return values, {"accuracy": tf.cast(hits, logits.dtype)}


def _sigmoid(logits: Any, labels: Any, smoothing: float) -> tuple[Any, dict[str, Any]]:
    targets = _as_columns(tf.cast(labels, logits.dtype), logits, "sigmoid")
    smooth = targets * (1.0 - smoothing) + 0.5 * smoothing
    values = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=smooth, logits=logits), axis=-1)
    hits = tf.equal(logits > 0, targets > 0.5)
    return values, {"accuracy": tf.reduce_mean(tf.cast(hits, logits.dtype), axis=-1)}


def _mse(outputs: Any, labels: Any, smoothing: float) -> tuple[Any, dict[str, Any]]:
    targets = _as_columns(tf.cast(labels, outputs.dtype), outputs, "mse")
    return tf.reduce_mean(tf.square(outputs - targets), axis=-1), {}


def _as_columns(targets: Any, outputs: Any, kind: str) -> Any:
    if targets.shape.rank == 1:
        targets = targets[:, None]
    if outputs.shape.rank != 2 or targets.shape.rank != 2 or targets.shape[1] != outputs.shape[1]:
        raise LossError(
            f"loss={kind}: labels have shape {targets.shape}, the model's outputs {outputs.shape}; "
            "one output per label column is wanted"
        )
    return targets
