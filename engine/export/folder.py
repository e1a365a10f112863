"""The folder of an export: prepared beside its place, described by export.json, and moved there only when it is right."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from engine import writing
from engine.errors import InputError
from engine.files import PathLike, write_json
from engine.reading import read_file

RECORD = "export.json"
FORMAT = 1  # of export.json
_LARGEST = 1 << 26  # bytes of it


def check_new(path: pathlib.Path, *, name: str = "out") -> None:
    """Raises InputError unless there is nothing at a path, and files can be written into the folder around it."""
    if os.path.lexists(path):
        raise InputError(f"{name}={path}: it exists, and is never replaced; name another, or remove it")
    writing.check_folder(path.parent, name=name)


@contextlib.contextmanager
def new_folder(path: pathlib.Path, *, name: str = "out") -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes ``path`` at the end of the scope; if the scope raises, nothing is left of it.

    Raises NoSpaceError if the disk is full, and InputError if there is something at the path by then.
    """
    check_new(path, name=name)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writing.sweep(path.parent, path.name.__eq__)
        with writing.explain_no_space(path, 0), writing.temporary_folder(path) as place:
            folder = place / "new"
            folder.mkdir()
            yield folder
            _flush(folder)
            check_new(path, name=name)
            os.rename(folder, path)
            writing.flush(path.parent)
    except BaseException as error:
        for folder in made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, tf.errors.OpError) and (full := writing.is_full(str(error))) is not None:
            raise writing.no_space(full, path, 0) from None
        raise


def _flush(folder: pathlib.Path) -> None:
    for path in (folder, *folder.rglob("*")):
        writing.flush(path)  # a file is opened and flushed in the same way


def count_bytes(path: pathlib.Path) -> int:
    """The bytes of all files of an export, but for its record."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != RECORD)


def write_record(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
    write_json(folder / RECORD, {"format": FORMAT, **record})


def read_record(folder: PathLike, *, name: str) -> dict[str, Any]:
    """The record of an export; raises InputError, which names the argument ``name``, if there is none of this version."""
    path = pathlib.Path(folder) / RECORD
    if not path.is_file():
        raise InputError(
            f"{name}={folder}: it is not an export: it has no {RECORD}; expected a folder that frostline export wrote"
        )
    try:
        found = json.loads(read_file(path, _LARGEST))
        if found["format"] != FORMAT or not isinstance(found["kind"], str):
            raise ValueError(f"format {found['format']!r}; this version reads {FORMAT}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or of another version ({error})") from None
    return dict(found)
