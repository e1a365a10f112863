"""Image folders with label images (masks) beside the images: one class for each pixel.

    DIR/images/...  DIR/masks/...                                          (an evaluation part is held out)
    DIR/train/images/...  DIR/train/masks/...  DIR/val/...  DIR/test/...   (val and test may be missing)

The mask of ``images/a/b.jpg`` is ``masks/a/b.png``. ``DIR/classes.txt`` names the classes, one in each line.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from engine.data.class_pixels import count_pixels
from engine.data.divided import make_divided
from engine.data.header import SUFFIXES, BadImageError, read_header
from engine.data.image_files import ImageFiles, Say, printable
from engine.data.label_images import SUFFIX, read_label_image, resize_labels
from engine.data.layout import Content, decide_layout
from engine.data.mask_rule import (
    MOST_CLASSES,
    OBJECT_NAMES,
    MaskRule,
    Numbers,
    apply_rule,
    check_numbers,
    count_numbers,
)
from engine.data.part import IGNORED, DataError, Part, Source, number_classes
from engine.data.resize import Size
from engine.files import FileError
from engine.reading import check_memory, open_file, read_file
from engine.sizes import format_bytes
from engine.text import join_some, join_words

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
_LARGEST_NAMES = 1 << 20  # bytes of classes.txt
_AT_ONCE = 32  # masks that are decoded before their numbers are looked at

Pairs = Sequence[tuple[str, str]]  # paths of an image and its mask in DIR


def has_masks(folder: pathlib.Path) -> bool:
    """Whether a folder, or each of its folders that is not empty, has folders ``images`` and ``masks``."""
    inside = _folders(folder)
    if {IMAGES, MASKS} <= set(inside):
        return True
    filled = [found for name in inside if (found := _folders(folder / name))]
    return bool(filled) and all({IMAGES, MASKS} <= set(found) for found in filled)


def open_mask_folder(
    spec: str,
    folder: pathlib.Path,
    *,
    rule: MaskRule,
    size: Size,
    budget: int,
    skip_bad: bool,
    to_train: bool = True,
    say: Say = print,
) -> Source:
    """Opens images with their masks: labels uint8 [m, height, width], a class for each pixel or ``IGNORED``.

    Masks are resized as their images are, by the nearest pixel, and kept in memory. If there is no val, ``eval`` is
    ``train``, whose ``hold_out`` says how to divide it. ``rule`` says what the numbers in masks mean; ``to_train`` is that of
    ``SourceRequest``; for the other arguments see ``ImageFiles``, with a ``budget`` for masks and images together.

    Raises:
        DataError: an image has no mask or one of another size, files cannot be read, the numbers in masks cannot be those
            of classes or occur only in another part than train, or masks do not fit the budget.
    """
    names = _read_names(spec, folder)
    listing = _list(spec, folder, say, to_train=to_train)
    pairs = [pair for part in listing.values() for pair in part]
    needed = len(pairs) * size[0] * size[1]
    if needed > budget:
        raise DataError(
            f"data={spec}: {len(pairs):,} masks of {size[0]}x{size[1]} take {format_bytes(needed)} of memory, where they "
            f"stay, but --image_cache allows {format_bytes(budget)}; give --image_cache={needed} or more, or a smaller "
            "--image_size"
        )
    try:
        check_memory(folder, needed, f"an array of {len(pairs):,} masks of {size[0]}x{size[1]}")
    except FileError as error:
        raise DataError(f"data={spec}: {error}, or give a smaller --image_size") from None
    files = [image for image, _ in pairs]
    images = ImageFiles(spec, folder, files, size=size, budget=budget - needed, skip_bad=skip_bad, say=say)
    numbers, start = Numbers.empty(), 0
    bad: dict[int, str] = {}
    parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for part, own in listing.items():
        labels, wrong = _read_masks(folder, own, rule, size, numbers, skip={n - start for n in images.bad})
        bad |= {start + number: reason for number, reason in wrong.items()}
        good = np.array([number for number in range(len(own)) if start + number not in {*images.bad, *wrong}], np.int64)
        shares = np.array([_share(image) for image, _ in own])
        parts[part] = (labels if len(good) == len(own) else labels[good], start + good, shares[good])
        start += len(own)
    if bad and not skip_bad:
        listed = "".join(f"\n  {printable(pairs[n][1])}: {reason}" for n, reason in list(bad.items())[:10])
        more = f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"data={spec}: {len(bad)} of {len(pairs)} masks cannot be used (--bad_images=skip leaves them out, with their "
            f"images):{listed}{more}"
        )
    for part, (_, index, _) in parts.items():
        if not len(index):
            raise DataError(f"data={spec}: {part} has no readable image with a mask")
    count = check_numbers(spec, numbers, rule, names, to_train=to_train)
    made = {part: Part(images, labels, index, shares) for part, (labels, index, shares) in parts.items()}
    if to_train and names is None and rule.kind != "instances":
        _check_last_classes(spec, made, count)
    chosen = names or (OBJECT_NAMES if rule.kind == "instances" else number_classes(count))
    say(_describe(rule, chosen, named=names is not None))
    return make_divided(
        spec,
        chosen,
        made,
        skipped=tuple(printable(files[number]) for number in sorted({*images.bad, *bad})),
        named=names is not None or rule.kind == "instances",
    )


def _read_names(spec: str, folder: pathlib.Path) -> tuple[str, ...] | None:
    """The names in ``classes.txt``, in the order of their numbers; None if there is no such file."""
    path = folder / NAMES
    if not path.is_file():
        return None
    try:
        lines = read_file(path, _LARGEST_NAMES).decode("utf-8-sig").rstrip().splitlines()
    except (FileError, UnicodeDecodeError) as error:
        raise DataError(f"data={spec}: {NAMES} cannot be read as text ({error})") from None
    names = tuple(printable(line.strip()) for line in lines)
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            what = "is empty" if not name else f"names {name!r} a second time"
            raise DataError(f"data={spec}: {NAMES}: line {number + 1} {what}; expected one class in each line")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"data={spec}: {NAMES} names {len(names)} classes; expected 2 to {MOST_CLASSES}, one in each line"
        )
    return names


def _list(spec: str, folder: pathlib.Path, say: Say, *, to_train: bool) -> dict[str, Pairs]:
    """The pairs of image and mask in each part; says what was left out."""
    ignored: collections.Counter[str] = collections.Counter()
    inside = _folders(folder)
    if {IMAGES, MASKS} <= set(inside):
        if others := sorted(set(inside) - {IMAGES, MASKS}):
            raise DataError(
                f"data={spec}: beside {IMAGES} and {MASKS} there is {join_words(map(printable, others))}; move it elsewhere, or "
                f"rename {IMAGES} and {MASKS} if all of them are classes"
            )
        roots = {"train": ""}
    else:
        top = {name: Content(0, len(_folders(folder / name))) for name in inside}
        layout = decide_layout(spec, folder, top, to_train=to_train)
        for line in layout.notes:
            say(printable(line))
        roots = {part: f"{name}/" if name else "" for part, name in layout.roots.items()}
        if roots.get("train") == "":
            raise DataError(
                f"data={spec}: {join_words(map(printable, inside))} have folders {IMAGES} and {MASKS}; expected train, val and "
                f"test above them, or {IMAGES} and {MASKS} in {folder} itself"
            )
        ignored |= collections.Counter({f"folder {printable(name)} next to train": 1 for name in layout.left_out})
    listing = {part: _pair(spec, folder, root, ignored) for part, root in roots.items()}
    if ignored:
        say("data: left out: " + ", ".join(f"{what} ({count:,})" for what, count in sorted(ignored.items())))
    return listing


def _pair(spec: str, folder: pathlib.Path, root: str, ignored: collections.Counter[str]) -> Pairs:
    """The images below ``root``, each with its mask, as paths in ``folder``; DataError if there is not one mask for each."""
    if set(_folders(folder / root)) != {IMAGES, MASKS}:
        found = join_words(map(printable, _folders(folder / root))) or "none"
        raise DataError(
            f"data={spec}: {printable(root.rstrip('/')) or folder}: expected just the folders {IMAGES} and {MASKS}, as in the "
            f"other parts; its folders are: {found}"
        )
    images = _files(folder / root / IMAGES, SUFFIXES, ignored)
    masks = _files(folder / root / MASKS, SUFFIXES, ignored)
    where = printable(root)
    if not images:
        raise DataError(f"data={spec}: there are no images ({', '.join(SUFFIXES)}) in {folder}/{where}{IMAGES}")
    for files, what in ((images, IMAGES), (masks, MASKS)):
        for stem, names in files.items():
            if len(names) > 1:
                raise DataError(
                    f"data={spec}: {where}{what} has {join_words(map(printable, names))}, which have the same name "
                    f"({printable(stem)}); an image and its mask are matched by it"
                )
    alone = [names[0] for stem, names in masks.items() if stem not in images]
    if missing := [stem for stem in images if stem not in masks]:
        others = f"; masks without an image: {join_some([printable(name) for name in alone])}" if alone else ""
        raise DataError(
            f"data={spec}: {len(missing)} of {len(images)} images in {where}{IMAGES} have no mask: "
            f"{join_some([printable(stem) for stem in missing])}; the mask of {IMAGES}/NAME.jpg is {MASKS}/NAME.png{others}"
        )
    if lossy := [names[0] for names in masks.values() if not names[0].lower().endswith(SUFFIX)]:
        raise DataError(
            f"data={spec}: {where}{MASKS} has {printable(lossy[0])}; expected PNG, which stores the numbers of classes exactly"
        )
    if alone:
        ignored["masks without an image"] += len(alone)
    return [(f"{root}{IMAGES}/{images[stem][0]}", f"{root}{MASKS}/{masks[stem][0]}") for stem in sorted(images)]


def _files(root: pathlib.Path, suffixes: Sequence[str], ignored: collections.Counter[str]) -> dict[str, list[str]]:
    """The image files below a folder by their paths in it without the suffix, each with its whole path in it."""
    found: dict[str, list[str]] = {}
    for place, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        if links:
            ignored["links to folders"] += len(links)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.relpath(os.path.join(place, name), root).replace(os.sep, "/")
            stem, suffix = os.path.splitext(path)
            if name.startswith("."):
                ignored["hidden files"] += 1
            elif suffix.lower() in suffixes:
                found.setdefault(stem, []).append(path)
            else:
                ignored[f"{printable(suffix.lower())} files" if suffix else "files without a suffix"] += 1
    return found


def _folders(folder: pathlib.Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError:
        return []


def _share(image: str) -> float:
    """A number in [0, 1) that depends only on an image's path inside its folder ``images``."""
    own = image.partition(f"{IMAGES}/")[2]
    return int.from_bytes(hashlib.sha256(os.fsencode(own)).digest()[:6], "big") / 2**48


