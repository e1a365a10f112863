"""Histograms of the trained variables and their gradients in the course of training: for TensorBoard, and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import PathLike, write_bytes
from engine.selection.layer_groups import part_names
from engine.selection.selection import Selection
from engine.training.step import TrainStep

_EDGES = np.linspace(-10.0, 2.0, 61)  # of log10 of the absolute value; smaller ones, and 0, fall into the first bin
_MOST_PARTS, _MOST_STEPS = 12, 6


class Histograms:
    """Collects histograms at evaluations, in a folder for TensorBoard. Needs the package tensorboard."""

    def __init__(self, folder: PathLike) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))
        self._kept: dict[str, dict[str, dict[int, np.ndarray]]] = {}

    def add(self, selection: Selection, found: Sequence[np.ndarray], step: int) -> None:
        """Adds the current values of the trained variables, and their gradients (``found``) in the same order."""
        names = part_names(selection.variables)
        with self._writer.as_default(step=step):
            for entry, gradient in zip(selection.trained, found, strict=True):
                value = np.asarray(entry.variable.numpy(), np.float64)
                for kind, array in (("weights", value), ("gradients", np.asarray(gradient, np.float64))):
                    tf.summary.histogram(f"{kind}/{entry.path}", array)
                    rows = self._kept.setdefault(names[entry.path], {}).setdefault(kind, {})
                    rows[step] = rows.get(step, np.zeros(len(_EDGES) - 1)) + _counts(array)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def draw(self, path: PathLike, title: str) -> None:
        """Draws a row for each part of the model, or the last ones of many: weights and gradients. Needs matplotlib."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        parts = list(self._kept)[-_MOST_PARTS:]
        hidden = len(self._kept) - len(parts)
        figure, panels = pyplot.subplots(
            len(parts), 2, figsize=(9, 1.3 + 1.5 * len(parts)), layout="constrained", sharex="col", squeeze=False
        )
        try:
            middle = (_EDGES[1:] + _EDGES[:-1]) / 2
            for row, part in zip(panels, parts, strict=True):
                for panel, kind in zip(row, ("weights", "gradients"), strict=True):
                    steps = _thin_out(sorted(self._kept[part][kind]))
                    for number, step in enumerate(steps):
                        counts = self._kept[part][kind][step]
                        # from pale to dark, and from thin to thick: the order can be seen without colour
                        shade = pyplot.get_cmap("viridis_r")(0.1 + 0.9 * number / max(1, len(steps) - 1))
                        width = 0.7 + 1.1 * number / max(1, len(steps) - 1)
                        panel.plot(middle, counts / max(counts.sum(), 1), color=shade, linewidth=width, label=str(step))
                    panel.set_yticks([])
                    panel.grid(alpha=0.25)
                row[0].set_ylabel(part, rotation=0, ha="right", va="center")
            for panel, kind in zip(panels[-1], ("weights", "gradients"), strict=True):
                panel.set_xlabel(f"log10 of the absolute value of {kind}")
            panels[0][1].legend(title="after steps", fontsize=7, title_fontsize=7, loc="upper left")
            figure.suptitle(title + (f" (the last {len(parts)} parts; {hidden} more train)" if hidden else ""))
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=110)
        finally:
            pyplot.close(figure)
        write_bytes(path, picture.getvalue())


def compute_gradients(step: TrainStep, selection: Selection, batch: Mapping[str, Any]) -> list[np.ndarray]:
    """Computes the gradients of a batch, in the order of the trained variables, without changing any variable.

    With micro-batches, only the examples of the first one count.
    """
    micro = step.micro_batch(selection, batch)
    tensors = {name: tf.convert_to_tensor(batch[name])[: step.micro_batch_size] for name in micro.inputs}
    state = micro.moved_variables(selection)
    before = [variable.numpy() for variable in state]
    count = float(next(iter(tensors.values())).shape[0])
    one = tf.ones([], tf.float64)
    found = micro.function(tensors, tf.fill([len(micro.terms)], tf.constant(count, tf.float64)), one, one)
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    return [gradient.numpy() for gradient in found["gradients"]]


def _counts(array: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log10(np.abs(array[np.isfinite(array)]))
    return np.histogram(np.clip(logs, _EDGES[0], _EDGES[-1]), _EDGES)[0].astype(np.float64)


def _thin_out(steps: list[int]) -> list[int]:
    """A few of many steps, the first and the last among them."""
    if len(steps) <= _MOST_STEPS:
        return steps
    return [steps[round(place)] for place in np.linspace(0, len(steps) - 1, _MOST_STEPS)]
