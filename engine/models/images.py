"""Preprocessings by name: the range and the channels that a model's images should have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from engine.data import Normalise
from engine.models.keras.safe_loading import import_keras
from engine.models.scaling import RANGES, Scaling, probe_scaling
from engine.models.spec import ModelSpecError, Request
from engine.selection.variables import NamedVariable
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


def images_as(name: str, image_shape: tuple[int, ...]) -> Normalise:
    """The preprocessing of a ViT's images, by a name in IMAGES; ModelSpecError if it is for other channels than theirs."""
    mean, channels = _SCALES[name][0], image_shape[2]
    if len(mean) not in (1, channels):
        raise ModelSpecError(
            f"preprocess={name} is for images with {len(mean)} channels, but these have {channels}; "
            "preprocess=tf and preprocess=unit fit any number"
        )
    return scale_images(name)


def scale_images(name: str) -> Normalise:
    """The preprocessing by a name in IMAGES, for images that have as many channels as it."""
    mean, std = _SCALES[name]
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


def choose_preprocessing(
    request: Request, traced: Any, variables: Iterable[NamedVariable], channels: int
) -> tuple[Normalise, tuple[str, ...], bool]:
    """The preprocessing of a saved model's images or of a user's own, a note on the decision, and whether it is final.

    It is what the option ``preprocess`` says. Without it the network is probed: images are given in the range of values
    that it scales itself, and as -1 to 1 if it does not scale them, unless its weights say otherwise. ModelSpecError:
    neither is clear.
    """
    mode = parse_mode(request)
    if mode is not None:
        return build_preprocessing(mode, channels), (), True
    found = probe_scaling(traced, variables)
    if found.mode == "":
        raise ModelSpecError(
            f"model={request.spec!r}: the values that it expects of its images cannot be decided: {found.reason}. Say so with "
            f"the option preprocess, as in --model={request.spec},preprocess=pixels; pixels is 0 to 255, unit 0 to 1, tf -1 "
            "to 1, and torch and caffe are those of keras.applications"
        )
    why = found.reason if found.mode else f"{found.reason}, and nothing records how it was trained"
    note = f"images are scaled to {_range_text(found)} ({why}; the option preprocess changes this)"
    normalise = build_preprocessing(_mode(found), channels)
    if found.rounds and _mode(found) == "pixels":  # a whole number must not come out a little below itself
        normalise = dataclasses.replace(normalise, mean=(-0.25 / 255.0,))
    return normalise, (note,), found.mode is not None


def check_preprocessing(
    request: Request, normalise: Normalise, traced: Any, variables: Iterable[NamedVariable]
) -> None:
    """Raises ModelSpecError if a network whose weights were loaded expects other images than it is given."""
    found = probe_scaling(traced, variables)
    if found.mode == "":
        raise ModelSpecError(
            f"model={request.spec!r}: with these weights, the values that it expects of its images cannot be decided: "
            f"{found.reason}. The option preprocess says so: one of {', '.join(MODES)}"
        )
    expected = build_preprocessing(_mode(found), normalise.channels or 3)
    if (expected.std, expected.reverse) != (normalise.std, normalise.reverse):
        raise ModelSpecError(
            f"model={request.spec!r}: with these weights it expects images from {_range_text(found)} ({found.reason}); "
            f"--model={request.spec},preprocess={_mode(found)} gives it those"
        )


def _mode(found: Scaling) -> str:
    return found.mode if found.mode in RANGES else "tf"


def _range_text(found: Scaling) -> str:
    low, _, high = RANGES[_mode(found)]
    return f"{low:g} to {high:g}"


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


def describe_colours(normalise: Normalise, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Notes on how the channels of the images are converted for a model."""
    if normalise.channels == 3 and image_shape[2] == 1:
        return ("grayscale images are repeated to 3 channels",)
    if normalise.channels == 1 and image_shape[2] == 3:
        return ("colour images are converted to grayscale",)
    return ()
