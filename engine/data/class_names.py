"""The names of classes in a weights file: a text beside the arrays, which other readers of .npz files pass over."""

from __future__ import annotations

import collections
import json
import pathlib
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence

from engine.data.part import DataError
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


def find_repeated(names: Sequence[str]) -> tuple[int, int] | None:
    """The numbers of two names that count as equal (``normal_form``); None if there are none.

    Example:
        >>> find_repeated(["cat", "dog", "cat"]), find_repeated(["cat", "Cat"])
        ((0, 2), None)
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(normal_form(names)):
        if name in seen:
            return seen[name], number
        seen[name] = number
    return None


def check_distinct(about: str, what: str, names: Sequence[str]) -> None:
    """Raises DataError if two names count as equal; ``what`` is what they name, such as "classes"."""
    if (found := find_repeated(names)) is None:
        return
    one, other = (names[number] for number in found)
    spelt = "" if one == other else ", spelt in two ways (Unicode NFC and NFD)"
    raise DataError(
        f"{about}: the {what} {found[0]} and {found[1]}, counted from 0, are both called {one!r}{spelt}; expected a name of its own "
        "for each, since other data and weights are matched by them"
    )


def same_names(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether names are the known ones in the same order; where two of them count as equal, only if they are spelt alike.

    Example:
        >>> same_names(["cat", "dog"], ("cat", "dog")), same_names(["dog", "cat"], ("cat", "dog"))
        (True, False)
    """
    return tuple(names) == tuple(known) or (normal_form(names) == normal_form(known) and find_repeated(names) is None)


def match_names(about: str, what: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    """For each of the names, all of which are known, its number among the known ones; DataError unless there is just one.

    ``what`` is what they name, such as "classes".

    Example:
        >>> match_names("data=x", "classes", ["dog", "cat"], ["cat", "cow", "dog"])
        [2, 0]
    """
    wanted, there = normal_form(names), normal_form(known)
    times, counts = collections.Counter(wanted), collections.Counter(there)
    for name in wanted:
        if times[name] > 1 or counts[name] > 1:
            raise DataError(
                f"{about}: two {what} are called {name!r} where the model or the data name them, so they cannot be matched by their "
                "names; expected a name of its own for each (data that name none are taken in their order)"
            )
    places = {name: number for number, name in enumerate(there)}
    return [places[name] for name in wanted]
