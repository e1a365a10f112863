"""The names of classes in a weights file: a text beside the arrays, which other readers of .npz files pass over."""

from __future__ import annotations

import json
import pathlib
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence

from engine.files import FileError, Npz, PathLike

_MEMBER = "class_names.json"
_OF_TASKS = "task_class_names.json"
Names = Sequence[str] | Mapping[str, Sequence[str]]  # of one output, or of the outputs of tasks


def as_texts(names: Names | None) -> dict[str, str]:
    """The ``texts`` for ``engine.files.write_npz`` that keep the names of outputs; none for None."""
    if isinstance(names, Mapping):
        return {_OF_TASKS: json.dumps({task: list(own) for task, own in names.items()}, ensure_ascii=False)}
    return {_MEMBER: json.dumps(list(names), ensure_ascii=False)} if names else {}


def read_class_names(path: PathLike) -> tuple[str, ...] | None:
    """The names that a weights file gives to the outputs of its head, in their order; None if it names none.

    Raises FileError if they are damaged.
    """
    if not pathlib.Path(path).is_file() or not zipfile.is_zipfile(path):
        return None
    with Npz(path) as npz:
        if _MEMBER not in npz.others():
            return None
        try:
            found = json.loads(npz.text(_MEMBER))
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise FileError(f"{path}: {_MEMBER}: damaged; expected a JSON list of names")
    return tuple(found)


def read_task_class_names(path: PathLike) -> dict[str, tuple[str, ...]]:
    """The names that a weights file gives to the outputs of tasks; none if it names none. Raises FileError if they are damaged."""
    if not pathlib.Path(path).is_file() or not zipfile.is_zipfile(path):
        return {}
    with Npz(path) as npz:
        if _OF_TASKS not in npz.others():
            return {}
        try:
            found = json.loads(npz.text(_OF_TASKS))
            return {str(task): tuple(map(str, own)) for task, own in found.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise FileError(f"{path}: {_OF_TASKS}: damaged; expected names by task") from None


def normal_form(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they are compared: file systems spell the same accents in two ways."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)
