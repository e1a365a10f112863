"""Where boxes lie once their image has been resized, cropped or turned upright, and which of them remain.

Boxes are [..., 4]: x1, y1, x2, y2, their left, upper, right and lower edges, of which the last two lie outside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.data.decode import find_reduction, undo_orientation
from engine.data.header import Header
from engine.data.image_options import ImageForm, Size
from engine.data.resize import find_fit

KEPT = 0.25  # the least share of a box's area that must remain inside of an image


class Placement(NamedTuple):
    """Where ``engine.data.resize`` puts an image: a point p, in pixels from its upper left corner, goes to p * scale + offset.

    ``scale`` is that of both axes, (down, across). They differ only where a thin image is squeezed. ``area`` is the part of the resized image that the image fills: its first row and
    column, and its height and width; all around it is padding.
    """

    scale: tuple[float, float]
    left: float
    top: float
    area: tuple[int, ...]

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the image, in pixels of the resized one; they may reach over its edges."""
        return boxes * self._scales + np.array([self.left, self.top, self.left, self.top])

    def restore(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the resized image, in pixels of the image."""
        return (boxes - np.array([self.left, self.top, self.left, self.top])) / self._scales

    @property
    def _scales(self) -> np.ndarray:
        down, across = self.scale
        return np.array([across, down, across, down])


def find_placement(height: int, width: int, size: Size, *, ratio: int = 1, pad: bool = False) -> Placement:
    """Where an image of this size is put when it is resized to cover ``size``, (height, width), or, with ``pad``, to fit within it.

    ``ratio`` is the factor by which its decoder has reduced it before (engine.data.decode.find_reduction): then it is a little
    wider than its share where the factor does not divide its sides.
    """
    sides = -(-height // ratio), -(-width // ratio)
    if pad:
        inner, squeezed = find_fit(*sides, size)
        first = [(side - own) // 2 for side, own in zip(size, inner, strict=True)]
        if squeezed:
            down, across = (side / own / ratio for side, own in zip(inner, sides, strict=True))
            return Placement((down, across), first[1], first[0], (*first, *inner))
        found = find_placement(height, width, inner, ratio=ratio)
        return Placement(found.scale, found.left + first[1], found.top + first[0], (*first, *inner))
    scale = max(size[0] / sides[0], size[1] / sides[1])
    left, top = (size[1] - sides[1] * scale) / 2, (size[0] - sides[0] * scale) / 2
    return Placement((scale / ratio, scale / ratio), left, top, (0, 0, *size))


def place_boxes(boxes: np.ndarray, header: Header, form: ImageForm, *, stored: bool = False) -> np.ndarray:
    """Boxes in pixels of an image file, in pixels of the array that it becomes; they may reach over its edges.

    They refer to the image as viewers show it, upright, or with ``stored`` as it is stored.
    """
    if not stored:
        boxes = turn_upright(boxes, *header.upright, undo_orientation(header.orientation))
    return turn_upright(place_file(header, form).place(boxes), *_stored_size(header, form), header.orientation)


def restore_boxes(boxes: np.ndarray, header: Header, form: ImageForm) -> np.ndarray:
    """Boxes in pixels of the array that an image file becomes, in pixels of the image as viewers show it."""
    boxes = turn_upright(boxes, *form.size, undo_orientation(header.orientation))
    return turn_upright(place_file(header, form).restore(boxes), header.height, header.width, header.orientation)


def place_file(header: Header, form: ImageForm) -> Placement:
    """Where an image file, as it is stored, is put in the array that it becomes, before that is turned upright."""
    pad = form.options.image_fit == "pad"
    ratio = find_reduction(header, form.size, pad=pad)
    return find_placement(header.height, header.width, _stored_size(header, form), ratio=ratio, pad=pad)


def _stored_size(header: Header, form: ImageForm) -> Size:
    return form.size if header.orientation < 5 else form.size[::-1]


def turn_upright(boxes: np.ndarray, height: int, width: int, orientation: int) -> np.ndarray:
    """Boxes of an image (height, width) as it is stored, in pixels of the image turned upright.

    ``orientation`` is that of Exif, 1 to 8.
    """
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    if orientation >= 5:  # the axes are exchanged first, as in engine.data.decode
        x1, y1, x2, y2 = y1, x1, y2, x2
        height, width = width, height
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=-1)


def cut_boxes(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] cut at the edges of an image, and which of them remain, bool [n]: those with a share of ``KEPT`` in it."""
    limits = np.array([width, height, width, height], np.float64)
    inside = np.clip(boxes, 0.0, limits)
    return inside, areas(inside) >= KEPT * areas(boxes)


def areas(boxes: np.ndarray) -> np.ndarray:
    """The areas of boxes, [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
