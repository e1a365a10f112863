"""Opens data sources by name: indexed examples with a training, an evaluation and perhaps a test part."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from engine import outside_names, part_times
from engine.data import arrays, features, order
from engine.data.batch_names import label_name, weight_name
from engine.data.boxes import check_trained, open_boxes, parse_boxes
from engine.data.class_pixels import describe_absent_classes
from engine.data.examples import make_source
from engine.data.folder import open_folder
from engine.data.image_files import Say
from engine.data.image_options import DEFAULT, ImageOptions
from engine.data.layout import FOLDER_PARTS
from engine.data.manifest import open_manifest
from engine.data.manifest_options import KINDS, parse_manifest
from engine.data.mask_folder import has_masks, open_mask_folder
from engine.data.mask_rule import parse_masks
from engine.data.part import DataError, Images, Part, Source, check_labels
from engine.data.resize import Size, check_image_size
from engine.data.source_request import SourceRequest, check_nan
from engine.data.text_name import parse_text_name
from engine.data.text_source import open_text
from engine.data.tfds_options import parse_tfds
from engine.data.tokens import TokenizerFiles
from engine.text import nearest

__all__ = ["SOURCES", "DataError", "Images", "Part", "Source", "check_labels", "open_data"]

EMBEDDED = "fashion_mnist_mini"
SOURCES = (
    *(EMBEDDED, "fashion_mnist", "idx:DIR", "folder:DIR", "npz:FILE", "csv:FILE", "table:FILE", "boxes:FILE"),
    *("tfds:NAME", "text:PATH"),
    "py:module:name",
)
OF_FILES = ("folder", "csv", "boxes")  # kinds of sources whose images are files
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
    parts: str = "auto",
    images: ImageOptions = DEFAULT,
    file_size: Size | Callable[[], Size] = FOLDER_SIZE,
    masks: str | None = None,
    tokenizer: TokenizerFiles | None = None,
    say: Say = print,
) -> Source:
    """Opens a data set by name, with its training, evaluation and perhaps test part.

    Args:
        spec: ``fashion_mnist_mini`` (embedded, needs no files), ``fashion_mnist``, ``idx:DIR`` (MNIST-style files),
            ``folder:DIR`` (images, one folder per class), ``npz:FILE`` (arrays), ``csv:FILE`` (a manifest of images or
            vectors), ``table:FILE`` (vectors), ``boxes:FILE`` (images with boxes around objects; engine.data.boxes),
            ``tfds:NAME`` (TensorFlow Datasets), ``text:PATH`` (docs/text.md) or ``py:module:name`` (a function of yours that
            returns a Source or engine.data.examples.ExampleSet).
        eval_fraction: the share of the training part that is held out for evaluation if the source has no evaluation
            part; None means 0.1. Independently of any seed, a hash of the file name (in a folder) or a fixed permutation
            decides which examples.
        train_examples: the number of training examples to use, chosen by a fixed permutation; None uses all.
        image_size: the pixels that images are resized to (engine.data.resize): N, (height, width) or a text such as
            ``192x256``; None keeps arrays as they are and resizes image files to ``file_size``.
        bad_images: unreadable image files: "stop" raises an error that names them, "skip" leaves them out.
        image_cache: the bytes of memory for decoded or resized images; images beyond that are decoded or resized each
            time they are read, with the same result.
        parts: "off" reads every folder of ``folder:DIR`` as a class, whatever its name.
        images: how image files and float images become arrays.
        file_size: the (height, width) of image files for which no ``image_size`` is given, or a function that returns it.
        masks: what the numbers in label images mean (engine.data.mask_rule): ``classes`` or ``instances``, each with
            ``,ignore=N``; None takes them as classes unless they look like instances, which is an error.
        tokenizer: of ``text:PATH``, the tokenizer of the model (``engine.models.find_tokenizer``).
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
    given: dict[str, Any] = {
        "image_size": image_size,
        "bad_images": bad_images,
        "image_cache": image_cache,
        "parts": parts,
        "images": images,
        "file_size": file_size,
        "masks": masks,
        "tokenizer": tokenizer,
    }
    check_image_options(spec, images, resized=image_size is not None)
    source = open_undivided(spec, **given, say=say)
    if source.eval is source.train:
        source = _hold_out(source, 0.1 if eval_fraction is None else eval_fraction)
    elif eval_fraction is not None:
        raise DataError(f"eval_fraction={eval_fraction}: {spec} has its own evaluation part, so nothing is held out")
    if uses_own_moments(spec):
        source = features.standardise(source, say=say)
    if train_examples is not None:
        order.check_count("train_examples", train_examples)
        if not 1 <= train_examples <= len(source.train):
            raise DataError(f"train_examples={train_examples}: expected 1 to {len(source.train)}, all that {spec} has")
        chosen = np.sort(order.fixed_permutation(len(source.train))[:train_examples])
        source = replace(source, train=source.train.take(chosen))
    if source.train.dense:
        for line in describe_absent_classes(source):
            say(line)
    return source


def open_undivided(
    spec: str,
    *,
    image_size: Size | None,
    bad_images: str,
    image_cache: int,
    parts: str = "auto",
    images: ImageOptions = DEFAULT,
    file_size: Size | Callable[[], Size] = FOLDER_SIZE,
    masks: str | None = None,
    tokenizer: TokenizerFiles | None = None,
    to_train: bool = True,
    say: Say = print,
) -> Source:
    """Opens a data set as ``open_data`` does, without holding anything out: ``eval is train`` if it has no such part.

    ``to_train=False`` is for data that are only evaluated (``SourceRequest.to_train``).
    Features are not yet standardised where their own training part says how (``uses_own_moments``).
    """
    check_source(spec, bad_images=bad_images, parts=parts, images=images, masks=masks)
    request = SourceRequest(
        spec=spec,
        size=check_image_size(image_size),
        file_size=file_size,
        budget=image_cache,
        skip_bad=bad_images == "skip",
        images=images,
        to_train=to_train,
        say=say,
    )
    kind, _, rest = spec.partition(":")
    if kind == "folder":
        return _open_folder(request, parts, masks)
    if kind == "boxes":
        return open_boxes(request)
    if kind in KINDS:
        return open_manifest(request)
    if kind == "text":
        request.refuse_image_options("texts have no images; --max_tokens sets their length")
        return open_text(spec, tokenizer=tokenizer, to_train=to_train, say=say)
    if kind == "tfds":
        from engine.data.tfds import open_tfds  # only where it is asked for, since the package is an extra

        return open_tfds(request)
    if kind == "py":
        request.refuse_image_options("a source of your own makes its images itself")
        named = outside_names.import_named("data", spec, name=rest, what="source")
        given = outside_names.call_named("data", spec, named) if callable(named) else named
        return make_source(spec, given, to_train=to_train)
    source = _open_arrays(request)
    if to_train and (line := arrays.describe_empty_classes(source)) is not None:
        say(line)
    return source


def _open_folder(request: SourceRequest, parts: str, masks: str | None) -> Source:
    """An image folder: one with masks if it has folders images and masks, else one with a folder per class."""
    folder = pathlib.Path(request.rest)
    given: dict[str, Any] = {"size": request.choose_size(), "budget": request.budget, "skip_bad": request.skip_bad}
    given |= {"to_train": request.to_train, "say": request.say}
    if parts == "auto" and has_masks(folder):
        alone = replace(request, size=None, skip_bad=False)
        alone.refuse_image_options("images with masks are read as 8-bit colour, and resized to cover --image_size")
        return open_mask_folder(request.spec, folder, rule=parse_masks(masks), **given)
    if masks is not None:
        raise DataError(
            f"masks={masks}: {folder} has no folders images and masks, and its folders train, val and test have none either"
        )
    source = open_folder(request.spec, folder, parts=parts, options=request.images, **given)
    request.check_nan(source.train.images.holds_floats, "no image stores floats")  # type: ignore[attr-defined]
    return source


def _open_arrays(request: SourceRequest) -> Source:
    """The sources that are arrays in memory."""
    spec, rest = request.spec, pathlib.Path(request.rest)
    given: dict[str, Any] = {"size": request.size, "budget": request.budget, "options": request.images}
    given["to_train"] = request.to_train
    if spec == EMBEDDED:
        file = pathlib.Path(__file__).with_name("fashion_mnist_mini.npz")
        return arrays.load_npz(spec, file, arrays.FASHION, **given)
    if spec.startswith("npz:"):
        return arrays.load_npz(spec, rest, **given, say=request.say)
    if spec == "fashion_mnist":
        return arrays.load_fashion_mnist(spec, **given)
    return arrays.load_idx(spec, rest, **given)


def uses_own_moments(spec: str) -> bool:
    """Whether the features of a source are standardised by the mean and deviation of its own training part.

    Other data, which are evaluated with a model of that source, would then be scaled in another way than those that it
    was trained on.
    """
    return find_standardise(spec) == ""


def find_standardise(spec: str) -> str | None:
    """The file by whose training part the features of a source are standardised, "" for its own; None if they are not."""
    return parse_manifest(spec).standardise if spec.partition(":")[0] in KINDS else None


def find_place(spec: str) -> pathlib.Path | None:
    """The file or folder of a source that lies at one; None for the others."""
    kind, _, rest = spec.partition(":")
    if kind in KINDS:
        return pathlib.Path(parse_manifest(spec).file)
    if kind == "text":
        return parse_text_name(spec).path
    if kind == "boxes":
        return pathlib.Path(parse_boxes(spec)[0])
    return pathlib.Path(rest) if kind in ("npz", "idx", "folder") else None


def check_source(
    spec: str,
    *,
    bad_images: str = "stop",
    parts: str = "auto",
    images: ImageOptions = DEFAULT,
    masks: str | None = None,
) -> None:
    """Raises DataError if the source is unknown, or ``bad_images`` and the others are or do not fit it. Opens no file."""
    parse_masks(masks)
    kind, _, rest = spec.partition(":")
    for name, value, known in (("bad_images", bad_images, BAD_IMAGES), ("parts", parts, FOLDER_PARTS)):
        if value not in known:
            raise DataError(f"{name}={value!r}: expected {' or '.join(known)}{nearest(value, list(known))}")
    if bad_images == "skip" and kind not in OF_FILES:
        raise DataError(
            f"bad_images=skip: {spec} has no image files; only folder:DIR, csv:FILE and boxes:FILE have some"
        )
    if parts == "off" and kind != "folder":
        raise DataError(f"parts=off: {spec} has no folders; it is about folder:DIR")
    if masks is not None and kind != "folder":
        raise DataError(f"masks={masks}: {spec} has no label images; only folder:DIR has some")
    if spec not in (EMBEDDED, "fashion_mnist") and not (
        kind in ("idx", "folder", "npz", "boxes", "tfds", "py", "text", *KINDS) and rest
    ):
        raise DataError(f"data={spec!r}: expected one of {', '.join(SOURCES)}{nearest(spec, list(SOURCES))}")
    if kind in KINDS:
        parse_manifest(spec)
    elif kind == "boxes":
        parse_boxes(spec)
    elif kind == "tfds":
        parse_tfds(spec)
    elif kind == "text":
        parse_text_name(spec)


