"""Data sets and their parts, whose examples are read by position, without any iteration state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from engine.errors import InputError


class DataError(InputError):
    """Data are missing, damaged or do not fit."""


class Images(Protocol):
    """Images that are read by number. A Part needs no more than this, so an array or any similar object will do."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n, height, width, channels)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype: uint8, or float32 with values in [0, 1]."""

    def __getitem__(self, numbers: Any, /) -> np.ndarray:
        """Returns the images [m, height, width, channels] with the int64 ``numbers`` [m]; always the same bits."""


@dataclass(frozen=True, eq=False)
class Part:
    """Examples that are read by position, such as the training part of a data set.

    Labels belong to positions, not to images: ``labels[p]`` is the label of ``images[index[p]]``.

    Attributes:
        images: an array, or another object that implements ``Images``; several parts may share it.
        labels: for each position, a class (int64 [m]) or a target (float32 [m] or [m, C]).
        index: for each of the m positions, the number of its image in ``images``, int64 [m].
        hold_out: a number in [0, 1) per position, float64 [m]: an evaluation part of a share f takes the examples below
            f. If None, a fixed permutation decides.

    Raises:
        DataError: an array differs in length from ``index``, or the index has a number without an image.
    """

    images: Images
    labels: np.ndarray
    index: np.ndarray
    hold_out: np.ndarray | None = None

    def __post_init__(self) -> None:
        index, count = self.index, self.images.shape[0]
        if index.ndim != 1 or index.dtype.kind != "i":
            raise DataError(f"index: {index.dtype} {list(index.shape)}; expected int64 [m], the numbers of images")
        for name, array in (("labels", self.labels), ("hold_out", self.hold_out)):
            if array is not None and (array.ndim < 1 or len(array) != len(index)):
                raise DataError(
                    f"{name}: shape {list(array.shape)} for an index of length {len(index)}; expected one entry per "
                    f"position (if you have {name} for all images, pass {name}[index])"
                )
        if len(wrong := np.flatnonzero((index < 0) | (index >= count))):
            raise DataError(f"index[{wrong[0]}]={index[wrong[0]]}: there are {count} images, numbered from 0")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, channels) of an image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def image_dtype(self) -> np.dtype[Any]:
        return self.images.dtype

    def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns "image", "label" and "index" of these examples; a DataError names an unreadable image file."""
        index = self.index[positions]
        return {"image": self.images[index], "label": self.labels[positions], "index": index}

    def take(self, positions: np.ndarray) -> Part:
        """Returns a part with these positions of this one, in this order."""
        shares = None if self.hold_out is None else self.hold_out[positions]
        return replace(self, labels=self.labels[positions], index=self.index[positions], hold_out=shares)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set with a training, an evaluation and perhaps a test part.

    Attributes:
        name: the name that it was opened by.
        classes: the names of the classes, in the order of the labels; empty if the labels are float targets.
        train, eval, test: the parts; ``eval is train`` only until an evaluation part is held out.
        skipped: the unreadable image files that were left out.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    eval: Part
    test: Part | None
    skipped: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, channels) of an image."""
        return self.train.image_shape

    def outputs(self, loss: str) -> int:
        """Returns the number of outputs that a model needs; raises DataError if the labels do not suit the loss."""
        labels = self.train.labels
        if loss == "softmax":
            if not self.classes:
                raise DataError(
                    f"data={self.name}: the loss softmax needs integer class labels, but these are {labels.dtype} targets"
                )
            return len(self.classes)
        if labels.ndim == 2:
            return int(labels.shape[1])
        if loss == "sigmoid" and self.classes and len(self.classes) > 2:
            raise DataError(
                f"data={self.name}: the loss sigmoid needs labels 0 and 1, [n] or [n, C], but these are "
                f"{len(self.classes)} classes; use softmax"
            )
        return 1

    def fingerprint(self) -> str:
        """Returns a SHA-256, in hexadecimal, over the training and evaluation data, which a resumed run compares."""
        hasher = hashlib.sha256()
        for part in (self.train, self.eval):
            hasher.update(repr((part.image_shape, part.image_dtype.str, part.labels.shape)).encode())
            hasher.update(part.index.tobytes() + part.labels.tobytes())
        for images in {id(part.images): part.images for part in (self.train, self.eval)}.values():
            if isinstance(images, np.ndarray):
                hasher.update(np.ascontiguousarray(images).data)
            else:
                hasher.update(images.fingerprint().encode())  # type: ignore[attr-defined]
        return hasher.hexdigest()


def check_labels(spec: str, name: str, labels: np.ndarray, classes: int) -> None:
    """Raises DataError unless every class label is at least 0 and below the number of classes."""
    if labels.dtype.kind == "f":
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"data={spec}: {name}[{wrong[0]}]={labels[wrong[0]]} is out of range; the classes are 0 to {classes - 1} "
            f"({len(wrong)} labels are wrong)"
        )
