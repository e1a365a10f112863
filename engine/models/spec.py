"""What a model is to the rest: the request it is built from, and what one must know to train it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data import Normalise
from engine.errors import InputError
from engine.selection.selection import Statistics


class ModelSpecError(InputError):
    """A model name or option that does not exist, or does not suit the images."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a model's builder, one for every family.

    Attributes:
        spec: as given, for messages.
        name: the part of it after the family, without the options.
        options: text of each option of the spec but ``classes``.
        image_shape: (height, width, channels) of the data.
        outputs: of the head.
        head: a new head for a Keras model (engine.models.keras.heads), or None.
        logits: whether the loss wants logits: a last softmax or sigmoid is then taken off.
        seed: of the initial weights.
        dtype: of the variables.
        compute: dtype of the forward and backward pass.
    """

    spec: str
    name: str
    options: Mapping[str, str]
    image_shape: tuple[int, int, int]
    outputs: int
    head: str | None
    logits: bool
    seed: int
    dtype: Any
    compute: Any

    @property
    def policy(self) -> str:
        """The Keras dtype policy of the two dtypes."""
        name = tf.as_dtype(self.compute).name
        return name if self.compute == self.dtype else f"mixed_{name}"


@dataclass(frozen=True, eq=False)
class Model:
    """A network, and what one must know to train it.

    Attributes:
        name: as given.
        network: ``network(images, training=, seeds=)`` -> logits [B, outputs].
        outputs: how many there are.
        normalise: what its images should be.
        images_chosen: whether the user said so; else weights may (Ledger.images).
        upper: filter text for "the upper part", which the default second phase trains with the head.
        statistics: what statistics of trained layers do by default ("follow" or "frozen").
        shipped_weights: the file that ``--weights=auto`` loads, or None.
        shipped_for: what that file was made for, in words.
        notes: what was decided for the user about it, a sentence each.
        load: loads weights by the name in a flag and says what it did; None for a file that is not
            of the model's own kinds. Such files, or a model without it, are for engine.porting.
    """

    name: str
    network: Any
    outputs: int
    normalise: Normalise
    upper: str
    statistics: Statistics = "follow"
    images_chosen: bool = False
    shipped_weights: pathlib.Path | None = None
    shipped_for: str = ""
    notes: tuple[str, ...] = ()
    load: Callable[[str], str | None] | None = None


def parse_options(spec: str, options: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in chosen:
            raise ModelSpecError(f"model={spec!r}: `{key}` is given twice")
        chosen[key] = value
    return chosen


def whole_number(spec: str, option: str, text: str, high: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is no whole number from 1 to {high}")
    return int(text)


def number(spec: str, option: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is no number from {low:g} to {high:g}")
    return value
