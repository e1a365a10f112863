"""The files that a run leaves behind: metrics.jsonl, curves.png, TensorBoard scalars, trained.npz, run.json."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.class_names import Names, as_texts
from engine.files import PathLike, write_bytes, write_json, write_npz
from engine.host import quantiles
from engine.porting.deltas.adapters import AdaptersRecord
from engine.porting.deltas.adapters import as_texts as as_adapter_texts
from engine.porting.deltas.record import as_texts as as_base_text
from engine.porting.deltas.record import take_record
from engine.reading import read_file
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables
from engine.training.auto_freeze import Move
from engine.training.loop import Event
from engine.training.phases import Evaluation
from engine.writing import append_text, is_full, no_space

_LARGEST = 1 << 30  # bytes of metrics.jsonl
RUN_FORMAT = 1  # of run.json; runs before it wrote none


class Metrics:
    """The file metrics.jsonl: one JSON object per line, each written at once."""

    def __init__(self, path: PathLike, *, keep_to_step: int = -1) -> None:
        """Opens a file; an existing one keeps its lines up to ``keep_to_step`` (a resume)."""
        self.path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self.rows = [row for row in _rows(self.path) if row["step"] <= keep_to_step]
        write_bytes(self.path, "".join(map(_line, self.rows)).encode())

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        append_text(self.path, _line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(replace_non_finite(row)) + "\n"


def _rows(path: pathlib.Path) -> Iterable[dict[str, Any]]:
    for line in read_file(path, _LARGEST).decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a killed run may be half written
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def train_row(event: Event, means: Mapping[str, float]) -> dict[str, Any]:
    """The line of kind=train for a step; ``means`` are those of the metrics since the line before."""
    assert event.result is not None
    return {
        "kind": "train",
        "step": event.state.step,
        "phase": event.stage.phase.name,
        "loss": float(event.result.loss),
        "learning_rate": event.learning_rate,
        **({} if event.rates is None else {"rates": event.rates.by_filter()}),
        "examples_per_second": event.examples / event.seconds,
        "grad_norm": float(event.result.grad_norm),
        "loss_scale": event.result.loss_scale,
        "skipped": event.skipped,
        **means,
    }


def eval_row(evaluation: Evaluation) -> dict[str, Any]:
    """The line of kind=eval for an evaluation."""
    return {
        "kind": "eval",
        "step": evaluation.step,
        "phase": evaluation.phase,
        "eval_loss": evaluation.loss,
        "eval_accuracy": evaluation.accuracy,
        **name_figures(evaluation),
        "frozen_output_norm": evaluation.frozen_output_norm,
    }


def name_figures(evaluation: Evaluation | None) -> dict[str, Any]:
    """The figures of the metrics as files call them: ``eval_f1`` and so on; none without an evaluation."""
    return {} if evaluation is None else {f"eval_{name}": value for name, value in evaluation.figures.items()}


def freeze_row(move: Move) -> dict[str, Any]:
    """The line of kind=freeze for a move of the frost line."""
    return {"kind": "freeze", **move.to_json()}


class TensorBoard:
    """Scalars for TensorBoard, and histograms of trained variables if wanted. Needs the package tensorboard."""

    def __init__(self, folder: PathLike, *, histograms: bool = False) -> None:
        self._histograms, self._folder = histograms, pathlib.Path(folder)
        with self._explain_no_space():
            self._writers = {
                kind: tf.summary.create_file_writer(str(self._folder / kind)) for kind in ("train", "eval")
            }

    def add(self, row: Mapping[str, Any]) -> None:
        with self._explain_no_space(), self._writers[row["kind"]].as_default(step=row["step"]):
            for name, value in row.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
                elif isinstance(value, dict):
                    for key, number in value.items():
                        tf.summary.scalar(f"{name}/{key}", number)

    def add_histograms(self, selection: Selection, step: int) -> None:
        if self._histograms:
            with self._explain_no_space(), self._writers["train"].as_default(step=step):
                for entry in (*selection.trained, *selection.moving):
                    tf.summary.histogram(entry.path, entry.variable)

    def close(self) -> None:
        with self._explain_no_space():
            for writer in self._writers.values():
                writer.close()

    @contextlib.contextmanager
    def _explain_no_space(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            if (full := is_full(str(error))) is None:
                raise
            raise no_space(full, self._folder, 0) from None


def draw_curves(path: PathLike, rows: Sequence[Mapping[str, Any]], phases: Sequence[tuple[str, int]]) -> None:
    """Draws loss and accuracy over steps; ``phases`` are (name, first step). Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    try:
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        for panel, title in zip(panels, ("loss", "accuracy"), strict=True):
            for kind, first, style, label in (
                ("train", title, "-", "train (step)"),
                ("eval", f"eval_{title}", "o-", "evaluation"),
            ):
                own = [row for row in rows if row["kind"] == kind]
                for key in sorted({key for row in own for key in row if key == first or key.startswith(f"{first}/")}):
                    points = [(row["step"], row[key]) for row in own if row.get(key) is not None]
                    if points:  # with several outputs also those of each
                        shown = " ".join([label, *key.split("/")[1:]])
                        panel.plot(*zip(*points, strict=True), style, markersize=4, linewidth=1.2, label=shown)
            for name, start in phases:
                panel.axvline(start, color="grey", linewidth=0.8, linestyle=":")
                panel.annotate(name, (start, 1.0), xytext=(3, -12), color="grey", fontsize=8, **place)
            panel.set(title=title, xlabel="step")
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(loc="center right")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
    finally:
        pyplot.close(figure)
    write_bytes(path, picture.getvalue())


