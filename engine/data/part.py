"""What a data set is here: parts whose examples are read by position, and that keep no place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from engine.errors import InputError


class DataError(InputError):
    """Data that are missing, damaged or do not fit."""


class Images(Protocol):
    """Images by number, read when asked for: what Part needs of an array, and all it asks of anything else."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or float32 in [0, 1]."""

    def __getitem__(self, numbers: Any, /) -> np.ndarray:
        """The images [m, height, width, channels] of int64 ``numbers`` [m]; always the same bits."""


@dataclass(frozen=True, eq=False)
class Part:
    """Examples that are read by position.

    Labels belong to positions, not to images: ``labels[p]`` is that of ``images[index[p]]``.

    Attributes:
        images: an array, or anything else that has ``Images``; other parts may share it.
        labels: int64 [m] classes, or float32 [m] or [m, C] targets, one for each position.
        index: int64 [m], the number in ``images`` for each position: the part has m examples.
        hold_out: float64 [m] in [0, 1), or None: an evaluation part of a share f takes the examples below f.
            None leaves the choice to a fixed permutation.

    Raises:
        DataError: arrays of another length than ``index``, or an index that is no image's number.
    """

    images: Images
    labels: np.ndarray
    index: np.ndarray
    hold_out: np.ndarray | None = None

    def __post_init__(self) -> None:
        index, count = self.index, self.images.shape[0]
        if index.ndim != 1 or index.dtype.kind != "i":
            raise DataError(f"index: {index.dtype} {list(index.shape)}; int64 [m] is wanted, an image's number each")
        for name, array in (("labels", self.labels), ("hold_out", self.hold_out)):
            if array is not None and (array.ndim < 1 or len(array) != len(index)):
                raise DataError(
                    f"{name}: shape {list(array.shape)} for an index of {len(index)}; one for each position is wanted "
                    f"({name} of all images: {name}[index])"
                )
        if len(wrong := np.flatnonzero((index < 0) | (index >= count))):
            raise DataError(f"index[{wrong[0]}]={index[wrong[0]]}: there are {count} images, numbered from 0")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def image_dtype(self) -> np.dtype[Any]:
        return self.images.dtype

    def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """{"image", "label", "index"} of the examples at these positions.

        Raises:
            DataError: an image file that cannot be read; it is named.
        """
        index = self.index[positions]
        return {"image": self.images[index], "label": self.labels[positions], "index": index}

    def take(self, positions: np.ndarray) -> Part:
        """The part that has these positions of this one, in this order."""
        shares = None if self.hold_out is None else self.hold_out[positions]
        return replace(self, labels=self.labels[positions], index=self.index[positions], hold_out=shares)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set.

    Attributes:
        name: as given.
        classes: their names, in the order of the labels; empty when labels are float targets.
        train, eval, test: its parts; ``eval is train`` only until an evaluation part is held out.
        skipped: the image files that could not be read and were left out.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    eval: Part
    test: Part | None
    skipped: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.image_shape

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

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of what training and evaluation read: a resumed run must find the same."""
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
    """Raises DataError when a class label is not below the number of classes."""
    if labels.dtype.kind == "f":
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"data={spec}: {name}[{wrong[0]}]={labels[wrong[0]]} is out of range: the classes are 0 to {classes - 1} "
            f"({len(wrong)} such labels)"
        )
