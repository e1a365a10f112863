"""``boxes:FILE.csv``: images with boxes around objects, for detection.

The labels of an example are its boxes, float32 [K, 5]: class, x1, y1, x2, y2, where the edges are shares of the width and
height of the input (0 is its left or upper edge, 1 its right or lower one). K is the most boxes that an image has; a row of
class -1 is not a box.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.data import box_geometry
from engine.data.box_table import COORDINATES, Listed, Table, read_boxes
from engine.data.divided import make_divided
from engine.data.folder import share_of_name
from engine.data.header import SUFFIXES
from engine.data.image_files import ImageFiles, Say, printable, read_file_header
from engine.data.image_options import ImageForm, Size
from engine.data.part import DataError, Part, Source
from engine.data.part_names import PARTS
from engine.data.source_request import SourceRequest
from engine.errors import FileError
from engine.reading import check_memory
from engine.text import join_some, join_words, nearest

NO_BOX = -1.0  # in the place of a class
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "coordinates": tuple(COORDINATES),
    "exif": ("upright", "stored"),
    "outside": ("stop", "cut"),
    "unlisted": ("empty", "skip"),
}
_NAMED = 5  # images or boxes in a message


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a source of boxes, which follow its file after commas.

    Attributes:
        images: the folder that the paths in the table start from; None means that of the table. With it, images of the
            folder that the table does not name count as images without objects (``unlisted=skip`` leaves them out).
        coordinates: "corners" (columns x1, y1, x2, y2) or "xywh".
        exif: whether boxes of photos that are stored in another orientation refer to the image as it is seen ("upright")
            or as it is "stored"; None refuses such photos.
        outside: whether a box that reaches out of its image is an error ("stop") or "cut" at its edge.
        unlisted: "empty" or "skip".
    """

    images: str | None = None
    coordinates: Literal["corners", "xywh"] = "corners"
    exif: Literal["upright", "stored"] | None = None
    outside: Literal["stop", "cut"] = "stop"
    unlisted: Literal["empty", "skip"] | None = None


def parse_boxes(spec: str) -> tuple[str, Options]:
    """The file and the options of ``boxes:FILE.csv[,NAME=VALUE ...]``; DataError for an unknown option or value."""
    file, *rest = spec.partition(":")[2].split(",")
    known = ["images", *_CHOICES]
    given: dict[str, str] = {}
    for item in rest:
        name, equals, value = (word.strip() for word in item.partition("="))
        if name not in known or not equals or not value:
            raise DataError(
                f"data={spec!r}: `{item}` is not an option of boxes:FILE.csv; expected NAME=VALUE with NAME one of "
                f"{', '.join(known)}{nearest(name, known)}"
            )
        if name in given:
            raise DataError(f"data={spec!r}: `{name}` is given twice")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise DataError(
                f"data={spec!r}: {name}={value!r}: expected {' or '.join(_CHOICES[name])}"
                f"{nearest(value, list(_CHOICES[name]))}"
            )
        given[name] = value
    if not file.strip():
        raise DataError(f"data={spec!r}: expected boxes:FILE.csv")
    if "unlisted" in given and "images" not in given:
        raise DataError(
            f"data={spec!r}: unlisted={given['unlisted']} needs images=DIR, the folder that is looked through"
        )
    return file.strip(), Options(**given)  # type: ignore[arg-type]


def open_boxes(request: SourceRequest) -> Source:
    """Opens images with boxes. Without a column ``split``, ``eval`` is ``train``, whose ``hold_out`` says how to divide it.

    Images are read and resized as all image files are (``SourceRequest.images``). Boxes are moved and cut with them; one of which less than a quarter of the area remains falls away. What was decided is told to ``say``.

    Raises:
        DataError: the table, an option or an image is not valid, a box reaches out of its image, or a class has no box to
            train on.
    """
    spec, say = request.spec, request.say
    name, options = parse_boxes(spec)
    file = pathlib.Path(name)
    table = read_boxes(spec, file, coordinates=options.coordinates)
    folder = file.parent if options.images is None else pathlib.Path(options.images)
    listed = _find_images(spec, file, folder, table, options, say)
    names = list(listed)
    given = {"size": request.choose_size(), "budget": request.budget, "skip_bad": request.skip_bad, "say": say}
    images = ImageFiles(spec, folder, names, options=request.images, **given)  # type: ignore[arg-type]
    request.check_nan(images.holds_floats, "no image stores floats")
    rows = [listed[name] for name in names]
    part_of = np.array(
        [-1 if number in images.bad else PARTS.index(row.split or "train") for number, row in enumerate(rows)]
    )
    classes = _find_classes(spec, rows, part_of, to_train=request.to_train)
    good = np.flatnonzero(part_of >= 0)
    placed, counts = _place(spec, file, folder, names, rows, good, images.form, options)
    labels = _as_labels(spec, file, placed, classes, len(names), images.form.size)
    _describe(rows, good, labels, counts, table, images.form.size, say)
    shares = np.array([share_of_name(name) for name in names])
    parts = {}
    for number, part in enumerate(PARTS):
        index = np.flatnonzero(part_of == number).astype(np.int64)
        if len(index):
            parts[part] = Part(images, labels[index], index, shares[index])
    if not parts or ("train" not in parts and request.to_train):
        raise DataError(f"data={spec}: {file} has no image of the part train that can be read")
    if request.to_train:
        check_trained(spec, parts["train"].labels, classes)
    return make_divided(spec, classes, parts, skipped=tuple(printable(names[number]) for number in images.bad))


