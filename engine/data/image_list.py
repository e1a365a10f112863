"""Lists the image files that a folder, a file or a pattern names, in the order in which people count."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from collections.abc import Callable

from engine.data.header import describe_left_out, image_suffixes
from engine.data.image_files import printable
from engine.errors import InputError
from engine.text import join_some, nearest

Left = dict[str, list[str]]  # what is left out -> the names of the files


def list_images(images: str, *, say: Callable[[str], None]) -> list[pathlib.Path]:
    """Lists image files by what a user names.

    Args:
        images: a folder, whose image files and those of its sub-folders are listed; a file, whatever its name; or a
            pattern such as ``photos/*.jpg`` (``**`` stands for any folders).
        say: called with a line that tells which files are left out because they are not images by their names.

    The order is natural: ``img2.jpg`` comes before ``img10.jpg``. Raises InputError if there is nothing to list.
    """
    left: Left = {}
    place = pathlib.Path(images)
    if place.is_dir():
        found = _walk(place, left)
    elif os.path.lexists(place):
        return [place]
    elif glob.has_magic(images):
        found = _match(images, left)
    else:
        near = [path.name for path in place.parent.glob("*")] if place.parent.is_dir() else []
        raise InputError(
            f"images={images}: there is no such file or folder{nearest(place.name, near)}; expected a folder, a file or a "
            "pattern such as 'photos/*.jpg'"
        )
    for what, names in left.items():
        say(f"images: left out {what}: {join_some([printable(name) for name in sorted(names)], most=3)}")
    if not found:
        raise InputError(f"images={images}: there are no image files ({', '.join(image_suffixes())})")
    return sorted(found, key=natural_key)


def natural_key(path: pathlib.Path) -> tuple[list[list[str | int]], str]:
    """A key that sorts paths by their folders, and numbers in names by their value.

    Example:
        >>> sorted([pathlib.Path("b10.png"), pathlib.Path("b9.png"), pathlib.Path("a/c.png")], key=natural_key)
        [PosixPath('a/c.png'), PosixPath('b9.png'), PosixPath('b10.png')]
    """
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(word) if number % 2 else word for number, word in enumerate(words)] for words in parts], str(path)


def _walk(folder: pathlib.Path, left: Left) -> list[pathlib.Path]:
    """The image files in a folder and its sub-folders; each folder is read once, also where links lead back to it."""
    found: list[pathlib.Path] = []
    seen = set()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        try:
            facts = os.stat(inside)
            with os.scandir(inside) as scanned:
                entries = list(scanned)
        except OSError as error:
            raise InputError(f"images={folder}: cannot read {printable(str(inside))} ({error.strerror})") from None
        if (facts.st_dev, facts.st_ino) in seen:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for entry in entries:
            path = inside / entry.name
            if entry.name.startswith("."):
                left.setdefault("hidden files", []).append(str(path.relative_to(folder)))
            elif path.is_dir():
                waiting.append(path)
            elif _is_image(path, left, str(path.relative_to(folder))):
                found.append(path)
    return found


def _match(pattern: str, left: Left) -> list[pathlib.Path]:
    paths = [pathlib.Path(name) for name in glob.iglob(pattern, recursive=True)]
    if not paths:
        raise InputError(f"images={pattern}: no file matches this pattern")
    return [path for path in dict.fromkeys(paths) if not path.is_dir() and _is_image(path, left, str(path))]


def _is_image(path: pathlib.Path, left: Left, name: str) -> bool:
    suffix = path.suffix.lower()
    if suffix in image_suffixes():
        return True
    left.setdefault(describe_left_out(printable(suffix)), []).append(name)
    return False