def _read_masks(
    folder: pathlib.Path, pairs: Pairs, rule: MaskRule, size: Size, numbers: Numbers, *, skip: set[int]
) -> tuple[np.ndarray, dict[int, str]]:
    """The labels of a part, uint8 [m, *size], and why masks cannot be used; ``numbers`` counts what is in them."""
    labels = np.full((len(pairs), *size), IGNORED, np.uint8)
    wanted, bad = [number for number in range(len(pairs)) if number not in skip], {}

    def read(number: int) -> tuple[np.ndarray, int] | str:
        image, mask = pairs[number]
        try:
            stored = read_label_image(folder / mask)
            _check_size(folder / image, image, stored.shape)
        except BadImageError as error:
            return str(error)
        labels[number] = resize_labels(apply_rule(stored, rule), size)
        return count_numbers(stored, rule)

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="masks") as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            for number, found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, str):
                    bad[number] = found
                else:
                    numbers.add(*found)
    return labels, bad


def _check_size(path: pathlib.Path, name: str, shape: tuple[int, ...]) -> None:
    """Raises BadImageError unless an image is upright and has the size of its mask."""
    try:
        with open_file(path) as file:
            header = read_header(file)
    except FileError as error:
        raise BadImageError(f"its image {printable(name)} cannot be opened ({error})") from None
    if (header.height, header.width) != shape:
        raise BadImageError(
            f"it has {shape[1]}x{shape[0]} pixels, but its image {printable(name)} has {header.width}x{header.height}"
        )
    if header.orientation != 1:
        raise BadImageError(
            f"its image {printable(name)} is turned by its Exif data (orientation {header.orientation}), and whether the mask is "
            "turned too is not known; save the image upright, without Exif data"
        )


def _check_last_classes(spec: str, parts: Mapping[str, Part], count: int) -> None:
    """Raises DataError if the last classes, of which only their numbers tell, occur in another part than train alone."""
    found = {name: np.flatnonzero(count_pixels(part.labels)[:IGNORED]) for name, part in parts.items()}
    last = int(found["train"].max(initial=0))
    for name, used in found.items():
        if len(used) and used[-1] > last:
            raise DataError(
                f"data={spec}: class {used[-1]} occurs in {name}, but the classes of train are 0 to {last}; {NAMES} in the "
                f"folder, which names all {count}, makes it known, or --masks=classes,ignore={used[-1]} leaves it out"
            )


def _describe(rule: MaskRule, names: Sequence[str], *, named: bool) -> str:
    """What was decided about the numbers in masks, a line for people."""
    if rule.kind == "instances":
        what = f"0 is {names[0]}, any other number {names[1]}"
    elif named:
        what = f"{len(names)} classes, named by {NAMES}: {join_words(names)}"
    else:
        what = f"{len(names)} classes, the numbers 0 to {len(names) - 1}"
    ignored = "no number is ignored" if rule.ignore is None else f"pixels of {rule.ignore} are ignored"
    return f"data: masks: {what}; {ignored}"
