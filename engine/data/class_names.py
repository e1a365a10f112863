"""The names of classes in a weights file: a text beside the arrays, which other readers of .npz files pass over."""

from __future__ import annotations

import json
import pathlib
import unicodedata
import zipfile
from collections.abc import Sequence

from engine.files import FileError, Npz, PathLike

_MEMBER = "class_names.json"


def as_texts(names: Sequence[str] | None) -> dict[str, str]:
    """The ``texts`` for ``engine.files.write_npz`` that keep the names of the outputs; none for None."""
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


def normal_form(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they are compared: file systems spell the same accents in two ways."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)
