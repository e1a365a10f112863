"""The features of a network: what its head reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import InputError
from engine.export.subject import Subject
from engine.recipes.features import build_features
from engine.recipes.predictor import Predictor


def find_features(subject: Subject) -> Callable[[Any], Any] | None:
    """A function from images to the features [B, ...] that the head reads; None where they are not one tensor."""
    predictor = Predictor(
        network=subject.network,
        normalise=subject.normalise,
        image_shape=subject.image_shape,
        loss=subject.outputs[0].loss,
        class_names=None,
    )
    try:
        found = build_features(predictor, subject.variables)
    except InputError:
        return None
    return (lambda images: found(subject.normalise(images))[0]) if len(found.outputs) == 1 else None
