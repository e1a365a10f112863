"""Draws an evaluation: the confusion matrix, and the most confident mistakes. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np

from engine.files import PathLike, write_bytes
from engine.selection.layer_groups import elide_middle

_MOST_NUMBERS = 25  # classes up to which the cells have numbers
_MOST_NAMES = 60  # classes up to which the axes have names
_ACROSS = 6  # pictures of mistakes side by side


def draw_confusions(path: PathLike, confusions: np.ndarray, names: Sequence[str]) -> None:
    """Draws a confusion matrix: rows are the true classes, colours the share of a row, numbers the examples."""
    from matplotlib.figure import Figure

    count = len(names)
    side = min(14.0, max(4.0, 0.42 * count + 1.5))
    figure = Figure(figsize=(side + 1.0, side), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    shares = confusions / np.maximum(confusions.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    if count <= _MOST_NAMES:
        # names come from users: a $ in them does not begin a formula
        labels = [elide_middle(name, 24) for name in names]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(count), labels, fontsize=8, parse_math=False)
    if count <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(confusions), strict=True):
            colour = "white" if shares[row, column] > 0.55 else "#1b2733"
            text = f"{confusions[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    _write(path, figure)


def draw_mistakes(path: PathLike, images: np.ndarray, titles: Sequence[tuple[str, str]]) -> None:
    """Draws images, uint8 or float in [0, 1] [n, height, width, channels], each under two lines of text.

    Of other than 1 or 3 channels, the first one is drawn, or the first three.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(images) / _ACROSS)
    figure = Figure(figsize=(_ACROSS * 1.9, rows * 2.3), facecolor="white", layout="constrained")
    for number, (image, (first, second)) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, _ACROSS, number + 1)
        grey = image.shape[-1] < 3
        limits = (0, 255) if image.dtype == np.uint8 else (0.0, 1.0)
        axes.imshow(
            image[..., 0] if grey else image[..., :3], cmap="gray" if grey else None, vmin=limits[0], vmax=limits[1]
        )
        text = f"{elide_middle(first, 30)}\n{elide_middle(second, 30)}"
        axes.set_title(text, fontsize=7, color="#1b2733", parse_math=False)
        axes.axis("off")
    _write(path, figure)


def _write(path: PathLike, figure: object) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)  # type: ignore[attr-defined]
    write_bytes(path, picture.getvalue())