def check_trained(spec: str, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raises DataError unless each class has a box among these labels [m, K, 5]."""
    numbers = labels[..., 0].ravel().astype(np.int64)
    missing = np.flatnonzero(np.bincount(numbers[numbers >= 0], minlength=len(classes)) == 0)
    if len(missing):
        named = join_words(printable(classes[int(number)]) for number in missing)
        raise DataError(
            f"data={spec}: no box of class {named} is left to train on, once images are resized and, where they have to be, "
            "divided; another --image_size or --eval_fraction leaves some, or add images"
        )


def _find_images(
    spec: str, file: pathlib.Path, folder: pathlib.Path, table: Table, options: Options, say: Say
) -> dict[str, Listed]:
    """The images of the table, and those of the folder that it does not name, by their paths in the folder."""
    if options.images is not None and not folder.is_dir():
        raise DataError(f"data={spec}: images={folder}: there is no such folder")
    missing = [name for name in table.images if not os.path.exists(folder / name)]
    if missing:
        near = _images_below(folder)
        first = printable(missing[0])
        way_out = "images=DIR says where they are" if options.images is None else "images=DIR names another folder"
        raise DataError(
            f"data={spec}: {len(missing):,} of the {len(table.images):,} images that {file} names do not exist in "
            f"{folder}: {join_some([printable(name) for name in missing], most=_NAMED)} (line "
            f"{table.images[missing[0]].line}){nearest(first, near)}; {way_out}"
        )
    found = dict(table.images)
    if options.images is None:
        return found
    others = [name for name in _images_below(folder) if name not in found]
    if not others:
        return found
    what = f"{len(others):,} images of {folder} are not in {file}, such as {printable(others[0])}"
    if options.unlisted == "skip":
        say(f"data: left out: {what}")
        return found
    if table.divided:
        raise DataError(
            f"data={spec}: {what}; its column split divides images, so give each a row (with empty cells if it has no "
            "objects), or leave them out with the option unlisted=skip"
        )
    say(f"data: {what}: they count as images without objects (unlisted=skip leaves them out)")
    return found | {name: Listed("", 0) for name in others}


def _images_below(folder: pathlib.Path) -> list[str]:
    """The image files in a folder and its sub-folders, as paths in it, sorted; those of hidden folders are left out."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        own = os.path.relpath(root, folder)
        found += [
            os.path.normpath(os.path.join(own, name))
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _find_classes(spec: str, rows: Sequence[Listed], part_of: np.ndarray, *, to_train: bool) -> tuple[str, ...]:
    """The names of the classes of the training part, in order; DataError if another part has others.

    Of data that are only evaluated, they are those of all parts.
    """
    found: dict[int, dict[str, int]] = {number: {} for number in range(-1, len(PARTS))}
    for part, row in zip(part_of, rows, strict=True):
        for box, line in zip(row.boxes, row.lines, strict=True):
            found[int(part)].setdefault(box[0], line)
    known = found[0] if to_train else {name: line for own in found.values() for name, line in own.items()}
    if not known:
        what = "of the part train have no box; there is nothing to learn from"
        raise DataError(
            f"data={spec}: the images {what if to_train else 'have no box; there is nothing to evaluate by'}"
        )
    for number, part in enumerate(PARTS):
        for name, line in found[number].items():
            if name not in known:
                raise DataError(
                    f"data={spec}: line {line}: class {printable(name)!r} has boxes in the part {part}, but none in the "
                    f"part train{nearest(name, list(known))}"
                )
    numeric = all(name.isascii() and name.isdecimal() for name in known)
    return tuple(sorted(known, key=(lambda name: (int(name), name)) if numeric else None))  # type: ignore[arg-type]


@dataclass
class _Counts:
    """What happened to boxes: how many were cut at the edge of the cropped image, and how many fell away."""

    cut: int = 0
    fallen: int = 0


def _place(
    spec: str,
    file: pathlib.Path,
    folder: pathlib.Path,
    names: Sequence[str],
    rows: Sequence[Listed],
    good: np.ndarray,
    form: ImageForm,
    options: Options,
) -> tuple[dict[int, tuple[list[str], np.ndarray]], _Counts]:
    """The boxes that remain of each image, in pixels of the resized image, with their classes; by the image's number."""
    placed: dict[int, tuple[list[str], np.ndarray]] = {}
    counts, outside, turned = _Counts(), [], []
    for number in good:
        row, name = rows[number], names[number]
        if not row.boxes:
            continue
        header = read_file_header(folder / name)
        if not header.whole:
            raise DataError(
                f"data={spec}: {printable(name)}: the first frame of the GIF does not fill it; save it as PNG"
            )
        height, width = header.upright
        boxes = np.array([box[1:] for box in row.boxes], np.float64)
        if header.orientation != 1:
            turned.append(printable(name))
            if options.exif == "stored":
                height, width = header.height, header.width
        inside, _ = box_geometry.cut_boxes(boxes, height, width)
        for at in np.flatnonzero((inside != boxes).any(axis=1)):
            gone = not box_geometry.areas(inside[at]) > 0
            if gone or options.outside == "stop":
                corners = ", ".join(f"{value:.10g}" for value in row.boxes[at][1:])
                what = "lies outside of" if gone else "reaches out of"
                outside.append(
                    f"line {row.lines[at]}: the box {corners} {what} {printable(name)}, {width}x{height} pixels"
                )
        moved = box_geometry.place_boxes(inside, header, form, stored=options.exif == "stored")
        cut, remain = box_geometry.cut_boxes(moved, *form.size)
        counts.cut += int((remain & (np.abs(cut - moved) > 1e-6).any(axis=1)).sum())
        counts.fallen += int((~remain).sum())
        placed[int(number)] = [box[0] for box, stays in zip(row.boxes, remain, strict=True) if stays], cut[remain]
    if turned and options.exif is None:
        raise DataError(
            f"data={spec}: {len(turned):,} of the images with boxes are stored turned or mirrored (Exif), such as {turned[0]}; the option "
            "exif=upright says that boxes refer to the image as viewers show it, exif=stored that they refer to its pixels "
            "as they are stored"
        )
    if outside:
        listed = "".join(f"\n  {line}" for line in outside[:_NAMED])
        more = f"\n  ... and {len(outside) - _NAMED:,} more" if len(outside) > _NAMED else ""
        way_out = (
            "; the option outside=cut cuts boxes that reach out of their image" if options.outside == "stop" else ""
        )
        raise DataError(f"data={spec}: boxes of {file} do not lie in their images{way_out}:{listed}{more}")
    return placed, counts


def _as_labels(
    spec: str,
    file: pathlib.Path,
    placed: Mapping[int, tuple[list[str], np.ndarray]],
    classes: Sequence[str],
    count: int,
    size: Size,
) -> np.ndarray:
    """The labels of all images, float32 [count, K, 5]; DataError before they take more memory than there is."""
    numbers = {name: number for number, name in enumerate(classes)}
    most = max(1, max((len(boxes) for _, boxes in placed.values()), default=0))
    what = f"an array of {most:,} boxes, the most of an image, for each of {count:,} images"
    try:
        check_memory(file, 2 * count * most * 5 * 4, what)  # twice: the parts have copies of their own
    except FileError as error:
        raise DataError(f"data={spec}: {error}, or leave out or divide the images with the most boxes") from None
    labels = np.zeros([count, most, 5], np.float32)
    labels[..., 0] = NO_BOX
    for number, (named, boxes) in placed.items():
        labels[number, : len(boxes), 0] = [numbers[name] for name in named]
        labels[number, : len(boxes), 1:] = boxes / np.array([size[1], size[0], size[1], size[0]])
    return labels


def _describe(
    rows: Sequence[Listed], good: np.ndarray, labels: np.ndarray, counts: _Counts, table: Table, size: Size, say: Say
) -> None:
    """Tells what was read, and what was decided about it."""
    total = sum(len(rows[number].boxes) for number in good)
    empty = sum(not rows[number].boxes for number in good)
    say(
        f"data: {len(good):,} images, {empty:,} of them without objects; {total:,} boxes, at most {labels.shape[1]:,} in an "
        "image"
    )
    if table.repeated:
        say(f"data: left out: rows that repeat another one ({table.repeated:,})")
    if counts.cut or counts.fallen:
        say(
            f"data: images are cropped about their centres to {size[0]}x{size[1]} pixels (height x width); boxes cut at the edge: "
            f"{counts.cut:,}; left out, because less than {box_geometry.KEPT:.0%} of them remains: {counts.fallen:,}. --image_fit=pad, "
            "or an --image_size of the images' own shape, crops nothing"
        )
    pixels = labels[..., 1:] * np.array([size[1], size[0], size[1], size[0]], np.float32)
    sides = np.minimum(pixels[..., 2] - pixels[..., 0], pixels[..., 3] - pixels[..., 1])
    if small := int(((labels[..., 0] >= 0) & (sides < 1.0)).sum()):
        say(
            f"data: boxes less than a pixel wide or high at this size: {small:,}; a larger --image_size shows more of them"
        )
