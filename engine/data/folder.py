"""Image folders with one folder per class, in one of two layouts.

    DIR/train/CLASS/...  DIR/val/CLASS/...  DIR/test/CLASS/...      (val and test may be missing; engine.data.layout)
    DIR/CLASS/...                                                   (an evaluation part is held out)

A hash of a file's own name (its path inside the folder of its class) decides whether the file is held out, so adding or
removing files moves no other file between the parts.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib

import numpy as np

from engine.data.divided import make_divided
from engine.data.header import describe_left_out, image_suffixes
from engine.data.image_files import ImageFiles, Say, printable
from engine.data.image_options import DEFAULT, ImageOptions
from engine.data.layout import Content, Layout, decide_layout
from engine.data.part import DataError, Part, Source
from engine.data.part_names import PARTS
from engine.data.resize import Size
from engine.reading import describe_kind
from engine.text import nearest

_ARCHIVE_LEFTOVER = "__MACOSX"  # macOS adds it to zip files

Ignored = collections.Counter[str]
Listing = dict[str, dict[str, list[str]]]  # part -> class -> paths of files in DIR


def open_folder(
    spec: str,
    folder: pathlib.Path,
    *,
    size: Size,
    budget: int,
    skip_bad: bool,
    parts: str = "auto",
    options: ImageOptions = DEFAULT,
    to_train: bool = True,
    say: Say = print,
) -> Source:
    """Opens an image folder. If it has no val, ``eval`` is ``train``, whose ``hold_out`` says how to divide it.

    ``spec`` is the name of the source, for error messages; ``parts="off"`` reads every folder as a class. ``to_train``
    is that of ``SourceRequest``; for the other arguments see ``ImageFiles``.

    Raises:
        DataError: the folder does not exist, has no images or fewer than two classes, a class has no training images,
            or images cannot be read.
    """
    ignored: Ignored = collections.Counter()
    layout = _layout(spec, folder, parts, to_train=to_train)
    listing = _list(spec, folder, layout, ignored)
    for line in layout.notes:
        say(printable(line))
    if ignored:
        say("data: left out: " + ", ".join(f"{what} ({count:,})" for what, count in sorted(ignored.items())))
    classes = sorted(listing["train"] if to_train else {name for found in listing.values() for name in found})
    if to_train:
        _check_classes(spec, folder, listing, classes)
    rows = [
        (part, number, file)
        for part in PARTS
        for number, name in enumerate(classes)
        for file in listing.get(part, {}).get(name, [])
    ]
    names = [file for _, _, file in rows]
    shares = np.array([_share(layout.roots[part], classes[number], file) for part, number, file in rows])
    belongs = np.array([PARTS.index(part) for part, _, _ in rows])
    labels = np.array([number for _, number, _ in rows], np.int64)
    images = ImageFiles(spec, folder, names, size=size, budget=budget, skip_bad=skip_bad, options=options, say=say)
    belongs[list(images.bad)] = -1
    made: dict[str, Part] = {}
    for part in listing:
        index = np.flatnonzero(belongs == PARTS.index(part)).astype(np.int64)
        if not len(index):
            raise DataError(f"data={spec}: {part} has no readable image")
        made[part] = Part(images, labels[index], index, shares[index])
    counts = np.bincount(made["train"].labels, minlength=len(classes)) if to_train else np.ones(1)
    for number in np.flatnonzero(counts == 0):
        raise DataError(f"data={spec}: class {printable(classes[number])!r} has no readable training image")
    skipped = tuple(printable(names[number]) for number in images.bad)
    return make_divided(spec, [printable(name) for name in classes], made, skipped=skipped)


def _share(part: str, name: str, file: str) -> float:
    """A number in [0, 1) that depends only on a file's path inside the folder of its class."""
    return share_of_name(file.removeprefix(f"{part}/{name}/").removeprefix(f"{name}/"))


def share_of_name(own: str) -> float:
    """A number in [0, 1) that depends only on the name of a file."""
    return int.from_bytes(hashlib.sha256(os.fsencode(own)).digest()[:6], "big") / 2**48


