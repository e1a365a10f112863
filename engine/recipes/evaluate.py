"""Evaluates a trained model: the figures of its run, and what else its outputs tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.data import EvalBatches, Part, corruptions
from engine.data.batch_names import join_inputs
from engine.data.batches import prefetch
from engine.data.corruptions import Corruption
from engine.data.tasks import has_label, view_part, view_task
from engine.errors import InputError
from engine.frostline.watch import frozen_output_norms
from engine.recipes.detections import for_boxes, rate_boxes
from engine.recipes.evaluation_data import Examples
from engine.recipes.joined import join_outputs, open_predictors
from engine.recipes.pixel_evaluation import check_outputs
from engine.recipes.predictor import Predictor
from engine.recipes.reopen import OpenedRun
from engine.recipes.reports import Report, as_classes, decide, describe_evaluation, make_report
from engine.recipes.task import choose_metrics, make_loss
from engine.selection.selection import Selection, select
from engine.text import join_words
from engine.training import metrics
from engine.training.dense_metrics import PixelConfusions
from engine.training.evaluation import Evaluator, Result
from engine.training.loss_names import CENTERS
from engine.training.losses import LossFunction


def evaluate(
    opened: OpenedRun,
    examples: Examples,
    *,
    batch_size: int | None = None,
    corrupt: Sequence[Corruption] = (),
    seed: int = 0,
    named: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Evaluates a model on examples (``engine.recipes.evaluation_data.open_examples``).

    Loss and accuracy are computed by what the run evaluates with, on the same batches: of the run's own data they are its
    own figures: to the bit where it evaluated from images, and up to rounding where from a cache. All others come from the outputs (engine.training.metrics).

    Args:
        batch_size: how many examples are computed at once; None as the run did. Another number may change last bits.
        corrupt: the corruptions through which the examples are seen as well (``engine.data.corruptions.parse``); the
            figures then have an entry "corruptions".
        seed: of the corruptions.
        named: the metrics to compute, as the flag ``metrics`` of ``finetune``; None for those of the run.
        progress: called with the number of examples that are done, those under corruptions included.

    Raises:
        PredictionError: an output is not finite.
        InputError: the examples that are to be corrupted are not images.
    """
    if corrupt and not all(each.is_image for each in examples.part.input_specs.values()):
        raise InputError(f"corrupt: {examples.source.name} has inputs that are not images; leave it out")
    if opened.tasks and corrupt:
        raise InputError(f"corrupt: the model has several outputs, {join_words(opened.tasks)}; leave it out")
    specs, dense = examples.part.input_specs, examples.part.dense
    predictors = open_predictors(opened, inputs=specs)
    if opened.loss == CENTERS and not opened.tasks:
        predictors = {"": for_boxes(predictors[""], examples.part)}
    elif not opened.tasks:
        check_outputs(predictors[""], examples.source.name, dense=dense)
    selection, compute = find_last_selection(opened), join_outputs(opened, predictors)
    loss_fn = _make_loss(opened, named, dense=dense)
    evaluator = Evaluator(loss_fn, watch=frozen_output_norms)  # the same graph: another may round otherwise
    done = 0

    def measure(part: Part) -> tuple[Result, list[np.ndarray]]:
        nonlocal done
        batches = EvalBatches(part, batch_size=batch_size or opened.data.eval_size, normalise=opened.normalise)
        found: list[list[np.ndarray]] = []

        def read() -> Iterator[Mapping[str, Any]]:
            nonlocal done
            each = iter(batches)
            for batch in prefetch(lambda _: next(each), range(len(batches))):
                yield batch
                if not dense:  # those of pixels would fill the memory; what they tell is measured with the loss
                    found.append([tensor.numpy() for tensor in compute(join_inputs(batch))])
                done += len(batch["index"])
                progress(done)

        result = evaluator(selection, read())
        if dense:
            return result, [np.zeros((0, opened.model.outputs))]
        return result, [np.concatenate(parts) for parts in zip(*found, strict=True)]

    result, outputs = measure(examples.part)
    if opened.tasks:
        return _report_tasks(opened, examples, predictors, result=result, outputs=outputs)
    predictor, present = predictors[""], np.flatnonzero(has_label(examples.part))
    if not len(present):
        raise InputError(f"data={examples.source.name}: no example of the {examples.name} part has a weight above 0")
    seen_here = dataclasses.replace(examples, part=examples.part.take(present))
    report = make_report(opened, seen_here, predictor, result, outputs[0] if dense else outputs[0][present])
    report = dataclasses.replace(report, mistakes=present[report.mistakes])  # as positions in the whole part
    if corrupt:
        seen = []
        for each in corrupt:
            there, (shifted,) = measure(corruptions.corrupted(examples.part, *each, seed=seed))
            seen.append((each, there, shifted if dense else shifted[present]))
        rated = _rate_corruptions(report, predictor, examples.part.labels[present], seen)
        report.figures["corruptions"] = rated | {"seed": seed}
    return report


