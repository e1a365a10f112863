"""The features of a network: what its head reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.data import Normalise
from engine.errors import InputError
from engine.export.inputs import Images
from engine.export.subject import Subject
from engine.recipes.features import build_features
from engine.recipes.predictor import Predictor


def find_features(subject: Subject) -> Callable[[Any], Any] | None:
    """A function from what the network takes to the features [B, ...] that the head reads; None where they, or it, are not one tensor."""
    if len(subject.inputs.own) > 1:
        return None
    images = subject.inputs if isinstance(subject.inputs, Images) else None
    predictor = Predictor(
        network=subject.network,
        normalise=images.normalise if images else Normalise(),
        image_shape=images.shape if images else subject.specs[0].shape[1:],
        inputs=subject.inputs.own,
        loss=subject.outputs[0].loss,
        class_names=None,
    )
    try:
        found = build_features(predictor, subject.variables)
    except InputError:
        return None
    return (lambda prepared: found(prepared)[0]) if len(found.outputs) == 1 else None
