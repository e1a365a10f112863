"""What a model's images should be: names of preprocessings, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.data import Normalise
from engine.models.keras.safe_loading import import_keras
from engine.models.spec import ModelSpecError, Request
from engine.text import nearest

# What a ViT's images can be, by the names that Keras has for it: -1 to 1; ImageNet's mean and deviation; 0 to 1.
IMAGES = {
    "tf": Normalise(),
    "torch": Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Normalise(mean=(0.0,), std=(1.0,)),
}


def images_as(name: str, image_shape: tuple[int, int, int]) -> Normalise:
    """What a ViT's images should be, by a name of IMAGES.

    Raises:
        ModelSpecError: that is of another number of channels than the images have.
    """
    found, channels = IMAGES[name], image_shape[2]
    if len(found.mean) not in (1, channels):
        raise ModelSpecError(
            f"preprocess={name}: it is for images of {len(found.mean)} channels, these have {channels}; "
            "preprocess=tf or preprocess=unit suits any"
        )
    return found


MODES = ("tf", "torch", "caffe", "unit", "pixels")


def preprocessing(preprocess_input: Callable[[Any], Any]) -> Normalise:
    """A Keras ``preprocess_input`` (of pixels in [0, 255]) as a Normalise (of images in [0, 1]).

    Asked, not tabulated: black, and each colour alone, tell scale, offset and order of the channels.

    Raises:
        ModelSpecError: the function does something else.
    """
    colours = np.zeros([4, 1, 1, 3], np.float32)
    colours[[1, 2, 3], 0, 0, [0, 1, 2]] = 255.0
    black, *lit = np.asarray(preprocess_input(colours), np.float64)[:, 0, 0, :]
    gain = np.stack(lit) - black  # [colour, output channel]
    reverse = bool(gain[0, 2])
    scale = np.diagonal(gain[:, ::-1] if reverse else gain)
    scale = scale[::-1] if reverse else scale  # by output channel
    if np.count_nonzero(gain) != 3 or not scale.all():
        raise ModelSpecError(f"{preprocess_input}: it is no scale and offset by channel")
    return Normalise(
        mean=tuple(float(value) for value in -black / scale),
        std=tuple(float(value) for value in 1.0 / scale),
        channels=3,
        reverse=reverse,
    )


def chosen_mode(request: Request) -> str | None:
    """The value of the option ``preprocess``, the only one of saved models and of a user's own; None if not given.

    Raises:
        ModelSpecError: another option, or no such preprocessing.
    """
    for option in request.options:
        if option != "preprocess":
            raise ModelSpecError(f"model={request.spec!r}: no option `{option}`; it has preprocess and classes")
    mode = request.options.get("preprocess")
    if mode is not None and mode not in MODES:
        raise ModelSpecError(
            f"model={request.spec!r}: preprocess={mode!r} is none of {', '.join(MODES)}{nearest(mode, list(MODES))}"
        )
    return mode


def preprocessing_by_name(mode: str, channels: int) -> Normalise:
    """``tf`` ([-1, 1]), ``torch`` and ``caffe`` (as keras.applications), ``unit`` ([0, 1]), ``pixels`` ([0, 255]).

    Raises:
        ModelSpecError: torch or caffe, which are for colours, and a model of one channel.
    """
    if mode in ("torch", "caffe"):
        if channels != 3:
            raise ModelSpecError(
                f"preprocess={mode}: it is for 3 channels, the model has {channels}; tf, unit and pixels suit any"
            )
        keras = import_keras()
        return preprocessing(functools.partial(keras.applications.imagenet_utils.preprocess_input, mode=mode))
    mean, std = {"tf": (0.5, 0.5), "unit": (0.0, 1.0), "pixels": (0.0, 1.0 / 255.0)}[mode]
    return Normalise(mean=(mean,), std=(std,), channels=channels)


def colour_notes(normalise: Normalise, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    if normalise.channels == 3 and image_shape[2] == 1:
        return ("grayscale images are repeated to 3 channels",)
    if normalise.channels == 1 and image_shape[2] == 3:
        return ("colour images are made gray",)
    return ()
