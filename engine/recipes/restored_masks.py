"""The classes that a model gives to pixels, as label images of the files that it saw, and pictures of them."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from engine.data import mask_geometry
from engine.data.header import BadImageError
from engine.data.image_files import read_image, read_whole_header
from engine.data.image_options import ImageForm
from engine.data.label_images import SUFFIX, resize_labels
from engine.errors import InputError
from engine.files import PathLike
from engine.recipes.predictor import Predictor
from engine.runs.mask_pictures import MOST_PIXELS, draw_outlines


def restore_mask(file: pathlib.Path, chances: np.ndarray, predictor: Predictor) -> np.ndarray:
    """The class of each pixel of an image file, upright, from the probabilities [h, w, classes] that a predictor gives for it.

    The largest number of the dtype, 255 for up to 255 classes, is that of pixels that the run's cropping left out
    (``engine.data.mask_geometry.restore_labels``). Raises InputError if the file cannot be read.
    """
    try:
        header = read_whole_header(file)
    except BadImageError as error:  # predict_files has left out such files
        raise InputError(f"{file}: {error}") from None
    return mask_geometry.restore_labels(chances, header, predictor.file_form)


def measure_shares(labels: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
    """The share of each class, float64 [classes], in the pixels that have one; and the share of all pixels that have none.

    Example:
        >>> shares, lost = measure_shares(np.array([[0, 0, 1, 255]], np.uint8), 2)
        >>> shares.round(3).tolist(), lost
        ([0.667, 0.333], 0.25)
    """
    counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
    known = int(counts.sum())
    return counts / max(known, 1), 1.0 - known / labels.size


def draw_mask(path: PathLike, file: pathlib.Path, labels: np.ndarray, predictor: Predictor) -> None:
    """Draws the outlines of classes [height, width] over their image file, made smaller where it is large.

    Raises ImportError without matplotlib, and InputError if the file can no longer be read.
    """
    form, (height, width) = predictor.file_form, labels.shape
    less = min(1.0, MOST_PIXELS / max(height, width))
    size = max(1, round(height * less)), max(1, round(width * less))
    options = dataclasses.replace(form.options, image_fit="cover", image_mask=False)
    try:
        image = read_image(file, ImageForm(size=size, channels=form.channels, dtype=form.dtype, options=options))
    except BadImageError as error:
        raise InputError(f"{file}: {error}") from None
    draw_outlines(path, image, resize_labels(labels, size), lost=np.iinfo(labels.dtype).max)


def name_masks(files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The names of label images: those of their files below the folder that holds all of them, with the suffix .png.

    Where two would be equal, or one is the folder of another, they keep the suffix of the file before it, and .png is added until
    none is.

    Example:
        >>> [str(name) for name in name_masks([pathlib.Path(name) for name in ("x/a.jpg", "x/a.png", "x/y/b.jpg")])]
        ['a.jpg.png', 'a.png.png', 'y/b.png']
        >>> [str(name) for name in name_masks([pathlib.Path(name) for name in ("x/a.jpg", "x/a.png/b.jpg")])]
        ['a.jpg.png', 'a.png/b.png']
    """
    places = [pathlib.Path(os.path.abspath(file)) for file in files]
    folder = os.path.commonpath([place.parent for place in places])
    own = [place.relative_to(folder) for place in places]
    short = [name.with_suffix(SUFFIX) for name in own]
    long = [name.with_name(name.name + SUFFIX) for name in own]
    times = collections.Counter(short)
    found = [one if times[one] == 1 else other for one, other in zip(short, long, strict=True)]
    chosen = found if len(set(found)) == len(found) else long
    folders = {folder for name in own for folder in name.parents}
    used = {name for name in chosen if name not in folders}
    for number, name in enumerate(chosen):
        if name in folders:
            name = long[number]
            while name in folders or name in used:
                name = name.with_name(name.name + SUFFIX)
            used.add(name)
            chosen[number] = name
    return chosen
