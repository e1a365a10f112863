"""Figures of merit of a classifier or regressor, as pure functions of its outputs; nothing here needs TensorFlow.

Classes are numbered from 0. A figure that the examples do not define, such as the recall of a class without examples, is
None and not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

BINS = 15  # of the calibration error, as in the experiments of Guo et al.


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How well one class is recognised.

    Attributes:
        examples, predicted: how many examples are of the class, and how many are taken for it; or their weights.
        precision: the share of those that are taken for the class that are of it; 0 if none is taken for it.
        recall: the share of the examples of the class that are taken for it; None without examples.
        f1: the harmonic mean of precision and recall; None without examples.
    """

    examples: float
    predicted: float
    precision: float
    recall: float | None
    f1: float | None


def count_confusions(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix, int64 [classes, classes]: rows are the true classes, columns the predicted ones.

    Example:
        >>> count_confusions(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    cells = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def rate_classes(confusions: np.ndarray) -> list[ClassFigures]:
    """Precision, recall and F1 of each class, from a confusion matrix."""
    return rate_counts(np.diagonal(confusions), confusions.sum(axis=1), confusions.sum(axis=0))


def rate_labels(targets: np.ndarray, chosen: np.ndarray) -> list[ClassFigures]:
    """Precision, recall and F1 of each label, where an example may have several: both arrays are bool [n, labels]."""
    return rate_counts((targets & chosen).sum(axis=0), targets.sum(axis=0), chosen.sum(axis=0))


def rate_counts(hits: np.ndarray, examples: np.ndarray, predicted: np.ndarray) -> list[ClassFigures]:
    """Precision, recall and F1 of each class, from how many of its examples are taken for it, are of it, and are taken
    for it: [classes] each, which may be sums of weights."""
    return [_rate(*(each.item() for each in row)) for row in zip(hits, examples, predicted, strict=True)]


def _rate(hits: float, examples: float, predicted: float) -> ClassFigures:
    return ClassFigures(
        examples=examples,
        predicted=predicted,
        precision=hits / predicted if predicted else 0.0,
        recall=hits / examples if examples else None,
        f1=2 * hits / (examples + predicted) if examples else None,
    )


def average_classes(
    figures: Sequence[ClassFigures], *, counting: Literal["present", "occurring", "all"] = "present"
) -> dict[str, float | None]:
    """Macro averages: the means of precision, recall and F1 over classes; None where there are none.

    Args:
        counting: over which classes: those that have examples ("present"), those that have examples or are predicted
            ("occurring", as scikit-learn for classes), or all (as scikit-learn for several labels of an example). A
            recall or F1 that is not defined then counts 0.
    """
    chosen = {
        "present": [each for each in figures if each.examples],
        "occurring": [each for each in figures if each.examples or each.predicted],
        "all": list(figures),
    }[counting]
    if not chosen:
        return {"precision": None, "recall": None, "f1": None}
    return {
        name: float(np.mean([getattr(each, name) or 0.0 for each in chosen])) for name in ("precision", "recall", "f1")
    }


def find_top(outputs: np.ndarray, count: int) -> np.ndarray:
    """The classes with the largest outputs of each example, the largest first: int64 [n, min(count, classes)].

    Of equal outputs, the class with the lower number comes first, as with ``argmax``.
    """
    count = min(count, outputs.shape[1])
    if count < outputs.shape[1]:  # sorting all of many classes would take most of the time
        bound = -np.partition(-outputs, count - 1, axis=1)[:, count - 1 : count]
        outputs = np.where(outputs >= bound, outputs, -np.inf)
    return np.argsort(-outputs, axis=1, kind="stable")[:, :count]


def measure_top_accuracy(outputs: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The share of examples whose class is among the ``count`` largest outputs.

    Example:
        >>> measure_top_accuracy(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1, 2]), 2)
        0.5
    """
    return float(np.mean((find_top(outputs, count) == labels[:, None]).any(axis=1)))


def score_positive(outputs: np.ndarray) -> np.ndarray:
    """How much outputs [n, 2] of two classes, or [n, 1] of a label, speak for class 1: float64 [n]."""
    values = outputs.astype(np.float64)
    return values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]


def measure_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The area under the ROC curve: the chance that a positive example has a higher score than a negative one.

    It is exact: with the ranks of all scores, equal ones sharing the mean of their ranks, it is
    (sum of the ranks of the positives - P (P + 1) / 2) / (P N), the statistic of Mann and Whitney over the number of pairs
    (Hanley and McNeil: The meaning and use of the area under a ROC curve, Radiology 143, 1982). So two equal scores count
    as half a pair.

    Args:
        scores: any numbers, [n]; a higher one speaks for the positive class.
        positive: which examples are positive, bool [n].
        weights: how much each example counts, at least 0, [n]; None where all count 1. A pair counts the product.

    Returns None if the examples are all positive, or all negative.

    Example:
        >>> measure_auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
        0.875
    """
    if weights is not None and not (weights == 1).all():
        return _measure_weighted_auc(scores, positive, weights.astype(np.float64))
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs:
        return None
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    doubled = (2 * last - sizes + 1)[group]  # twice the mean rank of each score: a whole number
    return float((int(doubled[positive].sum()) - positives * (positives + 1)) / (2 * pairs))


def _measure_weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float | None:
    """The weight of the pairs in which the positive example has the higher score, and half of equal ones, over all pairs."""
    levels, group = np.unique(scores, return_inverse=True)
    own, others = (np.bincount(group[at], weights[at], minlength=len(levels)) for at in (positive, ~positive))
    pairs = own.sum() * others.sum()
    return float((own * (np.cumsum(others) - others / 2)).sum() / pairs) if pairs else None


def measure_calibration(confidence: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> float:
    """The expected calibration error: by how much confidence and accuracy differ on average.

    The examples are divided by their confidence into ``bins`` intervals ((m - 1) / bins, m / bins] of equal width. The error
    is the sum over the intervals of |accuracy - mean confidence|, weighted by their shares of the examples (Guo et al.: On
    Calibration of Modern Neural Networks, 2017, equation 3).

    Args:
        confidence: the probability of the predicted class of each example, [n], n at least 1.
        right: whether the prediction is right, bool [n].

    Example:
        >>> measure_calibration(np.array([0.75, 0.75, 0.25]), np.array([True, False, False]), bins=2)
        0.25
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right.astype(np.float64) - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def measure_adaptive_calibration(confidence: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> float:
    """The calibration error in bins with equal numbers of examples, which does not depend on where confidences lie.

    The examples are sorted by their confidence and divided into ``bins`` groups whose sizes differ by at most 1; examples of
    equal confidence are divided in their order. The rest is as in ``measure_calibration`` (Nixon et al.: Measuring Calibration
    in Deep Learning, 2019, for the predicted class).

    Example:
        >>> measure_adaptive_calibration(np.array([0.5, 0.75, 0.75, 1.0]), np.array([True, False, True, True]), bins=2)
        0.125
    """
    order = np.argsort(confidence, kind="stable")
    gaps = (right.astype(np.float64) - confidence.astype(np.float64))[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(confidence))


def rank_mistakes(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The positions of the examples that are wrong, the most confident first; of equally confident ones, the first first."""
    order = np.argsort(-confidence, kind="stable")
    return order[~right[order]]


def as_probabilities(outputs: np.ndarray, loss: str) -> np.ndarray:
    """What outputs [n, C], or [n, height, width, C] of classes, mean for a model that was trained with a loss, in float64.

    "softmax": the probabilities of C classes. "sigmoid": that of each of C labels; of a single output, those of the
    classes 0 and 1, [n, 2]. "mse": the values themselves.

    Example:
        >>> as_probabilities(np.array([[0.0]]), "sigmoid").tolist()
        [[0.5, 0.5]]
    """
    values = outputs.astype(np.float64)
    if loss == "softmax":
        raised = np.exp(values - values.max(axis=-1, keepdims=True))
        return raised / raised.sum(axis=-1, keepdims=True)
    if loss == "mse":
        return values
    small = np.exp(-np.abs(values))  # never overflows
    positive = np.where(values >= 0, 1.0, small) / (1.0 + small)
    if values.shape[1] > 1:
        return positive
    negative = np.where(values >= 0, small, 1.0) / (1.0 + small)
    return np.concatenate([negative, positive], axis=1)


def measure_losses(outputs: np.ndarray, labels: np.ndarray, loss: str) -> np.ndarray:
    """The loss of each example, float64 [n], as ``engine.training.losses.supervised_loss`` computes it, up to rounding.

    Args:
        outputs: [n, C], as the network gives them.
        labels: "softmax": classes, int [n] or [n, 1]; "sigmoid": 0 or 1, [n] or [n, C]; "mse": targets, [n] or [n, C].

    Example:
        >>> measure_losses(np.array([[0.0, 0.0]]), np.array([1]), "softmax").round(3).tolist()
        [0.693]
    """
    values = outputs.astype(np.float64)
    if loss == "softmax":
        chosen = values[np.arange(len(values)), labels.reshape(len(values)).astype(np.int64)]
        top = values.max(axis=1)
        return np.log(np.exp(values - top[:, None]).sum(axis=1)) + top - chosen
    targets = labels.reshape(values.shape).astype(np.float64)
    if loss == "mse":
        return ((values - targets) ** 2).mean(axis=1)
    each = np.maximum(values, 0.0) - values * targets + np.log1p(np.exp(-np.abs(values)))
    return each.mean(axis=1)
