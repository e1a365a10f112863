"""Resizes images to the size of a model's input: the shorter side is fitted and the longer one centre-cropped, or the
longer side is fitted and the shorter one padded, so that nothing of the image is lost.

The resampling is antialiased bilinear with half-pixel centres, as in ``tf.image.resize(antialias=True)``, but crops in
the same pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.data.part import DataError

Size = tuple[int, int]  # height, width
LARGEST_SIDE = 8192
HALF = 0.5  # of a pixel: less than that may lie beyond the edge of an array, beside a pixel that was seen
_CHUNK = 256  # the number of images resized in one call


def parse_image_size(text: str) -> Size:
    """Reads a (height, width) in pixels, 1 to 8192, from a text: ``N`` or ``HxW``; raises DataError for any other."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:[xX×]\s*(\d{1,6})\s*)?", text)
    if match is None:
        raise DataError(f"image_size={text!r}: expected N or HEIGHTxWIDTH in pixels, such as 224 or 192x256")
    height, width = int(match.group(1)), int(match.group(2) or match.group(1))
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise DataError(f"image_size={text!r}: a side must have 1 to {LARGEST_SIDE} pixels")
    return height, width


def check_image_size(size: Any) -> Size | None:
    """A size given as None, a whole number, (height, width) or a text, as (height, width); DataError for any other."""
    if size is None:
        return None
    if isinstance(size, str):
        return parse_image_size(size)
    sides = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) else (size, size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, (int, np.integer)) for side in sides):
        raise DataError(f"image_size={size!r}: expected N or (height, width) in pixels, such as 224 or (192, 256)")
    return parse_image_size(f"{sides[0]}x{sides[1]}")


def resize(images: Any, size: Size) -> np.ndarray:
    """Resizes images [n, height, width, channels] to [n, *size, channels], keeping their dtype.

    They are uint8, or float32 in [0, 1]; an array or a tensor (which is not copied).
    """
    height, width = images.shape[1:3]
    if (height, width) == size:
        return np.asarray(images)
    scale = max(size[0] / height, size[1] / width)
    # Nearly all of a panorama is cropped away and need not be resized.
    reach = max(1.0, 1.0 / scale) + 1.0
    top, left = (max(0, int((side - want / scale) / 2 - reach)) for side, want in ((height, size[0]), (width, size[1])))
    if 2 * top > height // 2 or 2 * left > width // 2:
        images = images[:, top : height - top, left : width - left]
        height, width = images.shape[1:3]
    offset = [(size[0] - height * scale) / 2, (size[1] - width * scale) / 2]
    return _translate(images, size, (scale, scale), offset)


def _translate(images: Any, size: Size, scale: Sequence[float], offset: Sequence[float]) -> np.ndarray:
    """Images scaled down and across, and moved, in [n, *size, channels] of the same dtype."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        floats = tf.raw_ops.ScaleAndTranslate(
            images=images,
            size=tf.constant(size, tf.int32),
            scale=tf.constant(scale, tf.float32),
            translation=tf.constant(offset, tf.float32),
            kernel_type="triangle",
            antialias=True,
        ).numpy()
    if tf.as_dtype(images.dtype) == tf.uint8:
        return np.clip(np.rint(floats), 0, 255).astype(np.uint8)
    return np.clip(floats, 0.0, 1.0)


class Fit(NamedTuple):
    """How an image fits within a size: the (height, width) that it fills, and whether its proportions change for that.

    They change where whole pixels at its ends would be cropped otherwise, because its short side is rounded up to whole pixels.
    """

    inner: Size
    squeezed: bool


def find_fit(height: int, width: int, size: Size) -> Fit:
    """How an image of this size fits within another one, (height, width), without a loss of half a pixel or more.

    Example:
        >>> find_fit(100, 200, (50, 50)), find_fit(3, 1000, (224, 224))
        (Fit(inner=(25, 50), squeezed=False), Fit(inner=(1, 224), squeezed=True))
    """
    scale = min(size[0] / height, size[1] / width)
    inner = [min(side, max(1, round(own * scale))) for side, own in zip(size, (height, width), strict=True)]
    covering = max(side / own for side, own in zip(inner, (height, width), strict=True))
    lost = max((own * covering - side) / 2 for side, own in zip(inner, (height, width), strict=True))
    return Fit((inner[0], inner[1]), lost > HALF)


def fit_within(images: Any, size: Size) -> np.ndarray:
    """Resizes images [n, height, width, channels] until they fit within the size, and pads them with zeros about them.

    Nothing is cropped but what whole pixels leave over, less than half of one at either end (``find_fit``).
    Returns [n, *size, channels] of the same dtype: uint8, or float32 in [0, 1].
    """
    height, width = images.shape[1:3]
    inner, squeezed = find_fit(height, width, size)
    if squeezed:
        resized = _translate(images, inner, (inner[0] / height, inner[1] / width), (0.0, 0.0))
    else:
        resized = resize(images, inner)
    out = np.zeros((len(resized), *size, resized.shape[3]), resized.dtype)
    top, left = ((side - own) // 2 for side, own in zip(size, inner, strict=True))
    out[:, top : top + inner[0], left : left + inner[1]] = resized
    return out


class Resized:
    """The images of an array, resized each time they are read, so that no enlarged copy is kept."""

    def __init__(self, images: np.ndarray, size: Size, *, pad: bool = False) -> None:
        self._images, self._size, self._pad = images, size, pad
        self.shape, self.dtype = (len(images), *size, images.shape[3]), images.dtype

    def __getitem__(self, numbers: np.ndarray | slice) -> np.ndarray:
        return (fit_within if self._pad else resize)(self._images[numbers], self._size)

    def fingerprint(self) -> str:
        hasher = hashlib.sha256(np.ascontiguousarray(self._images).data)
        if self._pad:
            hasher.update(b"pad")
        return hasher.hexdigest()


def resize_all(images: np.ndarray, size: Size, *, budget: int, pad: bool = False) -> np.ndarray | Resized:
    """Resizes images in memory if the result takes at most ``budget`` bytes, else each time they are read.

    ``pad`` fits them within the size, instead of cropping what lies beyond.
    """
    if images.shape[1:3] == size:
        return images
    late = Resized(images, size, pad=pad)
    if int(np.prod(late.shape, dtype=object)) * images.dtype.itemsize > budget:
        return late
    out = np.empty(late.shape, images.dtype)
    for start in range(0, len(images), _CHUNK):
        chosen = slice(start, start + _CHUNK)
        out[chosen] = late[chosen]
    return out
