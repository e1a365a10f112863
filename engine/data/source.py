"""Opens data sources by name: indexed examples with a train, an evaluation and perhaps a test part."""

from __future__ import annotations

import math
import pathlib
from dataclasses import replace

import numpy as np

from engine.data import arrays, order
from engine.data.folder import open_folder
from engine.data.image_files import Say
from engine.data.part import DataError, Images, Part, Source, check_labels
from engine.data.resize import Size
from engine.text import nearest

__all__ = ["SOURCES", "DataError", "Images", "Part", "Source", "check_labels", "open_data"]

EMBEDDED = "fashion_mnist_mini"
SOURCES = (EMBEDDED, "fashion_mnist", "idx:DIR", "folder:DIR", "npz:FILE")
BAD_IMAGES = ("stop", "skip")
IMAGE_CACHE = 1 << 30
FOLDER_SIZE = (224, 224)


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
    """Opens a source: ``fashion_mnist_mini``, ``fashion_mnist``, ``idx:DIR``, ``folder:DIR`` or ``npz:FILE``.

    Args:
        spec: the source.
        eval_fraction: share of train held out for evaluation where the source has no such part
            (0.1 when None); chosen by a hash of the file's name in a folder, else by a fixed
            permutation, whatever the run's seed.
        train_examples: use only so many training examples, chosen by a fixed permutation.
        image_size: (height, width) that images are resized to (engine.data.resize); None leaves arrays
            as they are and makes 224x224 of image files.
        bad_images: what is done with image files that cannot be read, "stop" or "skip"; they are named.
        image_cache: bytes of memory for decoded or resized images; what does not fit is decoded or
            resized again at every reading, with the same result.
        say: told what was left out, and about progress when it takes long.

    Raises:
        DataError: unknown source, missing or damaged files, labels that make no sense, or a share or count
            that leaves a part empty.
    """
    kind, _, rest = spec.partition(":")
    if bad_images not in BAD_IMAGES:
        raise DataError(
            f"bad_images={bad_images!r}: it is {' or '.join(BAD_IMAGES)}{nearest(bad_images, list(BAD_IMAGES))}"
        )
    if bad_images == "skip" and kind != "folder":
        raise DataError(f"bad_images=skip: {spec} has no image files; only folder:DIR has")
    if spec == EMBEDDED:
        file = pathlib.Path(__file__).with_name("fashion_mnist_mini.npz")
        source = arrays.from_npz(spec, file, arrays.FASHION, size=image_size, budget=image_cache)
    elif spec == "fashion_mnist":
        source = arrays.fashion_mnist(spec, size=image_size, budget=image_cache)
    elif kind == "npz" and rest:
        source = arrays.from_npz(spec, pathlib.Path(rest), size=image_size, budget=image_cache)
    elif kind == "idx" and rest:
        source = arrays.from_idx(spec, pathlib.Path(rest), size=image_size, budget=image_cache)
    elif kind == "folder" and rest:
        size, skip = image_size or FOLDER_SIZE, bad_images == "skip"
        source = open_folder(spec, pathlib.Path(rest), size=size, budget=image_cache, skip_bad=skip, say=say)
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
        source = replace(source, train=source.train.take(chosen))
    return source


def _hold_out(source: Source, fraction: float) -> Source:
    count, shares = len(source.train), source.train.hold_out
    if shares is not None:
        return _hold_out_by_name(source, shares, fraction)
    held = round(count * fraction) if math.isfinite(fraction) else 0
    if not (0.0 < fraction < 1.0 and 1 <= held < count):
        raise DataError(
            f"eval_fraction={fraction}: it lies between 0 and 1 and leaves at least one of the {count} "
            "examples to training and one to evaluation"
        )
    mixed = order.fixed_permutation(count)
    return replace(
        source, train=source.train.take(np.sort(mixed[held:])), eval=source.train.take(np.sort(mixed[:held]))
    )


def _hold_out_by_name(source: Source, shares: np.ndarray, fraction: float) -> Source:
    if not 0.0 < fraction < 1.0:
        raise DataError(f"eval_fraction={fraction}: it lies between 0 and 1")
    held = shares < fraction
    if not held.any():
        enough = math.floor(shares.min() * 1000 + 1) / 1000
        raise DataError(
            f"eval_fraction={fraction}: of {len(held)} images, divided by their file names, it holds out none; "
            f"{enough:g} would, or give {source.name} a folder val"
        )
    left = np.bincount(source.train.labels[~held], minlength=len(source.classes))
    for number in np.flatnonzero(left == 0):
        raise DataError(
            f"eval_fraction={fraction}: it leaves class {source.classes[number]!r} of {source.name} no image to train "
            "on; give it more images, or the folder a val of its own"
        )
    return replace(source, train=source.train.take(np.flatnonzero(~held)), eval=source.train.take(np.flatnonzero(held)))
