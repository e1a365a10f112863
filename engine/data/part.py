"""Data sets and their parts, whose examples are read by position, without any iteration state."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.data.batch_names import LABEL, WEIGHT, is_input
from engine.data.one_hot import find_not_one_hot
from engine.data.one_hot import number_classes as number_classes
from engine.errors import InputError

IGNORED = 255  # in labels for each pixel: a pixel that does not count
GEOMETRY = 4  # outputs of a centre head besides its classes: size and offset (engine.training.centers)
_NOT_FOR_BOXES = ("softmax", "sigmoid", "mse", "focal", "dice")


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


class ArraySpec(NamedTuple):
    """The shape of an input of one example, without the axis of the batch, and its dtype in the data."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def is_image(self) -> bool:
        """Whether it is an image [height, width, channels], which is augmented and normalised; others are passed on."""
        return len(self.shape) == 3 and self.dtype in (np.uint8, np.float32)


class Target(NamedTuple):
    """What the data say of the labels of one task, where they have several: the fields of ``Source`` of these names."""

    name: str
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    named: bool = True


@dataclass(frozen=True, eq=False)
class Part:
    """Examples that are read by position, such as the training part of a data set.

    Labels belong to positions, not to images: ``labels[p]`` is the label of ``images[index[p]]``. The first input is
    mostly images, but may have any shape: vectors [n, D], or tokens [n, T].

    Attributes:
        images: an array, or another object that implements ``Images``; several parts may share it.
        labels: for each position, a class (int64 [m]), a target (float32 [m] or [m, C]), or a class for each pixel of its
            image (uint8 [m, height, width], ``IGNORED`` where a pixel does not count).
        index: for each of the m positions, the number of its image in ``images``, int64 [m].
        input_name, label_name: the names of ``images`` and ``labels`` in a batch (engine.data.batch_names).
        inputs: further inputs of the model by name, each indexed by the same numbers as ``images``.
        columns: further arrays by position: "weight", and for several tasks "label/TASK" and "weight/TASK". An example whose
            label is missing has the weight 0.
        hold_out: a number in [0, 1) per position, float64 [m]: an evaluation part of a share f takes the examples below
            f. If None, a fixed permutation decides.

    Raises:
        DataError: an array differs in length from ``index``, the index has a number without an image, or images or labels
            are of another dtype or shape than here. Of float images, up to 64 are looked at.
    """

    images: Images
    labels: np.ndarray
    index: np.ndarray
    hold_out: np.ndarray | None = None
    input_name: str = field(default="image", kw_only=True)
    inputs: Mapping[str, Images] = field(default_factory=dict, kw_only=True)
    label_name: str = field(default=LABEL, kw_only=True)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        index, count = self.index, self.images.shape[0]
        if index.ndim != 1 or index.dtype.kind != "i":
            raise DataError(f"index: {index.dtype} {list(index.shape)}; expected int64 [m], the numbers of images")
        for name, array in (("labels", self.labels), ("hold_out", self.hold_out), *self.columns.items()):
            if array is not None and (array.ndim < 1 or len(array) != len(index)):
                raise DataError(
                    f"{name}: shape {list(array.shape)} for an index of length {len(index)}; expected one entry per "
                    f"position (if you have {name} for all images, pass {name}[index])"
                )
        if len(wrong := np.flatnonzero((index < 0) | (index >= count))):
            raise DataError(f"index[{wrong[0]}]={index[wrong[0]]}: there are {count} images, numbered from 0")
        self._check_names()
        self._check_images()
        for name, given in self.inputs.items():
            _check_input(name, given)
            if given.shape[0] != count:
                raise DataError(f"{name}: {given.shape[0]} examples, but {self.input_name} has {count}")
        if self.labels.dtype.kind not in "iuf" or self.labels.ndim > 3:
            raise DataError(
                f"labels: {self.labels.dtype} {list(self.labels.shape)}; expected int64 [m] (classes), float32 [m] or [m, C] "
                "(targets), a label for each pixel, [m, height, width], or boxes, float32 [m, K, 5]"
            )
        wide = np.int64 if self.labels.dtype.kind in "iu" else np.float32
        if self.labels.ndim < 3 and (self.labels.dtype.itemsize < 4 or self.labels.dtype.kind == "u"):
            object.__setattr__(self, "labels", self.labels.astype(wide))  # losses take no smaller ones
        if self.dense:
            object.__setattr__(self, "labels", _check_masks(self.labels, self.image_shape))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dense(self) -> bool:
        """Whether there is a class for each pixel."""
        return self.labels.ndim == 3 and self.labels.dtype.kind in "iu"

    @property
    def has_boxes(self) -> bool:
        """Whether the labels of an example are boxes, float32 [K, 5] (engine.data.boxes)."""
        return self.labels.ndim == 3 and self.labels.dtype.kind == "f" and self.labels.shape[2] == 5

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an example of the first input: (height, width, channels) of an image."""
        return tuple(self.images.shape[1:])

    @property
    def input_specs(self) -> dict[str, ArraySpec]:
        """The shape and dtype of each input, the first one first."""
        every = {self.input_name: self.images, **self.inputs}
        return {name: ArraySpec(tuple(given.shape[1:]), np.dtype(given.dtype)) for name, given in every.items()}

    @property
    def image_dtype(self) -> np.dtype[Any]:
        return self.images.dtype

    def _check_names(self) -> None:
        """Raises DataError unless inputs are named like inputs, and columns like labels and weights."""
        names = [self.input_name, *self.inputs]
        if wrong := [name for name in names if not name or not is_input(name)]:
            raise DataError(
                f"inputs: {wrong[0]!r} is not a valid name of an input; a batch has something else of this name"
            )
        if len(set(names)) < len(names):
            raise DataError(f"inputs: two are called {self.input_name!r}")
        for name in (self.label_name, *self.columns):
            if name.partition("/")[0] not in (LABEL, WEIGHT):
                raise DataError(f"columns: {name!r} is not a valid name; expected weight, label/TASK or weight/TASK")
        if self.label_name in self.columns:
            raise DataError(f"columns: {self.label_name!r} is the name of ``labels``")

    def _check_images(self) -> None:
        shape, dtype = self.images.shape, np.dtype(self.images.dtype)
        if len(shape) != 4:
            if self.input_name != "image":
                _check_input(self.input_name, self.images)
                return
            raise DataError(f"images: shape {list(shape)}; expected [n, height, width, channels]")
        if dtype not in (np.uint8, np.float32):
            raise DataError(
                f"images: {dtype}; expected uint8, or float32 with values in [0, 1]"
                + (" (images.astype(np.float32))" if dtype.kind == "f" else "")
            )
        if dtype == np.float32 and isinstance(self.images, np.ndarray) and len(self.index):
            some = self.images[self.index[:: -(-len(self.index) // 64)]]
            if some.size and not (some.min() >= 0.0 and some.max() <= 1.0):
                raise DataError(
                    f"images: float32 with values from {some.min():g} to {some.max():g}; expected 0 to 1 (divide pixels by "
                    "255, or give them as uint8)"
                )

    def _positions(self, positions: Any) -> np.ndarray:
        """Positions as int64 [m]; DataError if they are anything else, or there are no such examples."""
        found = np.asarray(positions)
        if found.dtype == bool and found.shape == (len(self),):
            found = np.flatnonzero(found)
        if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
            number = (
                f"; np.arange({found}) are the first {found}" if found.ndim == 0 and found.dtype.kind in "iu" else ""
            )
            raise DataError(
                f"positions={reprlib.repr(positions)}: expected an array of positions, int64 [m], each from 0 to "
                f"{len(self) - 1}{number}"
            )
        if len(wrong := np.flatnonzero((found < 0) | (found >= len(self)))):
            raise DataError(
                f"positions[{wrong[0]}]={found[wrong[0]]}: there are {len(self)} examples, at positions 0 to {len(self) - 1}"
            )
        return found.astype(np.int64, copy=False)

    def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the inputs, labels, weights and the "index" of the examples at these positions, int64 [m].

        These are "image", "label" and "index" where the data have nothing else. Raises DataError for a position that there is not, or with the name of an unreadable image file.
        """
        rest = self.read_rest(positions)
        return self.read_inputs(rest["index"]) | rest

    def read_inputs(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the inputs with these numbers, int64 [m], by name."""
        return {self.input_name: self.images[numbers]} | {name: each[numbers] for name, each in self.inputs.items()}

    def read_rest(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what ``read`` does, without the inputs; raises DataError for a position that there is not."""
        positions = self._positions(positions)
        own = {name: values[positions] for name, values in self.columns.items()}
        return {self.label_name: self.labels[positions]} | own | {"index": self.index[positions]}

    def take(self, positions: np.ndarray) -> Part:
        """Returns a part with the examples at these positions of this one, int64 [m], in this order.

        ``np.arange(n)`` are the first n, and a mask, bool with one entry per example, selects those that are true. Raises
        DataError for a position that there is not.
        """
        positions = self._positions(positions)
        shares = None if self.hold_out is None else self.hold_out[positions]
        own = {name: values[positions] for name, values in self.columns.items()}
        given: dict[str, Any] = {"labels": self.labels[positions], "index": self.index[positions]}
        return replace(self, **given, hold_out=shares, columns=own)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set with a training, an evaluation and perhaps a test part.

    Attributes:
        name: the name that it was opened by.
        classes: the names of the classes, in the order of the labels; empty if the labels are float targets.
        train, eval, test: the parts; ``eval is train`` only until an evaluation part is held out.
        skipped: the unreadable image files that were left out.
        named: whether ``classes`` are the data's own names; otherwise they are just numbers.
        columns: the names of the columns of [n, C] targets, where the data name them.
        tasks: where there are several labels for an example, what each is, by the name of its task; ``classes`` and
            ``columns`` are then those of the first.
        texts: of texts, how they became tokens (engine.data.text_encoder.TextEncoder).
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    eval: Part
    test: Part | None
    skipped: tuple[str, ...] = ()
    named: bool = True
    columns: tuple[str, ...] = ()
    tasks: tuple[Target, ...] = ()
    texts: Any = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an example of the first input: (height, width, channels) of an image."""
        return self.train.image_shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The data's own names of classes or columns, in the order of a model's outputs; None if they have none."""
        return (self.classes if self.named else ()) or self.columns or None

    def with_classes(self) -> Source:
        """The source with one-hot labels [n, C] as classes; itself if its labels are anything else."""
        parts = {name: part for name in ("train", "eval", "test") if (part := getattr(self, name)) is not None}
        if self.classes or any(find_not_one_hot(part.labels) is not None for part in parts.values()):
            return self
        count = self.train.labels.shape[1]
        made = {name: replace(part, labels=part.labels.argmax(axis=1)) for name, part in parts.items()}
        return replace(self, classes=self.columns or number_classes(count), named=bool(self.columns), **made)

    def outputs(self, loss: str) -> int:
        """Returns the number of outputs that a model needs; raises DataError if the labels do not suit the loss."""
        labels = self.train.labels
        if loss == "centers" and not self.train.has_boxes:
            raise DataError(f"data={self.name}: the loss centers needs boxes, as boxes:FILE.csv has them")
        if self.train.has_boxes:
            if loss in _NOT_FOR_BOXES:
                raise DataError(f"data={self.name}: the loss {loss} takes no boxes; expected centers")
            return len(self.classes) + GEOMETRY
        if self.train.dense and loss != "softmax":
            raise DataError(
                f"data={self.name}: the labels are masks, a class for each pixel, which the loss {loss} does not take; "
                "expected softmax or dice"
            )
        if loss == "softmax":
            if not self.classes:
                raise DataError(f"data={self.name}: {self._misfit()}")
            return len(self.classes)
        if labels.ndim == 2:
            return int(labels.shape[1])
        if loss == "sigmoid" and self.classes and len(self.classes) > 2:
            raise DataError(
                f"data={self.name}: the loss sigmoid needs labels 0 and 1, [n] or [n, C], but these are "
                f"{len(self.classes)} classes; use softmax"
            )
        return 1

    def _misfit(self) -> str:
        """Why targets are not the classes that the loss softmax needs."""
        if self.train.dense:
            return "the labels are masks, but the source does not name their classes (Source.classes)"
        for name in ("train", "eval", "test"):
            part = getattr(self, name)
            row = None if part is None or part.labels.ndim == 1 else find_not_one_hot(part.labels)
            if row is not None:
                return (
                    "the loss softmax needs a class for each example, as an integer or one-hot, but the labels of "
                    f"example {row} of the {name} part are {part.labels[row].tolist()}; the loss sigmoid takes several "
                    "labels for an example"
                )
        if self.train.labels.ndim == 2:
            return "the loss softmax needs classes, but these labels are one-hot; Source.with_classes() converts them"
        return (
            f"the loss softmax needs integer class labels, but these are {self.train.labels.dtype} targets; save classes "
            "as integers, or train on targets with the loss mse"
        )

    def fingerprint(self) -> str:
        """Returns a SHA-256, in hexadecimal, over the training and evaluation data, which a resumed run compares."""
        hasher = hashlib.sha256()
        for part in (self.train, self.eval):
            hasher.update(repr((part.image_shape, part.image_dtype.str, part.labels.shape)).encode())
            hasher.update(part.index.tobytes() + part.labels.tobytes())
            for name, values in part.columns.items():
                hasher.update(repr((name, values.dtype.str, values.shape)).encode() + values.tobytes())
            for name, each in part.inputs.items():
                hasher.update(repr((name, np.dtype(each.dtype).str, each.shape)).encode())
        every = [each for part in (self.train, self.eval) for each in (part.images, *part.inputs.values())]
        for images in {id(each): each for each in every}.values():
            if isinstance(images, np.ndarray):
                hasher.update(np.ascontiguousarray(images).data)
            else:
                hasher.update(images.fingerprint().encode())  # type: ignore[attr-defined]
        return hasher.hexdigest()


def _check_masks(labels: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """Labels of pixels as uint8; raises DataError if they are not the numbers of classes, or have another size than images."""
    if labels.shape[1:] != image[:2]:
        raise DataError(
            f"labels: masks of {list(labels.shape[1:])} for images of {list(image[:2])}; expected a class for each pixel"
        )
    if labels.dtype != np.uint8 and labels.size and not (labels.min() >= 0 and labels.max() <= IGNORED):
        raise DataError(
            f"labels: masks with numbers from {labels.min()} to {labels.max()}; expected classes from 0 to {IGNORED - 1}, and "
            f"{IGNORED} for pixels that do not count"
        )
    return labels.astype(np.uint8, copy=False)


def _check_input(name: str, given: Images) -> None:
    """Raises DataError unless an input is an array of numbers with an axis of examples and one or more others."""
    shape, dtype = given.shape, np.dtype(given.dtype)
    if len(shape) < 2 or dtype not in (np.uint8, np.float32, np.int32, np.int64, np.bool_):
        raise DataError(f"{name}: {dtype} {list(shape)}; expected [n, ...], of uint8, float32, int32, int64 or bool")
    if dtype == np.float32 and isinstance(given, np.ndarray) and given.size and not np.isfinite(given).all():
        raise DataError(f"{name}: float32 with values that are not finite; expected numbers")


def check_labels(spec: str, name: str, labels: np.ndarray, classes: int) -> None:
    """Raises DataError unless every class label is at least 0 and below the number of classes."""
    if labels.dtype.kind == "f":
        return
    if labels.ndim == 3:
        for number, mask in enumerate(labels):
            if (wrong := mask[(mask >= classes) & (mask != IGNORED)]).size:
                raise DataError(
                    f"data={spec}: {name}[{number}] has pixels of class {wrong.max()}; the classes are 0 to {classes - 1}, and "
                    f"{IGNORED} is ignored"
                )
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        from_one = "; the labels seem to count from 1: subtract 1 from them"
        raise DataError(
            f"data={spec}: {name}[{wrong[0]}]={labels[wrong[0]]} is out of range; the classes are 0 to {classes - 1} "
            f"({len(wrong)} labels are wrong){from_one if labels.min() == 1 and labels.max() == classes else ''}"
        )