def _check_classes(spec: str, folder: pathlib.Path, listing: Listing, classes: list[str]) -> None:
    for part, found in listing.items():
        for name in sorted(found):
            if part == "train" and not found[name]:
                raise DataError(
                    f"data={spec}: class {printable(name)!r} has no image ({', '.join(image_suffixes())}) to train on; "
                    "add some or remove the folder"
                )
            if name not in classes and found[name]:
                raise DataError(
                    f"data={spec}: {part}/{printable(name)}: train has no such class{nearest(name, classes)}; "
                    f"the classes of train are {', '.join(printable(c) for c in classes[:20])}"
                )
    if len(classes) < 2:
        hint = ""
        if (folder / classes[0]).is_dir() and _folders(spec, folder / classes[0]):
            inner = folder / printable(classes[0])
            hint = f"; {printable(classes[0])} itself has folders: did you mean folder:{inner}?"
        raise DataError(
            f"data={spec}: there is only one class, {printable(classes[0])!r}; a classifier needs two or more, with one "
            f"folder per class{hint}"
        )


def _layout(spec: str, folder: pathlib.Path, parts: str, *, to_train: bool) -> Layout:
    if not os.path.exists(folder):
        near = _folders(spec, folder.parent) if folder.parent.is_dir() else []
        raise DataError(f"data={spec}: there is no folder {folder}{nearest(folder.name, near)}")
    if not folder.is_dir():
        kind = describe_kind(folder.stat().st_mode)
        raise DataError(f"data={spec}: {folder} is {kind}; expected a folder with one folder per class")
    top = {}
    for name in _folders(spec, folder):
        images = sum(_is_image(entry.name) and not _is_folder(entry) for entry in _entries(spec, folder / name))
        top[name] = Content(images, len(_folders(spec, folder / name)))
    return decide_layout(spec, folder, top, parts=parts, to_train=to_train)


def _list(spec: str, folder: pathlib.Path, layout: Layout, ignored: Ignored) -> Listing:
    for name in layout.left_out:
        ignored[f"folder {printable(name)} next to train"] += 1
    roots = {part: f"{name}/" if name else "" for part, name in layout.roots.items()}
    classes = {part: _folders(spec, folder / root) for part, root in roots.items()}
    # Links to these folders, or to those above them, would bring in images of other classes or form a cycle.
    known = {_identity(path) for path in (folder.resolve(), *folder.resolve().parents)}
    for part, root in roots.items():
        known |= {_identity(folder / root), *(_identity(folder / root / name) for name in classes[part])}
    listing: Listing = {}
    for part, root in roots.items():
        listing[part] = {name: _images_below(spec, folder, f"{root}{name}", known, ignored) for name in classes[part]}
        loose = sum(_is_image(e.name) and not _is_folder(e) for e in _entries(spec, folder / root))
        if not any(listing[part].values()):
            where = printable(f"{folder}/{root}".rstrip("/"))
            how = f"{loose} images lie directly in {where}" if loose else f"there are no images below {where}"
            raise DataError(
                f"data={spec}: {how}; expected one folder of images ({', '.join(image_suffixes())}) per class"
            )
        if loose:
            ignored["images outside of class folders"] += loose
    return listing


def _images_below(
    spec: str, folder: pathlib.Path, root: str, known: set[tuple[int, int]], ignored: Ignored
) -> list[str]:
    """Lists the image files in the folder of a class and its subfolders: paths relative to ``folder``, sorted."""
    found: list[str] = []
    seen = set(known)
    left = [root]
    while left:
        inside = left.pop()
        for entry in _entries(spec, folder / inside):
            name = f"{inside}/{entry.name}"
            if entry.name.startswith("."):
                ignored["hidden files"] += 1
            elif _is_folder(entry):
                identity = _identity(folder / name)
                if identity in seen:
                    ignored["links to folders that are already read"] += 1
                else:
                    seen.add(identity)
                    left.append(name)
            elif _is_image(entry.name):
                found.append(name)
            else:
                suffix = os.path.splitext(entry.name)[1].lower()
                ignored[describe_left_out(printable(suffix))] += 1
    return sorted(found)


def _entries(spec: str, folder: pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"data={spec}: cannot read {folder} ({error.strerror or error})") from None


def _folders(spec: str, folder: pathlib.Path) -> list[str]:
    names = [entry.name for entry in _entries(spec, folder) if _is_folder(entry)]
    return [name for name in names if not name.startswith(".") and name != _ARCHIVE_LEFTOVER]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(image_suffixes())


def _identity(path: pathlib.Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino
