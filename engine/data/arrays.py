"""Data sources that are arrays: .npz files and MNIST-style idx files."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from engine.data.batch_names import WEIGHT
from engine.data.decode import as_form
from engine.data.divided import make_divided, name_label_columns
from engine.data.header import BadImageError
from engine.data.idx import holds_idx, read_idx_folder
from engine.data.image_files import Say, printable
from engine.data.image_options import DEFAULT, ImageForm, ImageOptions
from engine.data.named_weights import check_weights
from engine.data.part import DataError, Part, Source, check_labels, number_classes
from engine.data.part_names import PARTS, find_misnamed
from engine.data.resize import Size, resize_all
from engine.data.source_request import check_nan
from engine.files import FileError, Npz
from engine.text import join_some, join_words

FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")  # from the package dataset-fashion-mnist
_SECONDS = 15.0  # how long a download may be silent before it is given up

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]  # train, val or test -> images, labels


def load_npz(
    spec: str,
    file: pathlib.Path,
    classes: Sequence[str] | None = None,
    *,
    size: Size | None,
    budget: int,
    options: ImageOptions = DEFAULT,
    say: Say = lambda line: None,
    to_train: bool = True,
) -> Source:
    """Reads the arrays train_*, test_* and val_* of an .npz file, and ``class_names`` if the file has it.

    They are images, labels, and optionally weights [n], which say how much each example counts.

    Args:
        spec: the name of the source, for error messages.
        classes: the class names if the file has none.
        size, budget: the (height, width) that images are resized to, or None; the bytes that they may take then.
        options: how they are resized, and what becomes of NaN.
        say: is called with a line on arrays of the file that are not read.

    Raises:
        DataError: the file cannot be read, or its arrays do not fit together.
    """
    try:
        with Npz(file) as npz:
            names = npz.names()
            whats = ("images", "labels", "weights")
            own = [f"{prefix}_{what}" for prefix in PARTS for what in whats]
            if (wrong := find_misnamed(names, whats, own)) is not None:
                raise DataError(f"data={spec}: the array {wrong[0]} would not be read; expected {wrong[1]}")
            needed = [f"{prefix}_{what}" for prefix in _list_parts(names, to_train) for what in ("images", "labels")]
            if missing := [name for name in needed if name not in names]:
                raise DataError(
                    f"data={spec}: the file has no {' and no '.join(missing)}; it has {', '.join(names) or 'no arrays'}"
                )
            arrays = {
                prefix: (npz.read(f"{prefix}_images"), npz.read(f"{prefix}_labels"))
                for prefix in _list_parts(names, to_train)
            }
            named = [str(name) for name in npz.read("class_names").ravel()] if "class_names" in names else None
            weights = {prefix: npz.read(name) for prefix in arrays if (name := f"{prefix}_weights") in names}
    except FileError as error:
        raise DataError(f"data={spec}: {error}") from None
    read = {"class_names", *(f"{prefix}_{what}" for prefix in arrays for what in ("images", "labels", "weights"))}
    tell_unread(spec, set(names) - read, say=say)
    given: dict[str, Any] = {
        "size": size,
        "budget": budget,
        "options": options,
        "to_train": to_train,
        "weights": weights,
    }
    return _source(spec, arrays, named or classes, **given)


def tell_unread(spec: str, names: Collection[str], *, say: Say) -> None:
    """Tells ``say`` which arrays of an .npz file were not read, if there are any."""
    if names:
        say(f"data: {spec}: not read: {printable(join_some(sorted(names)))}")


def _list_parts(names: Sequence[str], to_train: bool) -> list[str]:
    """The parts of a file with these arrays; train is one of them anyway, unless its data are only evaluated."""
    found = [prefix for prefix in PARTS if f"{prefix}_images" in names or f"{prefix}_labels" in names]
    return found if "train" in found or (found and not to_train) else ["train", *found]


def load_idx(
    spec: str,
    folder: pathlib.Path,
    classes: Sequence[str] | None = None,
    *,
    size: Size | None,
    budget: int,
    options: ImageOptions = DEFAULT,
    to_train: bool = True,
) -> Source:
    """Reads the four files of an MNIST-style folder (engine.data.idx). Arguments and errors are those of ``load_npz``."""
    try:
        arrays = read_idx_folder(folder, to_train=to_train)
    except FileError as error:
        raise DataError(f"data={spec}: {error}") from None
    return _source(spec, arrays, classes, size=size, budget=budget, options=options, to_train=to_train)


def load_fashion_mnist(
    spec: str, *, size: Size | None, budget: int, options: ImageOptions = DEFAULT, to_train: bool = True
) -> Source:
    """Loads the full Fashion-MNIST from Debian's files, from Keras' earlier download or by a download of Keras.

    Raises DataError if there are no files, and the download fails or is silent for 15 seconds.
    """
    if holds_idx(DEBIAN):
        return load_idx(spec, DEBIAN, FASHION, size=size, budget=budget, options=options, to_train=to_train)
    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        train, test = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # urllib, sockets, gzip, numpy and Keras raise a dozen types
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data={spec}: there are no files in {DEBIAN} (Debian's package dataset-fashion-mnist), and Keras can neither "
            f"read them from ~/.keras/datasets/fashion-mnist nor download them: {text[:200]}. Install the package, or "
            "put its four files into a folder and use --data=idx:FOLDER; fashion_mnist_mini needs no files"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return _source(
        spec, {"train": train, "test": test}, FASHION, size=size, budget=budget, options=options, to_train=to_train
    )


def _source(
    spec: str,
    arrays: Pairs,
    classes: Sequence[str] | None,
    *,
    size: Size | None,
    budget: int,
    options: ImageOptions,
    to_train: bool,
    weights: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Source:
    checked = {prefix: _checked(spec, prefix, *pair, options) for prefix, pair in arrays.items()}
    if to_train and all(images.dtype.kind != "f" for images, _ in arrays.values()):
        check_nan(spec, options, f"its images are {arrays['train'][0].dtype}")
    first, (train_images, train_labels) = next(iter(checked.items()))  # another part than train may lack classes
    seen = [train_labels] if to_train else [labels for _, labels in checked.values()]
    given, classes = classes, _class_names(spec, seen, classes)
    for prefix, (images, labels) in checked.items():
        if images.shape[1:] != train_images.shape[1:] or labels.shape[1:] != train_labels.shape[1:]:
            raise DataError(
                f"data={spec}: {prefix} has images {list(images.shape)} and labels {list(labels.shape)}, but {first} has "
                f"{list(train_images.shape)} and {list(train_labels.shape)}"
            )
        if labels.dtype != train_labels.dtype:
            raise DataError(
                f"data={spec}: {prefix}_labels is {arrays[prefix][1].dtype} but {first}_labels is "
                f"{arrays[first][1].dtype}; both must be classes (integers) or both targets (floats)"
            )
        check_labels(spec, f"{prefix}_labels", labels, len(classes))
    parts = {}
    for prefix, (images, labels) in checked.items():
        pad = options.image_fit == "pad"
        fitted = images if size is None else resize_all(images, size, budget=budget, pad=pad)
        budget -= fitted.nbytes if isinstance(fitted, np.ndarray) and fitted is not images else 0
        own = {}
        if prefix in weights:
            own[WEIGHT] = check_weights(f"data={spec}: {prefix}_weights", weights[prefix], len(images))
        parts[prefix] = Part(fitted, labels, np.arange(len(images), dtype=np.int64), columns=own)
    columns = name_label_columns(spec, given, train_labels)
    return make_divided(spec, classes, parts, named=given is not None, columns=columns)


def describe_empty_classes(source: Source) -> str | None:
    """A line on classes without a training example: often the labels count from 1, or are numbers with gaps."""
    if not source.classes:
        return None
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return None
    if empty.tolist() == [0]:
        return (
            f"data: the labels count from 1 to {len(counts) - 1}, so class 0 ({source.classes[0]!r}) has no training "
            "example; classes count from 0, so subtract 1 from the labels if 1 is the first class"
        )
    names = join_words(source.classes[number] for number in empty)
    return f"data: {len(empty)} of {len(counts)} classes without a training example: {names} (labels count from 0)"


def _checked(spec: str, prefix: str, images: Any, labels: Any, options: ImageOptions) -> tuple[np.ndarray, np.ndarray]:
    """Checks images and labels, and converts them to uint8 or float32 [n, height, width, channels] and int64 or float32.

    Images of 16 bits become float32, the value divided by 65535.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"data={spec}: {prefix}_images has shape {list(images.shape)}; expected [n, height, width(, channels)]"
        )
    if options.image_pixels == "rgb" and images.shape[3] not in (1, 3):
        raise DataError(
            f"data={spec}: {prefix}_images has {images.shape[3]} channels; expected 1 or 3 (--image_pixels=stored takes any "
            "number)"
        )
    if images.shape[3] > 4 and images.shape[1] <= 4:
        raise DataError(
            f"data={spec}: {prefix}_images has shape {list(images.shape)}, which looks like channels first; expected channels "
            "last (np.moveaxis(images, 1, -1))"
        )
    if images.dtype not in (np.uint8, np.uint16) and images.dtype.kind != "f":
        raise DataError(
            f"data={spec}: {prefix}_images is {images.dtype}; expected uint8, or float in [0, 1], or uint16"
        )
    try:
        dtype = np.dtype(np.uint8 if images.dtype == np.uint8 else np.float32)
        form = ImageForm(size=images.shape[1:3], channels=images.shape[3], dtype=dtype, options=options)
        images = as_form(images, form)
    except BadImageError as error:
        raise DataError(f"data={spec}: {prefix}_images is float, with values outside [0, 1]: {error}") from None
    if labels.ndim not in (1, 2) or len(labels) != len(images) or 0 in labels.shape:
        raise DataError(
            f"data={spec}: {prefix}_labels has shape {list(labels.shape)} for {len(images)} images; expected [n] or [n, C]"
        )
    if labels.dtype.kind not in "iufb":
        raise DataError(
            f"data={spec}: {prefix}_labels is {labels.dtype}; expected integers (classes) or floats (targets)"
        )
    if labels.dtype.kind != "f" and labels.shape[1:] == (1,):
        labels = labels[:, 0]  # a column of classes
    if labels.dtype.kind == "f" or labels.ndim == 2:
        labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            raise DataError(f"data={spec}: {prefix}_labels holds NaN or infinity")
    else:
        labels = labels.astype(np.int64)
    return images, labels


def _class_names(spec: str, labels: Sequence[np.ndarray], given: Sequence[str] | None) -> Sequence[str]:
    if labels[0].dtype.kind == "f":
        return ()
    if given is not None:
        return given
    largest = max(int(each.max()) for each in labels)
    if largest >= 100_000:
        raise DataError(f"data={spec}: train_labels go up to {largest}; expected classes from 0 to at most 99,999")
    return number_classes(largest + 1)
