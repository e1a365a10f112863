"""Draws predictions.png: boxes, true and found, over images. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.files import PathLike, write_bytes
from engine.selection.layer_groups import elide_middle

SHOWN = 0.3  # the least score of a box that is drawn
_ACROSS = 4
# Okabe and Ito's colours, told apart from those of true boxes, which are dashed
_COLOURS = ("#E69F00", "#CC79A7", "#D55E00", "#F0E442", "#009E73", "#0072B2")
_TRUE = "#56B4E9"


def draw_boxes(
    path: PathLike, images: np.ndarray, truth: np.ndarray, found: np.ndarray, *, names: Sequence[str]
) -> None:
    """Draws the boxes of images, uint8 or float in [0, 1] [n, height, width, 1 or 3], side by side.

    Args:
        truth: [n, K, 5]: class, x1, y1, x2, y2 as shares of the sides; dashed. Class -1 is none.
        found: [n, D, 6]: class, score, x1, y1, x2, y2; drawn from the score ``SHOWN`` on, in the colour of the class.
        names: those of the classes.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(_ACROSS, len(images))
    rows = math.ceil(len(images) / across)
    height, width = images.shape[1:3]
    figure = Figure(figsize=(across * 3.0, rows * 3.0 * height / width + 0.5), facecolor="white", layout="constrained")
    for number, image in enumerate(images):
        axes = figure.add_subplot(rows, across, number + 1)
        image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]  # of other channels there is no picture
        grey = image.shape[-1] == 1
        top = 255 if image.dtype == np.uint8 else 1.0
        axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=top)
        own, seen = truth[number], found[number]
        own, seen = own[own[:, 0] >= 0], seen[(seen[:, 0] >= 0) & (seen[:, 1] >= SHOWN)]
        for box in own:
            _outline(axes, box[1:], image.shape, colour=_TRUE, style="--")
        for box in seen:
            _outline(axes, box[2:], image.shape, colour=_COLOURS[int(box[0]) % len(_COLOURS)], style="-")
        axes.set_title(f"{len(own)} objects, {len(seen)} found", fontsize=7, color="#1b2733")
        axes.axis("off")
    shown = names[: len(_COLOURS)]
    handles = [Line2D([], [], color=_TRUE, linestyle="--", linewidth=1.5), *_lines(len(shown))]
    labels = ["true", *(f"{elide_middle(name, 24)}, score at least {SHOWN:g}" for name in shown)]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=7)
    for text in legend.get_texts():  # names come from users: a $ in them does not begin a formula
        text.set_parse_math(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def _lines(count: int) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, linewidth=1.5) for colour in _COLOURS[:count]]


def _outline(axes: Any, box: np.ndarray, shape: tuple[int, ...], *, colour: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box * np.array([shape[1], shape[0], shape[1], shape[0]])
    given: dict[str, Any] = {"fill": False, "edgecolor": colour, "linestyle": style, "linewidth": 0.9}
    axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, **given))
