"""Evaluates a trained model: the figures of its run, to the bit, and what else its outputs tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import EvalBatches, Part, corruptions
from engine.data.batches import prefetch
from engine.data.corruptions import Corruption
from engine.frostline.watch import frozen_output_norms
from engine.recipes.evaluation_data import Examples
from engine.recipes.predictor import Predictor
from engine.recipes.reopen import OpenedRun
from engine.recipes.task import make_loss
from engine.selection.selection import Selection, select
from engine.training import metrics
from engine.training.evaluation import Evaluator, Result

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
    """

    figures: dict[str, Any]
    names: tuple[str, ...]
    confusions: np.ndarray | None
    mistakes: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def evaluate(
    opened: OpenedRun,
    examples: Examples,
    *,
    batch_size: int | None = None,
    corrupt: Sequence[Corruption] = (),
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Evaluates a model on examples (``engine.recipes.evaluation_data.open_examples``).

    Loss and accuracy are computed by what the run evaluates with, on the same batches: of the run's own data they are its
    own figures, to the bit. All others come from the outputs (engine.training.metrics).

    Args:
        batch_size: how many examples are computed at once; None as the run did. Another number may change last bits.
        corrupt: the corruptions through which the examples are seen as well (``engine.data.corruptions.parse``); the
            figures then have an entry "corruptions".
        seed: of the corruptions.
        progress: called with the number of examples that are done, those under corruptions included.

    Raises:
        PredictionError: an output is not finite.
    """
    predictor, selection = opened.predictor(), find_last_selection(opened)
    loss_fn = make_loss(opened.model, opened.config.loss, label_smoothing=opened.config.label_smoothing)
    evaluator = Evaluator(loss_fn, watch=frozen_output_norms)  # the same graph: another may round otherwise
    done = 0

    def measure(part: Part) -> tuple[Result, np.ndarray]:
        nonlocal done
        batches = EvalBatches(part, batch_size=batch_size or opened.data.eval_size, normalise=opened.normalise)
        found: list[np.ndarray] = []

        def read() -> Iterator[Mapping[str, Any]]:
            nonlocal done
            each = iter(batches)
            for batch in prefetch(lambda _: next(each), range(len(batches))):
                yield batch
                found.append(predictor.outputs(batch["image"]))
                done += len(found[-1])
                progress(done)

        return evaluator(selection, read()), np.concatenate(found)

    result, outputs = measure(examples.part)
    report = _report(opened, examples, predictor, result, outputs)
    if corrupt:
        seen = [(each, *measure(corruptions.corrupted(examples.part, *each, seed=seed))) for each in corrupt]
        report.figures["corruptions"] = _rate_corruptions(report, predictor, examples.part.labels, seen) | {
            "seed": seed
        }
    return report


def _rate_corruptions(
    report: Report, predictor: Predictor, labels: np.ndarray, seen: Sequence[tuple[Corruption, Result, np.ndarray]]
) -> dict[str, Any]:
    """Loss, accuracy and calibration error under each corruption, and their means over the corruptions."""
    names = ("loss", "accuracy", *(["calibration_error"] if "calibration_error" in report.figures else []))
    each: list[dict[str, Any]] = []
    for corruption, result, outputs in seen:
        values = predictor.probabilities(outputs)
        found = {"loss": result.loss, "accuracy": result.metrics.get("accuracy")}
        if "calibration_error" in names:
            _, confidence, right = _decide(outputs, values, _as_classes(labels))
            found["calibration_error"] = metrics.measure_calibration(confidence, right)
        each.append(corruption._asdict() | found)
    found_all = {name: [entry[name] for entry in each] for name in names}
    chosen = [corruption for corruption, *_ in seen]
    means = {
        name: None if None in column else corruptions.average(chosen, column) for name, column in found_all.items()
    }
    return {"each": each, "mean": means}


def _as_classes(labels: np.ndarray) -> np.ndarray:
    """Labels [n] or [n, 1] as the numbers of classes, int64 [n]."""
    return (labels[:, 0] if labels.ndim == 2 else labels).astype(np.int64)


def _decide(outputs: np.ndarray, values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The predicted class of each example, its probability, and whether it is right."""
    predicted = _score(outputs).argmax(axis=1)
    return predicted, values[np.arange(len(values)), predicted], predicted == labels


def _score(outputs: np.ndarray) -> np.ndarray:
    """A score for each class; a single output is that of class 1, against 0."""
    return outputs if outputs.shape[1] > 1 else np.concatenate([np.zeros_like(outputs), outputs], axis=1)


def find_last_selection(opened: OpenedRun) -> Selection:
    """What the last phase of the run trained; everything, where no run.json says it."""
    whole = select(opened.variables, "@all")
    phases = opened.run.get("phases") or [{}]
    trained, moving = (set(phases[-1].get(name, ())) for name in ("trained", "moving"))
    own = {entry.path for entry in opened.variables}
    if not trained or not trained | moving <= own:
        return whole
    return dataclasses.replace(
        whole,
        trained=tuple(entry for entry in opened.variables if entry.path in trained),
        moving=tuple(entry for entry in opened.variables if entry.path in moving),
        frozen=tuple(entry for entry in opened.variables if entry.path not in trained | moving),
    )


def _report(opened: OpenedRun, examples: Examples, predictor: Predictor, result: Result, outputs: np.ndarray) -> Report:
    labels = examples.part.labels
    values = predictor.probabilities(outputs)
    names = predictor.name_outputs(values.shape[1])
    figures: dict[str, Any] = {
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
        "accuracy": result.metrics.get("accuracy"),
        "run_figures": _compare(opened, examples, result),
    }
    none = np.zeros(0, np.int64)
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
    return _rate_classes(figures, examples, names, outputs=outputs, values=values, labels=_as_classes(labels))


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
    predicted, confidence, right = _decide(outputs, values, labels)
    confusions = metrics.count_confusions(labels, predicted, len(names))
    rated = metrics.rate_classes(confusions)
    mistakes = metrics.rank_mistakes(confidence, right)[:LISTED]
    figures |= {
        "top5_accuracy": metrics.measure_top_accuracy(scores, labels, 5) if len(names) > 5 else None,
        "auc": metrics.measure_auc(scores[:, 1] - scores[:, 0], labels == 1) if len(names) == 2 else None,
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
        "same": (loss, accuracy) == (result.loss, result.metrics.get("accuracy")),
    }


def _name(examples: Examples, position: int) -> str | int:
    """The file of an example, or its number in the data where they are arrays."""
    number = int(examples.part.index[position])
    naming = getattr(examples.part.images, "name", None)
    return str(naming(number)) if naming is not None else number
