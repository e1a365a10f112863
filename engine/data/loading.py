"""Loads the images of several parts that are decoded only when they are first needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from engine.data.part import Part


def load_images(parts: Iterable[Part]) -> None:
    """Decodes the image files of these parts that memory keeps; a DataError names all that are damaged."""
    for images, numbers in _lazy_images(parts):
        images.load(numbers)


def unloaded_bytes(parts: Iterable[Part]) -> int:
    """Returns the memory that ``load_images`` would fill."""
    return sum(images.unloaded_bytes(numbers) for images, numbers in _lazy_images(parts))


def _lazy_images(parts: Iterable[Part]) -> Iterator[tuple[Any, np.ndarray]]:
    """The image files behind the parts, each set once, with the numbers that the parts have of it."""
    found: dict[int, tuple[Any, list[np.ndarray]]] = {}
    for part in parts:
        for images in (part.images, *part.inputs.values()):
            if hasattr(images, "load"):  # arrays are in memory already
                found.setdefault(id(images), (images, []))[1].append(part.index)
    for images, numbers in found.values():
        yield images, np.unique(np.concatenate(numbers))
