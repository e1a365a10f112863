"""Draws images with the outlines of their masks, the true and the predicted ones. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.part import IGNORED
from engine.files import PathLike, write_bytes
from engine.selection.layer_groups import elide_middle

NAME = "predictions.png"
MOST = 6  # images
_ACROSS = 5.0  # inches of a picture with a legend
_COLUMNS = 4  # of a legend, at most
_LONGEST = 24  # characters of a name in it
_NARROW = frozenset("abcdefghijklnopqrstuvxyz0123456789 -_.,'/()")
_NAMED = 1000  # classes that a legend names at most
_COLOURS = 9  # that are told apart
_SCALE = 3  # a pixel of an image becomes so many, so that outlines are thin
MOST_PIXELS = 1024  # of the longer side of an image that is drawn alone


def choose_examples(count: int) -> np.ndarray:
    """The positions of the examples that are drawn: at most ``MOST``, evenly spread over all.

    Example:
        >>> choose_examples(3).tolist(), choose_examples(12).tolist()
        ([0, 1, 2], [0, 2, 4, 6, 8, 10])
    """
    return np.arange(count)[:: max(1, count // MOST)][:MOST]


def find_outlines(labels: np.ndarray, *, ignored: int = IGNORED) -> np.ndarray:
    """Which pixels of labels [height, width] have a neighbour to the left, right, above or below of another class.

    Those of the class 0, the background, are left out, and so are ignored ones.
    """
    padded = np.pad(labels, 1, mode="edge")
    other = np.zeros(labels.shape, bool)
    for rows, columns in ((slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1)), (slice(1, -1), slice(0, -2)), (slice(1, -1), slice(2, None))):  # fmt: skip
        other |= padded[rows, columns] != labels
    return other & (labels != 0) & (labels != ignored)


def draw_masks(
    path: PathLike, images: np.ndarray, truths: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> None:
    """Draws each image twice, with the outlines of its true and of its predicted classes; ignored pixels are greyed.

    Args:
        images: uint8 or float in [0, 1], [n, height, width, 1 or 3].
        truths, predictions: classes [n, height, width], ``IGNORED`` where a pixel does not count.
        names: the names of the classes.
    """
    from matplotlib.figure import Figure

    colours = _choose_colours()
    height, width = images.shape[1:3]
    numbers = np.unique([truths, predictions])
    used = [names[number] for number in numbers.tolist() if 0 < number < len(names)]
    below = max(1.0, 0.4 + _height(used))  # inches for the legend and the titles
    figure = Figure(
        figsize=(_ACROSS, len(images) * _ACROSS / 2 * height / width + below), facecolor="white", layout="constrained"
    )
    for row, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
        for column, (labels, title) in enumerate(((truth, "truth"), (prediction, "prediction"))):
            axes = figure.add_subplot(len(images), 2, 2 * row + column + 1)
            axes.imshow(_outlined(image, labels, truth == IGNORED, colours, scale=_SCALE))
            axes.axis("off")
            if row == 0:
                axes.set_title(title, fontsize=9, color="#1b2733")
    _name_classes(figure, numbers, names, colours)
    _save(path, figure)


def draw_outlines(path: PathLike, image: np.ndarray, labels: np.ndarray, *, lost: int) -> None:
    """Draws an image alone, with the outlines of its classes as ``draw_masks`` draws them; those of ``lost`` are greyed.

    Args:
        image: uint8 or float in [0, 1], [height, width, channels].
        labels: classes [height, width], and ``lost`` where a pixel has none.

    Raises ImportError without matplotlib, which has the colours.
    """
    scale = max(1, min(_SCALE, MOST_PIXELS // max(labels.shape)))
    drawn = _outlined(image, labels, labels == lost, _choose_colours(), scale=scale, lost=lost)
    write_bytes(path, tf.io.encode_png(np.rint(255 * drawn).astype(np.uint8)).numpy())


def draw_legend(path: PathLike, names: Sequence[str]) -> None:
    """Draws the names of the classes beside the colours of their outlines; those of many classes repeat.

    Of more than ``_NAMED`` classes, it says how many are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_ACROSS, 0.4 + _height(names)), facecolor="white")
    _name_classes(figure, np.arange(len(names)), names, _choose_colours(), place="center")
    _save(path, figure)


def _list_labels(names: Sequence[str]) -> list[str]:
    """What a legend of these classes says: their names, and of very many how many more there are."""
    more = len(names) - _NAMED
    shown = [elide_middle(name, _LONGEST) for name in names[:_NAMED]]
    return [*shown, f"and {more:,} more, named in the table"] if more > 0 else shown


def _height(names: Sequence[str]) -> float:
    """The height of a legend of these classes, in inches."""
    labels = _list_labels(names)
    return 0.2 * -(-len(labels) // _fit_columns(labels))


def _fit_columns(labels: Sequence[str]) -> int:
    """How many columns of these labels lie side by side in the width of a picture: capitals and other scripts are wide."""
    longest = max((sum(1.0 if letter in _NARROW else 1.7 for letter in label) for label in labels), default=1)
    return max(1, min(_COLUMNS, int(_ACROSS / (0.55 + 0.067 * longest))))


def _choose_colours() -> Any:
    import matplotlib

    return matplotlib.colormaps["Set1"]  # red first, which is seen on dark and on bright images


def _name_classes(
    figure: Any, numbers: np.ndarray, names: Sequence[str], colours: Any, *, place: str = "outside lower center"
) -> None:
    """Adds the names of these classes in their colours; of very many, how many more there are."""
    from matplotlib.patches import Patch

    used = [number for number in numbers.tolist() if 0 < number < len(names)]
    labels = _list_labels([names[number] for number in used])
    shown = [
        Patch(color=colours((number - 1) % _COLOURS), label=label)
        for number, label in zip(used[:_NAMED], labels, strict=False)
    ]
    shown += [Patch(alpha=0.0, label=label) for label in labels[len(shown) :]]
    legend = figure.legend(handles=shown, loc=place, ncols=_fit_columns(labels), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names come from users: a $ in them does not begin a formula


def _save(path: PathLike, figure: Any) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())


def _outlined(
    image: np.ndarray, labels: np.ndarray, ignored: np.ndarray, colours: Any, *, scale: int, lost: int = IGNORED
) -> np.ndarray:
    """An image as float RGB, ``scale`` times as large, with the outlines of its classes in their colours."""
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]  # of other channels there is no picture
    shown = image.astype(np.float64) / (255.0 if image.dtype == np.uint8 else 1.0)
    shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown.copy()
    shown[ignored] = 0.5 * shown[ignored] + 0.4
    shown, large = (each.repeat(scale, axis=0).repeat(scale, axis=1) for each in (shown, labels))
    edges = find_outlines(large, ignored=lost)
    for number in np.unique(large[edges]):
        shown[edges & (large == number)] = colours((int(number) - 1) % _COLOURS)[:3]
    return shown