def _make_loss(opened: OpenedRun, named: str | None, *, dense: bool) -> LossFunction:
    """The loss that the run evaluates with, and the metrics that are named, or its own."""
    config, data = opened.config, opened.data
    outputs = {task.name: (task.kind, task.outputs) for task in data.tasks}
    asked, alone = config.metrics if named is None else named, {"": (opened.loss, opened.model.outputs)}
    chosen = choose_metrics(asked, outputs or alone, dense=dense)
    if dense:
        chosen[""] = (*chosen[""], PixelConfusions())
    given: dict[str, Any] = {"label_smoothing": config.label_smoothing, "class_weights": data.class_weights}
    return make_loss(opened.model, config.loss, **given, metrics=chosen)


def _report_tasks(
    opened: OpenedRun,
    examples: Examples,
    predictors: Mapping[str, Predictor],
    *,
    result: Result,
    outputs: Sequence[np.ndarray],
) -> Report:
    """The report on all outputs of a model: each on the examples that have a label of it."""
    reports: dict[str, Report] = {}
    for (name, predictor), found in zip(predictors.items(), outputs, strict=True):
        part = view_part(examples.part, name)
        present = np.flatnonzero(has_label(part))
        if not len(present):
            continue
        own = {key.removesuffix(f"/{name}"): value for key, value in result.figures.items() if key.endswith(f"/{name}")}
        alone = len(predictors) == 1
        part_result = Result(
            loss=result.loss if alone else float(own.pop("loss")),  # type: ignore[arg-type]
            metrics={"accuracy": float(own.pop("accuracy"))} if "accuracy" in own else {},  # type: ignore[arg-type]
            per_example={},
            frozen_output_norm=None,
            figures=own,
        )
        seen = dataclasses.replace(examples, source=view_task(examples.source, name), part=part.take(present))
        view = dataclasses.replace(opened.for_task(name), run={})  # whose own figures are those of all outputs together
        reports[name] = make_report(view, seen, predictor, part_result, found[present])
    none = np.zeros(0, np.int64)
    figures = describe_evaluation(opened, examples, result)
    figures["tasks"] = {name: _without_origin(report.figures, figures) for name, report in reports.items()}
    return Report(
        figures=figures,
        names=(),
        confusions=None,
        mistakes=none,
        predicted=none,
        confidence=np.zeros(0),
        tasks=reports,
    )


def _without_origin(figures: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one output, without what the report on all of them says of the run."""
    said = {"format", "run", "model", "weights", "run_figures", "data"}
    return {"examples": figures["data"]["examples"]} | {k: v for k, v in figures.items() if k not in said & set(whole)}


def _rate_corruptions(
    report: Report, predictor: Predictor, labels: np.ndarray, seen: Sequence[tuple[Corruption, Result, np.ndarray]]
) -> dict[str, Any]:
    """Loss, accuracy and calibration error under each corruption, and their means over the corruptions."""
    own = [name for name in ("calibration_error", "ap50") if name in report.figures]
    names = ("loss", "accuracy", *own)
    each: list[dict[str, Any]] = []
    for corruption, result, outputs in seen:
        values = predictor.probabilities(outputs)
        found = {"loss": result.loss, "accuracy": result.accuracy}
        if "ap50" in names:
            found["ap50"] = rate_boxes(values, labels, report.names)["ap50"]
        if "calibration_error" in names:
            _, confidence, right = decide(outputs, values, as_classes(labels))
            found["calibration_error"] = metrics.measure_calibration(confidence, right)
        each.append(corruption._asdict() | found)
    found_all = {name: [entry[name] for entry in each] for name in names}
    chosen = [corruption for corruption, *_ in seen]
    means = {
        name: None if None in column else corruptions.average(chosen, column) for name, column in found_all.items()
    }
    return {"each": each, "mean": means}


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
