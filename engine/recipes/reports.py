"""What the outputs of a model tell on examples, besides the figures of its run: by class, label or column."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.data.part import GEOMETRY
from engine.recipes.detections import rate_boxes
from engine.recipes.evaluation_data import Examples
from engine.recipes.pixel_evaluation import Drawn, predict_some, rate_pixels
from engine.recipes.predictor import Predictor
from engine.recipes.reopen import OpenedRun
from engine.runs.records import replace_non_finite
from engine.training import metrics
from engine.training.dense_metrics import PixelConfusions
from engine.training.evaluation import Result
from engine.training.loss_names import CENTERS

FORMAT = 1  # of evaluation.json
LISTED = 24  # of the most confident mistakes


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """An evaluation.

    Attributes:
        figures: what evaluation.json says.
        names: the names of the classes, labels or columns.
        confusions: the confusion matrix, rows the true classes; None where an example has no single class.
        mistakes: the most confident mistakes: positions in the part, at most ``LISTED``.
        predicted, confidence: for each example, the predicted class and its probability; empty without classes.
        tasks: where the model has several outputs, the report of each, on the examples that have a label of it.
        boxes: those that a detector finds, [n, D, 6]; else None.
        drawn: some examples to be drawn, where there is a class for each pixel; then ``confusions`` are those of pixels.
    """

    figures: dict[str, Any]
    names: tuple[str, ...]
    confusions: np.ndarray | None
    mistakes: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    tasks: Mapping[str, Report] = field(default_factory=dict)
    drawn: Drawn | None = None
    boxes: np.ndarray | None = None


def as_classes(labels: np.ndarray) -> np.ndarray:
    """Labels [n] or [n, 1] as the numbers of classes, int64 [n]."""
    return (labels[:, 0] if labels.ndim == 2 else labels).astype(np.int64)


def decide(outputs: np.ndarray, values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The predicted class of each example, its probability, and whether it is right."""
    predicted = _score(outputs).argmax(axis=1)
    return predicted, values[np.arange(len(values)), predicted], predicted == labels


def _score(outputs: np.ndarray) -> np.ndarray:
    """A score for each class; a single output is that of class 1, against 0."""
    return outputs if outputs.shape[1] > 1 else np.concatenate([np.zeros_like(outputs), outputs], axis=1)


def describe_evaluation(opened: OpenedRun, examples: Examples, result: Result) -> dict[str, Any]:
    """The figures that every evaluation has, and where they come from."""
    own_metrics = {name: value for name, value in result.figures.items() if name != PixelConfusions.title}
    return {
        "format": FORMAT,
        "run": None if opened.path is None else str(opened.path),
        "model": opened.config.model,
        "weights": opened.weights,
        "data": {
            "name": examples.source.name,
            "part": examples.name,
            "examples": len(examples.part),
            "own": examples.own,
        },
        "loss": result.loss,
        "accuracy": result.accuracy,
        **({"metrics": replace_non_finite(own_metrics)} if own_metrics else {}),
        "run_figures": _compare(opened, examples, result),
    }


