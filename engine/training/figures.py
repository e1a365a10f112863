"""The metrics by name: figures of classifiers and regressors whose values are those of scikit-learn.

Outputs are logits [B, C] of classes ("softmax"), of labels ("sigmoid"), or values ("mse"). Whatever is summed is float64. What
an average counts where the examples do not define a part of it is what scikit-learn does by default: 0 for the precision of a
class that is never predicted, and for the recall of one without examples. Other figures that are not defined are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.outside_names import call_named, import_named
from engine.training import metrics
from engine.training.dense_metrics import OVERLAPS, Overlap
from engine.training.detection_metric import AveragePrecision
from engine.training.loss_names import CENTERS
from engine.training.metric import Figure, Metric
from engine.training.metric_names import MetricError, MetricRequest, check_users_name, facts_of, find_top

_FLOAT = tf.float64


def build_metric(name: str, *, kind: str, outputs: int) -> Metric:
    """Builds a metric of this house.

    Args:
        name: one of ``METRICS``, or ``topK``.
        kind: what the outputs mean: "softmax", "sigmoid" or "mse".
        outputs: how many there are.

    Raises:
        MetricError: there is no such metric, or it does not suit the outputs.

    Example:
        >>> import tensorflow as tf
        >>> metric = build_metric("top2", kind="softmax", outputs=3)
        >>> measured = metric.measure(tf.constant([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), tf.constant([1, 2]), None)
        >>> metric.finalise({name: value.numpy() for name, value in measured.items()})
        0.5
    """
    facts = facts_of(name)
    if facts is None or kind not in facts.kinds:
        raise MetricError(f"metrics={name}: there is no such metric for outputs of {kind}")
    top = find_top(name)
    if top is not None:
        if top >= outputs:
            raise MetricError(
                f"metrics={name}: there are {outputs} classes, so it would always be 1; expected at most top{outputs - 1}"
            )
        return Top(name, kind, outputs, top)
    several = kind == "sigmoid" and outputs > 1
    if name == "confusion" and several:
        raise MetricError("metrics=confusion: an example has several labels, so that it has no single class; use f1")
    if kind == CENTERS:
        return AveragePrecision(name)
    made: Metric = Overlap(name) if name in OVERLAPS else _KINDS[name](name, kind, outputs)
    made.higher_is_better = facts.higher_is_better
    return made


def build_metrics(
    requests: Mapping[str, Sequence[MetricRequest]], *, kinds: Mapping[str, str | None], outputs: Mapping[str, int]
) -> dict[str, tuple[Metric, ...]]:
    """Builds the metrics of each output that has some, by its name ("" for the only one).

    Args:
        requests: what is asked for (``engine.training.metric_names.check_fits``).
        kinds, outputs: what each output means, and how many numbers it is.

    Raises:
        MetricError: a metric does not suit the outputs, or one of the user's own is not a metric.
    """
    found = {}
    for task, asked in requests.items():
        made = [
            import_metric(each.metric)
            if each.is_users
            else build_metric(each.metric, kind=str(kinds[task]), outputs=outputs[task])
            for each in asked
        ]
        if made:
            found[task] = tuple(made)
    return found


def import_metric(text: str) -> Metric:
    """Imports a metric ``py:module:name``: an object that is one, or a class or function that makes one without arguments.

    Raises:
        InputError: it cannot be imported, or raises an error; or what it makes is not a metric.
    """
    found = import_named("metrics", text, what="metric")
    if isinstance(found, type) or (callable(found) and not hasattr(found, "measure")):
        found = call_named("metrics", text, found)
    for name in ("measure", "finalise"):
        if not callable(getattr(found, name, None)):
            raise MetricError(
                f"metrics={text!r}: {type(found).__name__} has no method {name}; expected a Metric (docs/extending.md)"
            )
    check_users_name(text, getattr(found, "name", None))
    metric: Metric = found
    return metric


def _weigh(weights: Any, like: Any) -> Any:
    """The weights of the examples, float64 [B]."""
    count = tf.shape(like)[:1]
    return tf.ones(count, _FLOAT) if weights is None else tf.cast(weights, _FLOAT)


def _sum(values: Any, weights: Any) -> Any:
    """sum(values * weights) over the examples; of weight 0, none counts, not even NaN. Values are [B] or [B, C]."""
    values = tf.cast(values, _FLOAT)
    weights = weights if values.shape.rank == 1 else tf.broadcast_to(weights[:, None], tf.shape(values))
    return tf.reduce_sum(tf.math.multiply_no_nan(values, weights), axis=0)


def _divide(total: Any, weight: Any) -> float:
    return float(total / weight) if weight else float("nan")


@dataclass(eq=False)
class _Figure(Metric):
    """What all metrics here know: their name, and what the outputs are."""

    name: str
    kind: str
    outputs: int

    def _check(self, outputs: Any) -> None:
        if outputs.shape.rank != 2 or outputs.shape[1] != self.outputs:
            raise MetricError(
                f"metric {self.name}: the outputs have shape {outputs.shape}; expected [B, {self.outputs}]"
            )

    @property
    def _several(self) -> bool:
        """Whether an example may have several labels."""
        return self.kind == "sigmoid" and self.outputs > 1

    @property
    def _classes(self) -> int:
        return max(self.outputs, 2) if self.kind == "sigmoid" else self.outputs

    def _targets(self, outputs: Any, labels: Any) -> Any:
        """Labels as columns like the outputs."""
        labels = labels if labels.shape.rank == 2 else labels[:, None]
        return tf.ensure_shape(labels, [None, outputs.shape[1]])

    def _decide(self, outputs: Any, labels: Any) -> tuple[Any, Any]:
        """The true and the predicted classes, int64 [B]; or which labels are right and predicted, bool [B, C]."""
        self._check(outputs)
        if self.kind == "softmax":
            return tf.cast(tf.reshape(labels, [-1]), tf.int64), tf.argmax(outputs, axis=1)
        right, chosen = self._targets(outputs, labels), outputs > 0
        right = right if right.dtype.is_bool else tf.cast(right, _FLOAT) > 0.5
        if self._several:
            return right, chosen
        return tf.cast(right[:, 0], tf.int64), tf.cast(chosen[:, 0], tf.int64)


class Accuracy(_Figure):
    """The share of examples whose class is the predicted one; of several labels, the share of labels that are right."""

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        right, chosen = self._decide(outputs, labels)
        hits = tf.cast(tf.equal(right, chosen), _FLOAT)
        hits = tf.reduce_mean(hits, axis=1) if self._several else hits
        weights = _weigh(weights, outputs)
        return {"hits": _sum(hits, weights), "weight": tf.reduce_sum(weights)}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        return _divide(sums["hits"], sums["weight"])


class Top(_Figure):
    """The share of examples whose class is among the K largest outputs; of equal outputs, lower classes come first."""

    def __init__(self, name: str, kind: str, outputs: int, count: int) -> None:
        super().__init__(name, kind, outputs)
        self._count = count

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        classes, _ = self._decide(outputs, labels)
        own = tf.gather(outputs, classes, batch_dims=1)[:, None]
        earlier = tf.range(self.outputs, dtype=tf.int64) < classes[:, None]
        before = tf.reduce_sum(tf.cast((outputs > own) | ((outputs == own) & earlier), tf.int32), axis=1)
        weights = _weigh(weights, outputs)
        return {"hits": _sum(before < self._count, weights), "weight": tf.reduce_sum(weights)}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        return _divide(sums["hits"], sums["weight"])


class ByClass(_Figure):
    """The mean of precision, recall or F1 over classes (macro average): of those that occur among labels or predictions.

    Where an example may have several labels, it is the mean over all labels. ``balanced_accuracy`` is the mean recall of the
    classes that have examples.
    """

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        right, chosen = self._decide(outputs, labels)
        if not self._several:
            right, chosen = (
                tf.one_hot(each, self._classes, on_value=True, off_value=False) for each in (right, chosen)
            )
        weights = _weigh(weights, outputs)
        found = {"hits": right & chosen, "examples": right, "predicted": chosen}
        return {name: _sum(each, weights) for name, each in found.items()}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        rated = metrics.rate_counts(sums["hits"], sums["examples"], sums["predicted"])
        if self.name == "balanced_accuracy":
            found = metrics.average_classes(rated)["recall"]
        else:
            found = metrics.average_classes(rated, counting="all" if self._several else "occurring")[self.name]
        return float("nan") if found is None else found


class Confusion(_Figure):
    """The confusion matrix, a table: rows are the true classes, columns the predicted ones."""

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        right, chosen = self._decide(outputs, labels)
        rows = tf.one_hot(right, self._classes, dtype=_FLOAT) * _weigh(weights, outputs)[:, None]
        return {"cells": tf.matmul(rows, tf.one_hot(chosen, self._classes, dtype=_FLOAT), transpose_a=True)}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        cells = sums["cells"]
        return (cells.astype(np.int64) if (cells == np.rint(cells)).all() else cells).tolist()


class Auc(_Figure):
    """The area under the ROC curve, exact, from the scores of all examples, which it keeps.

    Of two classes it is that of class 1 against class 0. Of more, or of several labels, it is the mean over those that have
    examples and counterexamples, each against all others; scores of classes are their probabilities.
    """

    kept = ("scores", "labels", "weights")

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        right, _ = self._decide(outputs, labels)
        return {"scores": outputs, "labels": right, "weights": _weigh(weights, outputs)}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        weights = sums["weights"]
        scores, labels = (sums[name][weights > 0] for name in ("scores", "labels"))
        weights = weights[weights > 0]
        if not np.isfinite(scores).all():
            return float("nan")
        if self._classes == 2 and not self._several:
            return _or_nan(metrics.measure_auc(metrics.score_positive(scores), labels == 1, weights))
        scores = scores if self._several else metrics.as_probabilities(scores, "softmax")
        found = [
            metrics.measure_auc(scores[:, n], labels[:, n] if self._several else labels == n, weights)
            for n in range(self.outputs)
        ]
        known = [area for area in found if area is not None]
        return float(np.mean(known)) if known else float("nan")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


class Errors(_Figure):
    """The mean absolute error (mae), mean squared error (mse) or its root (rmse) of each column; the mean over columns."""

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        errors = self._errors(outputs, labels)
        weights = _weigh(weights, outputs)
        return {
            "errors": _sum(tf.abs(errors) if self.name == "mae" else tf.square(errors), weights),
            "weight": tf.reduce_sum(weights),
        }

    def _errors(self, outputs: Any, labels: Any) -> Any:
        self._check(outputs)
        return tf.cast(outputs, _FLOAT) - tf.cast(self._targets(outputs, labels), _FLOAT)

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        if not sums["weight"]:
            return float("nan")
        means = sums["errors"] / sums["weight"]
        return float(np.mean(np.sqrt(means) if self.name == "rmse" else means))


class R2(Errors):
    """The coefficient of determination of each column, 1 - sum of squared errors / sum of squared deviations; the mean.

    It keeps the targets of all examples: sums of their squares would lose the digits of a variance that is small beside the
    mean. A column that is constant counts 1 if it is met exactly, and else 0, as in scikit-learn.
    """

    kept = ("targets", "weights")

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        found = super().measure(outputs, labels, weights)
        return {
            "errors": found["errors"],
            "targets": self._targets(outputs, labels),
            "weights": _weigh(weights, outputs),
        }

    def finalise(self, sums: Mapping[str, np.ndarray]) -> Figure:
        present = sums["weights"] > 0
        if present.sum() < 2:
            return float("nan")
        weights, targets = sums["weights"][present][:, None], sums["targets"][present].astype(np.float64)
        mean = (weights * targets).sum(axis=0) / weights.sum()
        spread = (weights * (targets - mean) ** 2).sum(axis=0)
        left = np.divide(sums["errors"], spread, out=(sums["errors"] != 0).astype(np.float64), where=spread != 0)
        return float(np.mean(1.0 - left))


_KINDS: Mapping[str, type[_Figure]] = {
    "accuracy": Accuracy,
    **dict.fromkeys(("balanced_accuracy", "f1", "precision", "recall"), ByClass),
    "auc": Auc,
    "confusion": Confusion,
    **dict.fromkeys(("mae", "mse", "rmse"), Errors),
    "r2": R2,
}
