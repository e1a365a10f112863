"""Preprocessings by name: the range and the channels that a model's images should have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.data import Normalise
from engine.models.keras.safe_loading import import_keras
from engine.models.spec import ModelSpecError, Request
from engine.text import nearest

# (mean, std) of images in [0, 1], by the names that Keras uses: [-1, 1]; ImageNet's mean and deviation; [0, 1]; [0, 255].
_SCALES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "tf": ((0.5,), (0.5,)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0,), (1.0,)),
    "pixels": ((0.0,), (1.0 / 255.0,)),
}
IMAGES = ("tf", "torch", "unit")  # for ViTs
MODES = ("tf", "torch", "caffe", "unit", "pixels")  # for Keras models and a user's own


def images_as(name: str, image_shape: tuple[int, int, int]) -> Normalise:
    """The preprocessing of a ViT's images, by a name in IMAGES; ModelSpecError if it is for other channels than theirs."""
    (mean, std), channels = _SCALES[name], image_shape[2]
    if len(mean) not in (1, channels):
        raise ModelSpecError(
            f"preprocess={name} is for images with {len(mean)} channels, but these have {channels}; "
            "preprocess=tf and preprocess=unit fit any number"
        )
    return Normalise(mean=mean, std=std)


def build_preprocessing(mode: str, channels: int) -> Normalise:
    """The preprocessing of a Keras model's images, by a name in MODES.

    ``torch`` and ``caffe`` are computed by Keras itself, in float32: their last bits are those of keras.applications.
    Raises ModelSpecError if they, which are for colour images, are given for a model with one channel.
    """
    if mode in ("torch", "caffe"):
        if channels != 3:
            raise ModelSpecError(
                f"preprocess={mode} is for 3 channels, but the model has {channels}; tf, unit and pixels fit any number"
            )
        keras = import_keras()
        return probe_preprocessing(functools.partial(keras.applications.imagenet_utils.preprocess_input, mode=mode))
    mean, std = _SCALES[mode]
    return Normalise(mean=mean, std=std, channels=channels)


def probe_preprocessing(preprocess_input: Callable[[Any], Any]) -> Normalise:
    """Turns a Keras ``preprocess_input`` (for pixels in [0, 255]) into a Normalise (for images in [0, 1]).

    The function is probed with black and with each colour alone, which shows its scale, offset and order of channels.
    Raises ModelSpecError if it does something else.
    """
    colours = np.zeros([4, 1, 1, 3], np.float32)
    colours[[1, 2, 3], 0, 0, [0, 1, 2]] = 255.0
    black, *lit = np.asarray(preprocess_input(colours), np.float64)[:, 0, 0, :]
    gain = np.stack(lit) - black  # [colour, output channel]
    reverse = bool(gain[0, 2])
    scale = np.diagonal(gain[:, ::-1] if reverse else gain)
    scale = scale[::-1] if reverse else scale  # by output channel
    if np.count_nonzero(gain) != 3 or not scale.all():
        raise ModelSpecError(f"{preprocess_input} does not just scale and offset each channel")
    return Normalise(
        mean=tuple(float(value) for value in -black / scale),
        std=tuple(float(value) for value in 1.0 / scale),
        channels=3,
        reverse=reverse,
    )


def parse_mode(request: Request) -> str | None:
    """The option ``preprocess``, the only one of saved models and a user's own, or None; ModelSpecError for any other."""
    for option in request.options:
        if option != "preprocess":
            raise ModelSpecError(
                f"model={request.spec!r}: `{option}` is not an option of this model; expected preprocess or classes"
            )
    mode = request.options.get("preprocess")
    if mode is not None and mode not in MODES:
        raise ModelSpecError(
            f"model={request.spec!r}: preprocess={mode!r} is not a valid preprocessing; expected one of "
            f"{', '.join(MODES)}{nearest(mode, list(MODES))}"
        )
    return mode


def describe_colours(normalise: Normalise, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Notes on how the channels of the images are converted for a model."""
    if normalise.channels == 3 and image_shape[2] == 1:
        return ("grayscale images are repeated to 3 channels",)
    if normalise.channels == 1 and image_shape[2] == 3:
        return ("colour images are converted to grayscale",)
    return ()
