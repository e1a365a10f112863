"""Data sources: indexed sets of examples with a train, an evaluation and perhaps a test part."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.data import order
from engine.errors import InputError
from engine.files import FileError, Npz
from engine.filters import nearest

EMBEDDED = "fashion_mnist_mini"
SOURCES = (EMBEDDED, "npz:FILE")
_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class DataError(InputError):
    """Data that are missing, damaged or do not fit."""


@dataclass(frozen=True, eq=False)
class Part:
    """Examples that are read by position.

    Attributes:
        images: uint8 or float32 in [0, 1], [n, height, width, channels].
        labels: int64 [n] classes, or float32 [n] or [n, C] targets.
        index: int64 [m], the example in ``images`` for each position: the part has m examples.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """{"image", "label", "index"} of the examples at these positions."""
        index = self.index[positions]
        return {"image": self.images[index], "label": self.labels[index], "index": index}


@dataclass(frozen=True, eq=False)
class Source:
    """A data set. ``classes`` names the classes; it is empty when labels are float targets."""

    name: str
    classes: tuple[str, ...]
    train: Part
    eval: Part
    test: Part | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def outputs(self, loss: str) -> int:
        """How many outputs a model needs for this loss on these labels.

        Raises:
            DataError: the labels do not suit the loss.
        """
        labels = self.train.labels
        if loss == "softmax":
            if not self.classes:
                raise DataError(
                    f"data={self.name}: loss softmax wants integer class labels; these are {labels.dtype} targets"
                )
            return len(self.classes)
        if labels.ndim == 2:
            return int(labels.shape[1])
        if loss == "sigmoid" and self.classes and len(self.classes) > 2:
            raise DataError(
                f"data={self.name}: loss sigmoid wants labels 0 and 1, or [n, C] of them; "
                f"these are {len(self.classes)} classes (softmax is for those)"
            )
        return 1


def open_source(spec: str, *, eval_fraction: float | None = None, train_examples: int | None = None) -> Source:
    """Opens ``fashion_mnist_mini`` or ``npz:FILE``.

    Args:
        spec: the source.
        eval_fraction: share of train held out for evaluation where the source has no such part
            (0.1 when None); chosen by a fixed permutation, whatever the run's seed.
        train_examples: use only so many training examples, chosen likewise.

    Raises:
        DataError: unknown source, damaged file, labels that make no sense, or a share or count that
            leaves a part empty.
    """
    kind, _, rest = spec.partition(":")
    if spec == EMBEDDED:
        source = _from_npz(spec, pathlib.Path(__file__).with_name("fashion_mnist_mini.npz"), _FASHION)
    elif kind == "npz" and rest:
        source = _from_npz(spec, pathlib.Path(rest), None)
    else:
        raise DataError(f"data={spec!r}: known sources are {', '.join(SOURCES)}{nearest(spec, list(SOURCES))}")
    if source.eval is source.train:
        source = _hold_out(source, 0.1 if eval_fraction is None else eval_fraction)
    elif eval_fraction is not None:
        raise DataError(f"eval_fraction={eval_fraction}: {spec} has an evaluation part of its own; nothing is held out")
    if train_examples is not None:
        if not 1 <= train_examples <= len(source.train):
            raise DataError(f"train_examples={train_examples}: {spec} has {len(source.train)} training examples")
        chosen = np.sort(order.fixed_permutation(len(source.train))[:train_examples])
        source = replace(source, train=replace(source.train, index=source.train.index[chosen]))
    return source


def _hold_out(source: Source, fraction: float) -> Source:
    count = len(source.train)
    held = round(count * fraction) if math.isfinite(fraction) else 0
    if not (0.0 < fraction < 1.0 and 1 <= held < count):
        raise DataError(
            f"eval_fraction={fraction}: it lies between 0 and 1 and leaves at least one of the {count} "
            "examples to training and one to evaluation"
        )
    mixed = order.fixed_permutation(count)
    return replace(
        source,
        train=replace(source.train, index=np.sort(mixed[held:])),
        eval=replace(source.train, index=np.sort(mixed[:held])),
    )


