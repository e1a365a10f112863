"""Sources that are arrays: .npz files and MNIST-style idx files."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.data.idx import holds_idx, read_idx_folder
from engine.data.part import DataError, Part, Source, check_labels
from engine.data.resize import Size, resized
from engine.files import FileError, Npz

FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_SECONDS = 15.0  # without an answer, until a download is given up

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]  # train, val, test -> images, labels


def from_npz(
    spec: str, file: pathlib.Path, classes: Sequence[str] | None = None, *, size: Size | None, budget: int
) -> Source:
    """Reads train_*, test_* and val_* arrays; ``class_names`` is used where the file has it.

    Args:
        spec: the source, for errors.
        file: the .npz.
        classes: names, where the file has none.
        size: (height, width) that images are resized to, or None.
        budget: bytes that resized images may take in memory.

    Raises:
        DataError: the file cannot be read, or its arrays do not fit.
    """
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
    return _source(spec, arrays, named or classes, size=size, budget=budget)


def from_idx(
    spec: str, folder: pathlib.Path, classes: Sequence[str] | None = None, *, size: Size | None, budget: int
) -> Source:
    """Reads the four files of an MNIST-style folder (engine.data.idx); arguments and errors as ``from_npz``."""
    try:
        arrays = read_idx_folder(folder)
    except FileError as error:
        raise DataError(f"data={spec}: {error}") from None
    return _source(spec, arrays, classes, size=size, budget=budget)


def fashion_mnist(spec: str, *, size: Size | None, budget: int) -> Source:
    """The whole Fashion-MNIST: Debian's files, else what Keras has downloaded before, else Keras' download.

    Raises:
        DataError: none of them is there, and the download fails or gives no answer for 15 seconds.
    """
    if holds_idx(DEBIAN):
        return from_idx(spec, DEBIAN, FASHION, size=size, budget=budget)
    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        train, test = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # urllib, sockets, gzip, numpy and Keras raise a dozen types
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data={spec}: {DEBIAN} does not hold it (Debian's package dataset-fashion-mnist), and Keras can neither "
            f"read it from ~/.keras/datasets/fashion-mnist nor download it: {text[:200]}. Install the package, or "
            "put its four files into a folder and say --data=idx:FOLDER; fashion_mnist_mini needs no file"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return _source(spec, {"train": train, "test": test}, FASHION, size=size, budget=budget)


def _source(spec: str, arrays: Pairs, classes: Sequence[str] | None, *, size: Size | None, budget: int) -> Source:
    checked = {prefix: _checked(spec, prefix, *pair) for prefix, pair in arrays.items()}
    train_images, train_labels = checked["train"]
    classes = _class_names(spec, train_labels, classes)
    for prefix, (images, labels) in checked.items():
        if images.shape[1:] != train_images.shape[1:] or labels.shape[1:] != train_labels.shape[1:]:
            raise DataError(
                f"data={spec}: {prefix} has images {list(images.shape)} and labels {list(labels.shape)}, "
                f"train {list(train_images.shape)} and {list(train_labels.shape)}"
            )
        if labels.dtype != train_labels.dtype:
            raise DataError(
                f"data={spec}: {prefix}_labels is {arrays[prefix][1].dtype}, train_labels {arrays['train'][1].dtype}; "
                "both hold classes (integers) or both targets (floats)"
            )
        check_labels(spec, f"{prefix}_labels", labels, len(classes))
    parts = {}
    for prefix, (images, labels) in checked.items():
        fitted = images if size is None else resized(images, size, budget=budget)
        budget -= fitted.nbytes if isinstance(fitted, np.ndarray) and fitted is not images else 0
        parts[prefix] = Part(fitted, labels, np.arange(len(images), dtype=np.int64))
    return Source(spec, tuple(classes), parts["train"], parts.get("val", parts["train"]), parts.get("test"))


def _checked(spec: str, prefix: str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 or float32 [n, height, width, channels], labels int64 or float32."""
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
    return images, labels


def _class_names(spec: str, labels: np.ndarray, given: Sequence[str] | None) -> Sequence[str]:
    if labels.dtype.kind == "f":
        return ()
    if given is not None:
        return given
    largest = int(labels.max())
    if largest >= 100_000:
        raise DataError(f"data={spec}: train_labels reach {largest}; classes are numbered from 0 and at most 100,000")
    return [str(number) for number in range(largest + 1)]
