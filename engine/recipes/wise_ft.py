"""Finds the best weights between those that a run began with and those that it ended with (WiSE-FT, arXiv:2109.01903)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import EvalBatches
from engine.data.class_names import as_texts as as_class_texts
from engine.errors import InputError
from engine.files import PathLike, write_npz
from engine.porting.deltas.interpolation import RATIOS, interpolate
from engine.porting.deltas.record import BaseRecord, as_texts, find_digits, read_record_at
from engine.recipes.evaluate import find_last_selection
from engine.recipes.evaluation_data import Examples
from engine.recipes.reopen import OpenedRun, build_run_model, find_delta, load_run_weights
from engine.recipes.task import make_loss
from engine.selection.variables import name_variables
from engine.text import join_some
from engine.training.evaluation import Evaluator


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpolation:
    """The best weights between base and tuned ones.

    Attributes:
        ratio: 0 is the base, 1 what the run trained.
        each: for each ratio that was tried, its ``ratio``, ``loss`` and ``accuracy`` (None if the loss has none).
        examples: on how many examples it was chosen.
        values: the interpolated values of all variables that the run changed, by path.
        record: what a delta with these values says of its base.
    """

    ratio: float
    each: Sequence[Mapping[str, Any]]
    examples: int
    values: Mapping[str, np.ndarray]
    record: BaseRecord

    def to_json(self) -> dict[str, Any]:
        """The entry ``interpolation`` of evaluation.json."""
        return {"ratio": self.ratio, "examples": self.examples, "each": [dict(row) for row in self.each]}


def choose_ratio(
    opened: OpenedRun,
    examples: Examples,
    *,
    ratios: Sequence[float] = RATIOS,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[OpenedRun, Interpolation]:
    """Interpolates what a run changed with the values that it began with, at the ratio that does best on examples.

    The best one has the highest accuracy, then the lowest loss. Returns the opened run with these weights; its model is the
    one that was given, which now has them. The base is built again and compared with the digests that the run kept.

    Args:
        examples: those that decide, so that they cannot judge the result any more: the evaluation part, not the test part.
        ratios: those that are tried, each from 0 to 1.
        progress: called with the number of examples that are done, over all ratios.

    Raises:
        InputError: there is no delta of the run, or its base cannot be built again.
    """
    delta = find_delta(opened)
    record = None if delta is None else read_record_at(delta)
    if record is None or not record.began:
        raise InputError(
            f"run={opened.path}: it has no {'trained.npz' if delta is None else delta.name} that says from which values it "
            "started, so there is nothing to interpolate with; a run that has finished leaves one"
        )
    tuned = {entry.path: entry.variable.numpy() for entry in opened.variables if entry.path in record.began}
    base = _read_base(opened, record)
    own = opened.variables.by_path()
    given: dict[str, Any] = {
        "label_smoothing": opened.config.label_smoothing,
        "class_weights": opened.data.class_weights,
    }
    loss_fn = make_loss(opened.model, opened.config.loss, **given)
    evaluator, selection = Evaluator(loss_fn), find_last_selection(opened)
    size = batch_size or opened.data.eval_size
    batches = EvalBatches(examples.part, batch_size=size, normalise=opened.normalise)

    def put(ratio: float) -> dict[str, np.ndarray]:
        values = interpolate(base, tuned, ratio)
        for path, value in values.items():
            own[path].variable.assign(value)
        opened.variables.refresh()
        return values

    each: list[dict[str, Any]] = []
    for number, ratio in enumerate(ratios):
        put(ratio)
        result = evaluator(selection, batches)
        each.append({"ratio": ratio, "loss": result.loss, "accuracy": result.accuracy})
        progress((number + 1) * len(examples.part))
    best = float(max(each, key=_rank)["ratio"])
    values = put(best)
    text = f"{opened.weights}; interpolated with those that the run began with (ratio {best:g})"
    found = Interpolation(ratio=best, each=tuple(each), examples=len(examples.part), values=values, record=record)
    return dataclasses.replace(opened, weights=text, step=None), found


def write_interpolated(path: PathLike, opened: OpenedRun, found: Interpolation) -> None:
    """Writes the interpolated values as a delta, which goes onto the base of the run as its trained.npz does."""
    write_npz(path, found.values.items(), texts=as_class_texts(opened.data.output_names), packed=as_texts(found.record))


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """Higher is better; a loss that is not a number is the worst."""
    loss = row["loss"] if np.isfinite(row["loss"]) else np.inf
    return (-np.inf if loss == np.inf else row["accuracy"] or 0.0), -loss


def _read_base(opened: OpenedRun, record: BaseRecord) -> dict[str, np.ndarray]:
    """The values that the run began with, of the variables that it changed; InputError if they are not those any more."""
    model = build_run_model(opened.config, opened.data, opened.numbers)
    load_run_weights(dataclasses.replace(opened, model=model), opened.config.weights)
    entries = {entry.path: entry for entry in name_variables(model.network) if entry.path in record.began}
    wrong = [
        path for path, digits in record.began.items() if path not in entries or find_digits(entries[path]) != digits
    ]
    if wrong:
        raise InputError(
            f"run={opened.path}: --weights={opened.config.weights} does not give the values from which the run started "
            f"({join_some(wrong)}): the file has changed since, or another version of a library draws other initial values"
        )
    return {path: entry.variable.numpy() for path, entry in entries.items()}
