"""Opens data sources by name: indexed examples with a training, an evaluation and perhaps a test part."""

from __future__ import annotations

import math
import pathlib
from dataclasses import replace

import numpy as np

from engine import part_times
from engine.data import arrays, order
from engine.data.folder import open_folder
from engine.data.image_files import Say
from engine.data.part import DataError, Images, Part, Source, check_count, check_labels
from engine.data.resize import Size, check_image_size
from engine.text import nearest

__all__ = ["SOURCES", "DataError", "Images", "Part", "Source", "check_labels", "open_data"]

EMBEDDED = "fashion_mnist_mini"
SOURCES = (EMBEDDED, "fashion_mnist", "idx:DIR", "folder:DIR", "npz:FILE")
BAD_IMAGES = ("stop", "skip")
IMAGE_CACHE = 1 << 30
FOLDER_SIZE = (224, 224)


@part_times.part("data")
def open_data(
    spec: str,
    *,
    eval_fraction: float | None = None,
    train_examples: int | None = None,
    image_size: Size | None = None,
    bad_images: str = "stop",
    image_cache: int = IMAGE_CACHE,
    say: Say = print,
) -> Source:
    """Opens a data set by name, with its training, evaluation and perhaps test part.

    Args:
        spec: ``fashion_mnist_mini`` (embedded, needs no files), ``fashion_mnist``, ``idx:DIR`` (MNIST-style files),
            ``folder:DIR`` (images, one folder per class) or ``npz:FILE`` (arrays).
        eval_fraction: the share of the training part that is held out for evaluation if the source has no evaluation
            part; None means 0.1. Independently of any seed, a hash of the file name (in a folder) or a fixed permutation
            decides which examples.
        train_examples: the number of training examples to use, chosen by a fixed permutation; None uses all.
        image_size: the pixels that images are resized to (engine.data.resize): N, (height, width) or a text such as
            ``192x256``; None keeps arrays as they are and resizes image files to 224x224.
        bad_images: unreadable image files: "stop" raises an error that names them, "skip" leaves them out.
        image_cache: the bytes of memory for decoded or resized images; images beyond that are decoded or resized each
            time they are read, with the same result.
        say: a function that is called with messages: what was left out, and the progress of slow work.

    Raises:
        DataError: the source is unknown, files are missing or damaged, labels are invalid, or a share or number of
            examples leaves a part empty.

    Example:
        >>> from engine import open_data
        >>> source = open_data("fashion_mnist_mini", train_examples=100)
        >>> len(source.train), source.image_shape, source.classes[:2]
        (100, (28, 28, 1), ('T-shirt', 'Trouser'))
    """
    source = open_undivided(spec, image_size=image_size, bad_images=bad_images, image_cache=image_cache, say=say)
    if source.eval is source.train:
        source = _hold_out(source, 0.1 if eval_fraction is None else eval_fraction)
    elif eval_fraction is not None:
        raise DataError(f"eval_fraction={eval_fraction}: {spec} has its own evaluation part, so nothing is held out")
    if train_examples is not None:
        check_count("train_examples", train_examples)
        if not 1 <= train_examples <= len(source.train):
            raise DataError(f"train_examples={train_examples}: expected 1 to {len(source.train)}, all that {spec} has")
        chosen = np.sort(order.fixed_permutation(len(source.train))[:train_examples])
        source = replace(source, train=source.train.take(chosen))
    return source


def open_undivided(
    spec: str, *, image_size: Size | None, bad_images: str, image_cache: int, say: Say = print
) -> Source:
    """Opens a data set as ``open_data`` does, without holding anything out: ``eval is train`` if it has no such part."""
    check_source(spec, bad_images=bad_images)
    image_size = check_image_size(image_size)
    kind, _, rest = spec.partition(":")
    if spec == EMBEDDED:
        file = pathlib.Path(__file__).with_name("fashion_mnist_mini.npz")
        source = arrays.load_npz(spec, file, arrays.FASHION, size=image_size, budget=image_cache)
    elif spec == "fashion_mnist":
        source = arrays.load_fashion_mnist(spec, size=image_size, budget=image_cache)
    elif kind == "npz" and rest:
        source = arrays.load_npz(spec, pathlib.Path(rest), size=image_size, budget=image_cache)
    elif kind == "idx" and rest:
        source = arrays.load_idx(spec, pathlib.Path(rest), size=image_size, budget=image_cache)
    else:
        size, skip = image_size or FOLDER_SIZE, bad_images == "skip"
        source = open_folder(spec, pathlib.Path(rest), size=size, budget=image_cache, skip_bad=skip, say=say)
    if kind != "folder" and (line := arrays.describe_empty_classes(source)) is not None:
        say(line)
    return source


def check_source(spec: str, *, bad_images: str = "stop") -> None:
    """Raises DataError if the source or ``bad_images`` is unknown, or does not fit the other. Opens no file."""
    kind, _, rest = spec.partition(":")
    if bad_images not in BAD_IMAGES:
        raise DataError(
            f"bad_images={bad_images!r}: expected {' or '.join(BAD_IMAGES)}{nearest(bad_images, list(BAD_IMAGES))}"
        )
    if bad_images == "skip" and kind != "folder":
        raise DataError(f"bad_images=skip: {spec} has no image files; only folder:DIR has some")
    if spec not in (EMBEDDED, "fashion_mnist") and not (kind in ("idx", "folder", "npz") and rest):
        raise DataError(f"data={spec!r}: expected one of {', '.join(SOURCES)}{nearest(spec, list(SOURCES))}")


def _hold_out(source: Source, fraction: float) -> Source:
    count, shares = len(source.train), source.train.hold_out
    if shares is not None:
        return _hold_out_by_name(source, shares, fraction)
    held = round(count * fraction) if math.isfinite(fraction) else 0
    if not (0.0 < fraction < 1.0 and 1 <= held < count):
        raise DataError(
            f"eval_fraction={fraction}: expected a number between 0 and 1 that leaves at least one of the {count} "
            "examples for training and one for evaluation"
        )
    mixed = order.fixed_permutation(count)
    return replace(
        source, train=source.train.take(np.sort(mixed[held:])), eval=source.train.take(np.sort(mixed[:held]))
    )


def _hold_out_by_name(source: Source, shares: np.ndarray, fraction: float) -> Source:
    if not 0.0 < fraction < 1.0:
        raise DataError(f"eval_fraction={fraction}: expected a number between 0 and 1")
    held = shares < fraction
    if not held.any():
        enough = math.floor(shares.min() * 1000 + 1) / 1000
        raise DataError(
            f"eval_fraction={fraction}: this holds out none of the {len(held)} images, which are divided by their file "
            f"names; use {enough:g}, or add a folder val to {source.name}"
        )
    left = np.bincount(source.train.labels[~held], minlength=len(source.classes))
    for number in np.flatnonzero(left == 0):
        raise DataError(
            f"eval_fraction={fraction}: this leaves no image of class {source.classes[number]!r} of {source.name} to "
            "train on; add images to the class, or add a folder val"
        )
    return replace(source, train=source.train.take(np.flatnonzero(~held)), eval=source.train.take(np.flatnonzero(held)))