def _from_npz(spec: str, file: pathlib.Path, classes: Sequence[str] | None) -> Source:
    """Reads train_*, test_* and val_* arrays; ``class_names`` is used where the file has it."""
    try:
        with Npz(file) as npz:
            names = npz.names()
            if missing := [n for n in ("train_images", "train_labels") if n not in names]:
                raise DataError(
                    f"data={spec}: it has no {' and no '.join(missing)}; it has {', '.join(names) or 'nothing'}"
                )
            arrays = {
                prefix: (npz.read(f"{prefix}_images"), npz.read(f"{prefix}_labels"))
                for prefix in ("train", "val", "test")
                if f"{prefix}_images" in names or f"{prefix}_labels" in names
            }
            named = [str(name) for name in npz.read("class_names").ravel()] if "class_names" in names else None
    except FileError as error:
        raise DataError(f"data={spec}: {error}") from None
    parts = {prefix: _part(spec, prefix, *pair) for prefix, pair in arrays.items()}
    train = parts["train"]
    classes = _class_names(spec, train.labels, named or classes)
    for prefix, part in parts.items():
        if part.images.shape[1:] != train.images.shape[1:] or part.labels.shape[1:] != train.labels.shape[1:]:
            raise DataError(
                f"data={spec}: {prefix} has images {list(part.images.shape)} and labels {list(part.labels.shape)}, "
                f"train {list(train.images.shape)} and {list(train.labels.shape)}"
            )
        if part.labels.dtype != train.labels.dtype:
            raise DataError(
                f"data={spec}: {prefix}_labels is {arrays[prefix][1].dtype}, train_labels {arrays['train'][1].dtype}; "
                "both hold classes (integers) or both targets (floats)"
            )
        check_labels(spec, f"{prefix}_labels", part.labels, len(classes))
    return Source(spec, tuple(classes), train, parts.get("val", train), parts.get("test"))


def _part(spec: str, prefix: str, images: Any, labels: Any) -> Part:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"data={spec}: {prefix}_images has shape {list(images.shape)}; [n, height, width(, channels)] is wanted"
        )
    if images.shape[3] not in (1, 3):
        raise DataError(f"data={spec}: {prefix}_images has {images.shape[3]} channels; 1 or 3 are wanted")
    if images.dtype != np.uint8:
        if images.dtype.kind != "f":
            raise DataError(f"data={spec}: {prefix}_images is {images.dtype}; uint8, or float in [0, 1], is wanted")
        if not (np.isfinite(images).all() and images.min() >= 0.0 and images.max() <= 1.0):
            raise DataError(f"data={spec}: {prefix}_images is float and lies outside [0, 1]")
        images = images.astype(np.float32)
    if labels.ndim not in (1, 2) or len(labels) != len(images) or 0 in labels.shape:
        raise DataError(
            f"data={spec}: {prefix}_labels has shape {list(labels.shape)} for {len(images)} images; [n] or [n, C] is wanted"
        )
    if labels.dtype.kind not in "iufb":
        raise DataError(
            f"data={spec}: {prefix}_labels is {labels.dtype}; integers (classes) or floats (targets) are wanted"
        )
    if labels.dtype.kind == "f" or labels.ndim == 2:
        labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            raise DataError(f"data={spec}: {prefix}_labels holds NaN or infinity")
    else:
        labels = labels.astype(np.int64)
    return Part(images, labels, np.arange(len(images), dtype=np.int64))


def _class_names(spec: str, labels: np.ndarray, given: Sequence[str] | None) -> Sequence[str]:
    if labels.dtype.kind == "f":
        return ()
    if given is not None:
        return given
    largest = int(labels.max())
    if largest >= 100_000:
        raise DataError(f"data={spec}: train_labels reach {largest}; classes are numbered from 0 and at most 100,000")
    return [str(number) for number in range(largest + 1)]


def check_labels(spec: str, name: str, labels: np.ndarray, classes: int) -> None:
    """Raises DataError when a class label is not below the number of classes."""
    if labels.dtype.kind == "f":
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"data={spec}: {name}[{wrong[0]}]={labels[wrong[0]]} is out of range: the classes are 0 to {classes - 1} "
            f"({len(wrong)} such labels)"
        )
