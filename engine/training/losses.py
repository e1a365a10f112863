"""The Loss contract, and the supervised losses by name.

A loss function is ``loss_fn(batch, *, training, seeds) -> Loss``. Its terms hold one value and one weight per example.
Each term is summed over the whole step (micro-batches, replicas) and divided once by its own summed weights. This is
exact for uneven and weighted batches; an average of averages is not.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from engine import keras_private
from engine.data.batch_names import join_inputs
from engine.selection.variables import is_keras, name_variables
from engine.training.loss_names import LOSSES, LossError, parse_losses
from engine.training.metric import Metric, measure_outputs
from engine.training.precision import widen
from engine.training.task_terms import TaskTerms

__all__ = ["LOSSES", "Loss", "LossError", "LossFunction", "supervised_loss"]


class Loss(NamedTuple):
    """The return value of a loss function: one value per example, not a mean, so that any split of a step is exact.

    Attributes:
        terms: by name, pairs of values [B] and weights [B], or None for weights of 1. The loss of a step is the sum over
            terms of sum(values * weights) / sum(weights); a term whose weights are all 0 contributes 0.
        regulariser: a scalar that enters once per step; or a mapping from variable paths to scalars, of which only those
            of trained variables enter (and that of the path ""); or None.
        metrics: by name, pairs of values [B] and weights [B] or None; averaged like terms, but without gradient.
        measured: for evaluations (``training`` is False) alone: by the name of a figure, its metric and what that measured
            (``engine.training.metric.measure_metrics``).

    Example:
        >>> import tensorflow as tf
        >>> from engine import Loss
        >>> def loss_fn(batch, *, training, seeds):
        ...     return Loss(terms={"mse": (tf.square(batch["x"] - batch["y"]), batch["weight"])})
        >>> batch = {"x": tf.constant([1.0, 2.0]), "y": tf.zeros([2]), "weight": tf.constant([1.0, 0.5])}
        >>> loss_fn(batch, training=True, seeds=None).terms["mse"][0].numpy().tolist()
        [1.0, 4.0]
    """

    terms: Mapping[str, tuple[Any, Any]]
    regulariser: Any = None
    metrics: Mapping[str, tuple[Any, Any]] = {}
    measured: Mapping[str, tuple[Metric, Mapping[str, Any]]] = {}


class LossFunction(Protocol):
    """Computes the loss of a batch; ``seeds`` are the int32 [B, 2] random seeds of the examples."""

    def __call__(self, batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss: ...


def weighted_sums(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Returns sum(values * weights) and sum(weights) by name: scalars in the values' dtype (float32 for 16 bits).

    No gradient flows through weights. A weight that is negative or not a number makes the sum of weights NaN, which
    ``check_weights`` reports: an error raised inside the graph would come after statistics had moved. Raises LossError
    if values are not a vector, or weights differ from them in shape.
    """
    sums = {}
    for name, (values, weights) in pairs.items():
        values = widen(tf.convert_to_tensor(values))
        if values.shape.rank != 1:
            raise LossError(f"term {name!r}: values have shape {values.shape}; expected one value per example, [B]")
        if weights is None:
            count = tf.cast(tf.shape(values)[0], values.dtype)
            sums[name] = (tf.reduce_sum(values), count)
        else:
            weights = tf.stop_gradient(tf.cast(weights, values.dtype))
            if not weights.shape.is_compatible_with(values.shape):
                raise LossError(f"term {name!r}: weights have shape {weights.shape}, but values have {values.shape}")
            nan = tf.constant(float("nan"), weights.dtype)
            mass = tf.where(tf.reduce_all(weights >= 0), tf.reduce_sum(weights), nan)
            # an example of weight 0 contributes 0 even if its value is NaN
            sums[name] = (tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), mass)
    return sums


def build_objective(
    sums: Mapping[str, tuple[Any, Any]], regulariser: Any, *, divisors: Any = None, share: Any = None
) -> Any:
    """Builds the scalar to differentiate: that of a whole step, or of a micro-batch, whose sum over the step equals it.

    Args:
        sums, regulariser: the sums from ``weighted_sums``, of at least one term, and the step's regulariser, a scalar.
        divisors: the summed weights of the step, [terms]; None if ``sums`` are those of the whole step.
        share: the share of the regulariser that enters here; None means all of it.
    """
    parts = []
    for number, (value, weight) in enumerate(sums.values()):
        divisor = weight if divisors is None else tf.cast(divisors[number], value.dtype)
        parts.append(tf.math.divide_no_nan(value, tf.stop_gradient(divisor)))
    total = tf.add_n(parts)
    return total + (regulariser if share is None else regulariser * tf.cast(share, total.dtype))


def check_weights(sums: Mapping[str, Any]) -> None:
    """Raises LossError if a weight was negative or not a number, given summed weights that a graph has computed."""
    for name, mass in sums.items():
        if math.isnan(float(mass)):
            raise LossError(f"loss term {name!r}: a weight is negative or not a number; weights must be at least 0")


def check_results(result: Mapping[str, Any]) -> None:
    """Raises LossError if the results of a step show that its loss has invalid weights, or weights that depend on the batch."""
    check_weights(result["weights"])
    check_weights(result["metric_weights"])
    if bool(result["finite"]) and not bool(result["exact"]):
        raise LossError(
            "the weights of the parts of a step do not sum to those of the step: the weight of an example must not "
            "depend on other examples; compute it from the example alone, or add it to the batch beforehand"
        )


