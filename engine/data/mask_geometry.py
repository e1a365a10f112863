"""Classes of pixels go back to the size of their image file, by the rule that says where boxes lie (engine.data.box_geometry)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.data.box_geometry import place_file
from engine.data.decode import turn_pixels, undo_orientation
from engine.data.header import Header
from engine.data.image_options import ImageForm
from engine.data.part import DataError
from engine.data.resize import HALF

_AT_ONCE = 1 << 22  # probabilities that are resized at once
_MOST = np.iinfo(np.uint16).max


def choose_label_dtype(classes: int) -> np.dtype[Any]:
    """The dtype of a label image: uint8 for up to 255 classes, else uint16. Its largest number stands for no class.

    Raises DataError for more classes than uint16 has numbers.

    Example:
        >>> choose_label_dtype(255), choose_label_dtype(256)
        (dtype('uint8'), dtype('uint16'))
    """
    if classes > _MOST:
        raise DataError(f"classes={classes:,}: a label image has numbers for at most {_MOST:,} classes")
    return np.dtype(np.uint8 if classes <= np.iinfo(np.uint8).max else np.uint16)


class _Axis(NamedTuple):
    """For each pixel of a side: the two places of the array that it lies between, the share of the second, and whether it is in it."""

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    inside: np.ndarray


def restore_labels(chances: np.ndarray, header: Header, form: ImageForm) -> np.ndarray:
    """The most probable class of each pixel of an image file, from probabilities [h, w, classes] for the array that it became.

    Probabilities are interpolated between the four nearest places of the array (bilinear), and the largest one decides; of
    equal ones, the first. Where the image was cropped, pixels have no class: the largest number of the dtype.

    Args:
        chances: float [h, w, classes], of the array as ``engine.data.image_files.read_image`` gives it in this form.
        header: that of the file.

    Returns labels of ``choose_label_dtype``, [height, width] of the image as viewers show it, upright.
    """
    dtype = choose_label_dtype(chances.shape[-1])
    placed, stored = place_file(header, form), turn_pixels(chances, undo_orientation(header.orientation))
    # Padding rounds the image to whole pixels: what that cuts is less than half of one, and lies beside a pixel that was seen.
    margin = HALF if form.options.image_fit == "pad" else 0.0
    top, left, height, width = placed.area
    rows = _find_places(header.height, placed.scale[0], placed.top, (top, height), margin)
    columns = _find_places(header.width, placed.scale[1], placed.left, (left, width), margin)
    labels = np.full((header.height, header.width), np.iinfo(dtype).max, dtype)
    across = np.flatnonzero(columns.inside)
    low, high, share = columns.low[across], columns.high[across], columns.share[across, None]
    down = np.flatnonzero(rows.inside)
    step = max(1, _AT_ONCE // max(1, len(across) * chances.shape[-1]))
    for begin in range(0, len(down), step):
        some = down[begin : begin + step]
        between = _mix(stored[rows.low[some]], stored[rows.high[some]], rows.share[some, None, None])
        labels[some[:, None], across] = _mix(between[:, low], between[:, high], share).argmax(axis=-1)
    return np.ascontiguousarray(turn_pixels(labels, header.orientation))


def _find_places(count: int, scale: float, offset: float, area: tuple[int, int], margin: float) -> _Axis:
    """Where the centres of ``count`` pixels lie, along one axis of the array."""
    first, length = area
    centres = (np.arange(count) + 0.5) * scale + offset
    inside = (centres >= first - margin) & (centres < first + length + margin)
    places = np.clip(centres - 0.5, first, first + length - 1)
    low = np.floor(places).astype(np.int64)
    return _Axis(low, np.minimum(low + 1, first + length - 1), places - low, inside)


def _mix(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = one * (1 - share) + other * share
    return mixed
