"""What the boxes that a detector finds are worth: figures of an evaluation, and a picture of some of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.data import Part, box_geometry
from engine.data.header import BadImageError
from engine.data.image_files import read_whole_header
from engine.errors import InputError
from engine.files import PathLike
from engine.recipes.predictor import Predictor
from engine.runs.box_pictures import draw_boxes
from engine.runs.mask_pictures import NAME
from engine.training.average_precision import average, match_detections, rate_detections
from engine.training.detection_metric import count_found

_DRAWN = 12  # images


def rate_boxes(found: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Figures of detections [n, D, 6] and objects [n, K, 5]: AP50 of each class and on average, and the numbers behind it."""
    rated = rate_detections(found, truth, len(names))
    hits = match_detections(found, truth)
    return {
        "ap50": average(rated),
        "classes": [
            {
                "name": name,
                "objects": int((truth[..., 0] == number).sum()),
                "detections": int((found[..., 0] == number).sum()),
                "found": int(hits[found[..., 0] == number].sum()),
                "ap50": rated[number],
            }
            for number, name in enumerate(names)
        ],
    }


def restore_boxes(file: pathlib.Path, boxes: np.ndarray, predictor: Predictor) -> np.ndarray:
    """Boxes [n, 4] of an image file as a predictor reads it, as shares of its sides, in pixels of the image, upright."""
    try:
        header = read_whole_header(file)
    except BadImageError as error:  # predict_files has left out such files
        raise InputError(f"{file}: {error}") from None
    form = predictor.file_form
    height, width = header.upright
    found = box_geometry.restore_boxes(boxes * np.tile(form.size[::-1], 2), header, form)
    return np.clip(found, 0.0, np.array([width, height, width, height]))


def draw_found(path: PathLike, part: Part, found: np.ndarray, *, names: Sequence[str]) -> None:
    """Draws boxes, true and ``found`` ([n, D, 6], of all examples), over images spread over a part.

    Raises ImportError without matplotlib.
    """
    positions = _spread(len(part))
    batch = part.read(positions)
    draw_boxes(path, batch[part.input_name], batch[part.label_name], found[positions], names=names)


def draw_some(folder: pathlib.Path, predictor: Predictor, part: Part, say: Callable[[str], None]) -> None:
    """Draws ``predictions.png``: boxes, true and those found now, over images spread over a part; says so if it cannot."""
    some = part.take(_spread(len(part)))
    images = some.read(np.arange(len(some)))[some.input_name]
    found = predictor(images)
    names = predictor.class_names or predictor.name_outputs(
        int(max(part.labels[..., 0].max(), found[..., 0].max())) + 1
    )
    try:
        draw_found(folder / NAME, some, found, names=names)
    except ImportError:
        say(f"{NAME} was not drawn: the package matplotlib is missing (extra `report`)")


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(_DRAWN, count)).round().astype(np.int64))


def for_boxes(predictor: Predictor, part: Part) -> Predictor:
    """The predictor that looks for as many boxes as AP50 takes on this part."""
    return dataclasses.replace(predictor, most_boxes=count_found(part.labels.shape[1]))