def sum_regulariser(loss: Loss, trained: frozenset[str], dtype: Any) -> Any:
    """Returns the regulariser as a scalar; of a mapping by path, only the entries of trained variables count."""
    if loss.regulariser is None:
        return tf.zeros([], dtype)
    if isinstance(loss.regulariser, Mapping):
        shares = [tf.cast(value, dtype) for path, value in loss.regulariser.items() if not path or path in trained]
        return tf.add_n(shares) if shares else tf.zeros([], dtype)
    return tf.cast(loss.regulariser, dtype)


def choose_terms(loss: Loss, names: Sequence[str] | None) -> Loss:
    """The loss with the terms of these names alone, and without the metrics ``NAME/TERM`` of others; itself for None."""
    if names is None:
        return loss
    if missing := [name for name in names if name not in loss.terms]:
        raise LossError(
            f"losses={','.join(names)}: the loss has no term {missing[0]!r}; it has {', '.join(loss.terms)}"
        )
    others = {name for name in loss.terms if name not in names}
    return loss._replace(
        terms={name: pair for name, pair in loss.terms.items() if name not in others},
        metrics={name: pair for name, pair in loss.metrics.items() if name.partition("/")[2] not in others},
    )


def supervised_loss(
    model: Any,
    kind: str = "softmax",
    *,
    label_smoothing: float = 0.0,
    class_weights: Mapping[str, Sequence[float]] | None = None,
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    inputs: Sequence[str] | None = None,
) -> LossFunction:
    """Makes the loss function of a classifier or regressor, for batches of inputs, "label" and optionally "weight".

    Args:
        inputs: the names of the model's inputs in a batch. None means "image", whatever else a batch has; or, where it has
            none, all that is not a label, a weight or seeds.
        model: a model of this project, a Keras 3 model, or any callable that takes images (or another input; or, where
            a batch has several, all of them by name); "training" and "seeds" are passed to it as keyword arguments if it
            accepts them. It returns a tensor, or a dict of tensors by the names of the losses.
        kind: as ``--loss``: "softmax" (labels int [B], logits [B, C]), "sigmoid" (labels 0 or 1, int or float, [B] for
            logits [B, 1], or multi-label [B, C]), "mse" (targets [B] or [B, C]), "focal", ``py:module:name``; for several
            outputs the loss of each, as in "species=softmax, age=mse weight=0.3", whose labels are "label/species" and
            "label/age", with weights "weight/species" and "weight/age" where labels are missing.
        label_smoothing: the share of the target that is spread over all classes, at least 0 and below 1; not for "mse".
        class_weights: the weights of classes, by output ("" for the only one), where the loss has that option.
        metrics: figures that evaluations compute beside the loss (``engine.training.metric``), of the only output or of
            each, by its name.

    Raises:
        LossError: the kind is unknown, or an option is not valid.

    Example:
        >>> import tensorflow as tf
        >>> from engine import supervised_loss
        >>> loss_fn = supervised_loss(lambda images: tf.stack([images, -images], axis=1), "softmax")
        >>> batch = {"image": tf.constant([0.0, 2.0]), "label": tf.constant([0, 0])}
        >>> values, weights = loss_fn(batch, training=False, seeds=None).terms["softmax"]
        >>> [f"{value:.3f}" for value in values], weights
        (['0.693', '0.018'], None)
    """
    terms = TaskTerms(parse_losses(kind, label_smoothing=label_smoothing), class_weights)
    penalties = _keras_penalties(model) if is_keras(model) else {}
    taken = accepted_keywords(model)
    figures = metrics if isinstance(metrics, Mapping) else {"": metrics}

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        given = {"training": training, "seeds": seeds}
        outputs = tf.nest.map_structure(
            widen, model(_select_inputs(batch, inputs), **{name: given[name] for name in taken})
        )
        found, means = terms(outputs, batch)
        regulariser = {path: penalty() for path, penalty in penalties.items()}
        if is_keras(model):
            layers = keras_private.flatten_layers(model)
            added = [tf.reduce_sum(value) for layer in layers for value in keras_private.own_losses(layer)]
            regulariser |= {"": tf.add_n(added)} if added else {}
        measured = {} if training else measure_outputs(figures, outputs, batch)
        return Loss(terms=found, regulariser=regulariser or None, metrics=means, measured=measured)

    return loss_fn


def _select_inputs(batch: Mapping[str, Any], inputs: Sequence[str] | None) -> Any:
    """What a model is called with."""
    if inputs is None:
        return batch["image"] if "image" in batch else join_inputs(batch)
    return batch[inputs[0]] if len(inputs) == 1 else {name: batch[name] for name in inputs}


def accepted_keywords(model: Any) -> tuple[str, ...]:
    """Returns those of the keyword arguments "training" and "seeds" that a model accepts."""
    if is_keras(model):
        return ("training",)
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return ("training", "seeds")
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return tuple(name for name in ("training", "seeds") if anything or name in parameters)


def _keras_penalties(model: Any) -> dict[str, Callable[[], Any]]:
    """The Keras weight regularisers by variable path; ``model.losses`` does not say to which variable each belongs."""
    found: dict[str, Callable[[], Any]] = {}
    by_id = {id(entry.variable): entry.path for entry in name_variables(model)}
    for weight in model.weights:
        regularizer = getattr(weight, "regularizer", None)
        if regularizer is not None and id(weight.value) in by_id:
            penalty = functools.partial(lambda rule, weight: rule(weight.value), regularizer, weight)
            found[by_id[id(weight.value)]] = penalty
    return found