def check_image_options(spec: str, images: ImageOptions, *, resized: bool) -> None:
    """Raises DataError if something is asked of images that would change nothing in a source.

    ``resized`` says whether a size is asked for, without which images in arrays keep theirs.
    """
    kind = spec.partition(":")[0]
    in_arrays = kind in (EMBEDDED, "fashion_mnist", "idx", "npz")
    if images.image_fit == "pad" and in_arrays and not resized:
        raise DataError(
            f"image_fit=pad: the images of {spec} keep their size unless --image_size gives another; give it"
        )
    if images.image_pixels == "stored" and in_arrays and kind != "npz":
        raise DataError(f"image_pixels=stored: the images of {spec} are grey and of 8 bits anyway; leave it out")
    if images.image_pixels == "stored" and kind == "tfds":
        raise DataError(f"image_pixels=stored: the images of {spec} are read as they are stored anyway; leave it out")
    if images.nan == "zero":
        _check_nan(spec, images)


def _check_nan(spec: str, images: ImageOptions) -> None:
    """Raises DataError if the name of a source says that it holds no floats. Whether its files do is seen when they are opened."""
    kind = spec.partition(":")[0]
    features = kind in KINDS and (kind == "table" or bool(parse_manifest(spec).features))
    if kind in OF_FILES and images.image_pixels == "rgb" and not features:
        more = "; --image_pixels=stored reads floats of TIFF files"
        check_nan(spec, images, "its images are read as 8-bit colour", more)
    reasons = {
        "tfds": "its images are whole numbers",
        "py": "a source of your own fills in missing numbers itself",
        "text": "texts become whole numbers",
    }
    if kind not in ("npz", *KINDS, *OF_FILES):
        check_nan(spec, images, reasons.get(kind, "its images are grey and of 8 bits"))


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
    kind = source.name.partition(":")[0]
    ways = {"folder": "add a folder val", "text": "add a part val"}
    way_out = ways.get(kind, "mark rows as val in a column split")
    what, by = ("text", "their content") if kind == "text" else ("image", "their file names")
    inputs = list(source.train.input_specs.values())
    together = kind in KINDS and any(spec.is_image for spec in inputs[1:])  # rows that share an image have one share
    if len(held) > 1 and len(np.unique(shares)) == 1:
        why = "through the images that they share" if together else f"since {by} decide, and these are equal"
        raise DataError(
            f"eval_fraction={fraction}: all {len(held)} {what}s of {source.name} belong together, {why}, so none can be held out "
            f"by itself; {way_out}"
        )
    _, groups = np.unique(shares[held], return_counts=True)
    if together and fraction < 0.5 < groups.max(initial=0) / len(held):
        raise DataError(
            f"eval_fraction={fraction}: this holds out {int(held.sum())} of the {len(held)} rows of {source.name}, because so many belong "
            f"together through the images that they share; {way_out}"
        )
    if not held.any() or held.all():
        enough = math.floor(shares.min() * 1000 + 1) / 1000
        raise DataError(
            f"eval_fraction={fraction}: this holds out {'none' if not held.any() else 'all'} of the {len(held)} {what}s, which are divided "
            f"by {by}; use {enough:g}, or {way_out} to {source.name}"
        )
    if source.train.has_boxes:
        check_trained(source.name, source.train.labels[~held], source.classes)
    for name, labels, weights, classes in _list_labels(source):
        counts = weights > 0
        left = np.bincount(labels[~held & counts], minlength=len(classes))
        for number in np.flatnonzero(left == 0):
            if number in labels[counts]:
                raise DataError(
                    f"eval_fraction={fraction}: this leaves no {what} of class {classes[number]!r} of {source.name} to "
                    f"train on{f' ({name})' if name else ''}; add {what}s to the class, or {way_out}"
                )
    return replace(source, train=source.train.take(np.flatnonzero(~held)), eval=source.train.take(np.flatnonzero(held)))


def _list_labels(source: Source) -> list[tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]]:
    """The tasks of a source that have classes: name, labels and weights of the training part, and classes."""
    part, found = source.train, []
    tasks = [(task.name, task.classes) for task in source.tasks] or [("", source.classes)]
    for name, classes in tasks:
        values = part.labels if label_name(name) == part.label_name else part.columns[label_name(name)]
        weights = part.columns.get(weight_name(name), np.ones(len(part)))
        if classes and values.ndim == 1:
            found.append((name, values, weights, classes))
    return found