def make_report(
    opened: OpenedRun, examples: Examples, predictor: Predictor, result: Result, outputs: np.ndarray
) -> Report:
    labels = examples.part.labels
    values = predictor.probabilities(outputs)
    names = predictor.name_outputs(values.shape[1])
    figures = describe_evaluation(opened, examples, result)
    none = np.zeros(0, np.int64)
    if examples.part.dense:
        confusions = np.array(result.figures[PixelConfusions.title])
        figures |= rate_pixels(confusions, names)
        drawn = predict_some(predictor, examples.part)
        return Report(
            figures=figures,
            names=names,
            confusions=confusions,
            mistakes=none,
            predicted=none,
            confidence=np.zeros(0),
            drawn=drawn,
        )
    if opened.loss == CENTERS:
        names = predictor.name_outputs(opened.data.outputs - GEOMETRY)
        figures |= rate_boxes(values, labels, names)
        empty: dict[str, Any] = {"confusions": None, "mistakes": none, "predicted": none, "confidence": np.zeros(0)}
        return Report(figures=figures, names=names, boxes=values, **empty)
    if opened.loss == "mse":
        figures |= _rate_values(outputs, labels, names)
        return Report(
            figures=figures, names=names, confusions=None, mistakes=none, predicted=none, confidence=np.zeros(0)
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        figures |= _rate_several(outputs, values, labels > 0.5, names)
        return Report(
            figures=figures, names=names, confusions=None, mistakes=none, predicted=none, confidence=np.zeros(0)
        )
    return _rate_classes(figures, examples, names, outputs=outputs, values=values, labels=as_classes(labels))


def _rate_classes(
    figures: dict[str, Any],
    examples: Examples,
    names: tuple[str, ...],
    *,
    outputs: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
) -> Report:
    """The figures of a classifier that gives one class to each example."""
    scores = _score(outputs)
    predicted, confidence, right = decide(outputs, values, labels)
    confusions = metrics.count_confusions(labels, predicted, len(names))
    rated = metrics.rate_classes(confusions)
    mistakes = metrics.rank_mistakes(confidence, right)[:LISTED]
    figures |= {
        "top5_accuracy": metrics.measure_top_accuracy(scores, labels, 5) if len(names) > 5 else None,
        "auc": metrics.measure_auc(metrics.score_positive(outputs), labels == 1) if len(names) == 2 else None,
        "calibration_error": metrics.measure_calibration(confidence, right),
        "adaptive_calibration_error": metrics.measure_adaptive_calibration(confidence, right),
        "calibration_bins": metrics.BINS,
        "macro": metrics.average_classes(rated),
        "classes": [{"name": name} | dataclasses.asdict(each) for name, each in zip(names, rated, strict=True)],
        "confusions": confusions.tolist(),
        "mistakes": int((~right).sum()),
        "most_confident_mistakes": [
            {
                "example": _name(examples, int(at)),
                "class": names[labels[at]],
                "predicted": names[predicted[at]],
                "probability": float(confidence[at]),
            }
            for at in mistakes
        ],
    }
    return Report(
        figures=figures,
        names=names,
        confusions=confusions,
        mistakes=mistakes,
        predicted=predicted,
        confidence=confidence,
    )


def _rate_several(
    outputs: np.ndarray, values: np.ndarray, targets: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """The figures of labels of which an example may have several: each label by itself, and macro averages."""
    rated = metrics.rate_labels(targets, outputs > 0)
    areas = [metrics.measure_auc(values[:, number], targets[:, number]) for number in range(len(names))]
    known = [area for area in areas if area is not None]
    return {
        "auc": float(np.mean(known)) if known else None,
        "macro": metrics.average_classes(rated),
        "labels": [
            {"name": name} | dataclasses.asdict(each) | {"auc": area}
            for name, each, area in zip(names, rated, areas, strict=True)
        ],
    }


def _rate_values(outputs: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """The figures of a regression, for each column."""
    targets = (targets[:, None] if targets.ndim == 1 else targets).astype(np.float64)
    errors = outputs.astype(np.float64) - targets
    squares, spread = (errors**2).mean(axis=0), targets.var(axis=0)
    return {
        "columns": [
            {
                "name": name,
                "mean_absolute_error": float(np.abs(errors[:, number]).mean()),
                "root_mean_squared_error": float(np.sqrt(squares[number])),
                "r_squared": float(1 - squares[number] / spread[number]) if spread[number] else None,
            }
            for number, name in enumerate(names)
        ]
    }


def _compare(opened: OpenedRun, examples: Examples, result: Result) -> dict[str, Any] | None:
    """The figures that the run itself recorded for these examples and weights, and whether they are the same; else None."""
    final = opened.run.get("final") or {}
    recorded = {"eval": ("eval_loss", "eval_accuracy"), "test": ("test_loss", "test_accuracy")}.get(examples.name)
    same_weights = opened.step == opened.run.get("steps") and opened.averaged == (opened.config.ema is not None)
    done = opened.run.get("exit", {}).get("code") == 0  # else the last evaluation may be of an earlier step
    if not (done and examples.own and same_weights) or recorded is None or final.get(recorded[0]) is None:
        return None
    loss, accuracy = (final.get(name) for name in recorded)
    return {
        "loss": loss,
        "accuracy": accuracy,
        "same": (loss, accuracy) == (result.loss, result.accuracy),
    }


def _name(examples: Examples, position: int) -> str | int:
    """The file of an example, or its number in the data where they are arrays."""
    number = int(examples.part.index[position])
    naming = getattr(examples.part.images, "name", None)
    return str(naming(number)) if naming is not None else number