def write_trained(
    path: PathLike,
    variables: ModelVariables,
    selections: Iterable[Selection],
    *,
    class_names: Names | None = None,
    adapters: AdaptersRecord | None = None,
    began: Mapping[str, str] | None = None,
) -> None:
    """Writes a delta: every variable that a phase trained, and the statistics that moved with them.

    Beside them are the names of the classes, the adapters of the model, and the digests of all other variables, its base; ``began`` has the digests
    of the values from which the run started (engine.porting.deltas.record).
    """
    paths = list_changing(selections)
    arrays = ((e.path, e.variable.numpy()) for e in variables if e.path in paths)
    base = as_base_text(take_record(variables, paths, began))
    write_npz(path, arrays, texts=as_texts(class_names) | as_adapter_texts(adapters), packed=base)


def list_changing(selections: Iterable[Selection]) -> set[str]:
    """The paths of the variables that selections train, and of the statistics that move with them."""
    return {entry.path for selection in selections for entry in (*selection.trained, *selection.moving)}


def write_run(path: PathLike, value: Mapping[str, Any]) -> None:
    """Writes run.json; numbers that JSON cannot hold become null."""
    write_json(path, replace_non_finite(value))


def phase_row(
    selection: Selection, *, name: str, from_step: int, to_step: int, reason: str, changed: Sequence[str]
) -> dict[str, Any]:
    """An element of the entry ``phases`` of run.json."""
    return {
        "name": name,
        "from_step": from_step,
        "to_step": to_step,
        "trained": [entry.path for entry in selection.trained],
        "moving": [entry.path for entry in selection.moving],
        **({} if selection.losses is None else {"losses": list(selection.losses)}),
        "trained_parameters": selection.trained_parameters,
        "frozen_parameters": selection.frozen_parameters,
        "reason": reason,
        "freeze_proof": {"verified": not changed, "variables": len(selection.frozen), "changed": list(changed)},
    }


def timing(
    total_seconds: float, first_step_seconds: float | None, step_seconds: Sequence[float], examples: int
) -> dict[str, Any]:
    """The entry ``timing`` of run.json; the quantiles leave out steps that traced."""
    none = {"median": None, "p10": None, "p90": None}
    return {
        "total_seconds": total_seconds,
        "first_step_seconds": first_step_seconds,
        "step_ms": quantiles(np.array(step_seconds) * 1e3) if len(step_seconds) else none,
        "examples_per_second": examples / float(sum(step_seconds)) if step_seconds else None,
    }


def replace_non_finite(value: Any) -> Any:
    """A value for JSON, which has no nan: numbers in it that are not finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(item) for item in value]
    return value
