"""What evaluations tell of a class for each pixel: the overlaps of each class, and pictures of predictions."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.data import Part
from engine.errors import InputError
from engine.recipes.predictor import Predictor
from engine.runs.mask_pictures import NAME, choose_examples, draw_masks
from engine.training.dense_metrics import rate_overlaps


class Drawn(NamedTuple):
    """Examples with their classes: images [n, height, width, channels], true and predicted ones uint8 [n, height, width]."""

    images: np.ndarray
    truths: np.ndarray
    predictions: np.ndarray


def check_outputs(predictor: Predictor, data: str, *, dense: bool) -> None:
    """Raises InputError if data with a class for each pixel meet a model with outputs for each image, or the other way round."""
    if predictor.dense != dense:
        own, other = ("pixel", "image") if predictor.dense else ("image", "pixel")
        raise InputError(
            f"data={data}: the labels are classes of each {other}, but the model has outputs for each {own}"
        )


def rate_pixels(confusions: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The figures of each class, and the means over classes, from the confusion matrix of all pixels."""
    unions, dices = rate_overlaps(confusions)
    rows = zip(names, confusions.sum(axis=1).tolist(), confusions.sum(axis=0).tolist(), unions, dices, strict=True)
    known = [(union, dice) for union, dice in zip(unions, dices, strict=True) if union is not None]
    means = np.mean(np.array(known, np.float64), axis=0).tolist() if known else [None, None]
    return {
        "miou": means[0],
        "dice": means[1],
        "pixel_classes": [
            {"name": name, "pixels": pixels, "predicted": predicted, "iou": union, "dice": dice}
            for name, pixels, predicted, union, dice in rows
        ],
        "confusions": confusions.tolist(),
    }


def predict_some(predictor: Predictor, part: Part) -> Drawn | None:
    """Predicts a few examples of a part, evenly spread over it; None where an example is more than one image."""
    if part.inputs:
        return None
    read = part.read(choose_examples(len(part)))
    images = read[part.input_name]
    outputs = [predictor.outputs(predictor.prepare(image[None])) for image in images]
    return Drawn(images, read[part.label_name], np.concatenate(outputs).argmax(axis=-1).astype(np.uint8))


def draw_some(folder: pathlib.Path, drawn: Drawn, names: Sequence[str], say: Callable[[str], None]) -> bool:
    """Draws ``predictions.png``; says so, and returns False, if matplotlib is missing."""
    try:
        draw_masks(folder / NAME, *drawn, names)
    except ImportError:
        say(f"{NAME} was not drawn: the package matplotlib is missing (extra `report`)")
        return False
    return True
