"""Finds the parts of a source of texts: a file of rows or a folder of texts for each; where that is not clear, it asks."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.data.part import DataError
from engine.data.part_names import PART_NAMES, PARTS
from engine.data.text_files import LINES, OF_SEPARATED, SUFFIXES, Columns, Row, read_rows
from engine.data.text_name import TextName
from engine.errors import FileError
from engine.reading import read_file
from engine.text import join_some, join_words

_LARGEST_TEXT = 1 << 24  # bytes of a .txt file

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """The rows of a part, the file or folder that they come from, and whether their labels are numbers to predict.

    ``columns`` are the names of the columns of text; none where these have no names.
    """

    place: pathlib.Path
    rows: Iterator[Row]
    numbers: bool = False
    guessed: bool = False  # that there is no line of names was not said
    columns: tuple[str, ...] = ()


def find_parts(spec: str, name: TextName, say: Say, *, to_train: bool = True) -> dict[str, Rows]:
    """The rows of each part; a part train may be missing unless ``to_train``. Raises DataError where parts are not clear."""
    if not name.path.is_dir():
        return {"train": _open_file(spec, name.path, name.columns, say)}
    entries = sorted(entry for entry in name.path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    folders = [entry for entry in entries if entry.is_dir()]
    by_part = {part: [e for e in files if e.stem.lower() in names] for part, names in PART_NAMES.items()}
    if any(by_part.values()):
        chosen = _choose(spec, by_part, "file", to_train=to_train)
        left = [entry.name for entry in files if entry not in chosen.values()]
        if left:
            say(f"text: left out beside the parts: {join_some(left)}")
        mixed = any(file.suffix.lower() not in LINES for file in chosen.values())
        return {
            part: _open_file(spec, file, _options_for(file, name.columns, mixed), say) for part, file in chosen.items()
        }
    if name.columns != Columns():
        raise DataError(
            f"data={spec}: columns are for files of rows; a folder of texts takes its classes from its folders"
        )
    named = {part: [e for e in folders if e.name.lower() in names] for part, names in PART_NAMES.items()}
    others = [entry.name for entry in folders if not any(entry in found for found in named.values())]
    if named["train"] or (not to_train and not others and any(named.values())):
        if others:
            raise DataError(
                f"data={spec}: {named['train'][0].name} is the training part, so {join_words(others)} beside it cannot be "
                "a class; move it elsewhere, or rename the folder of the part if it is a class"
            )
        found = _choose(spec, named, "folder", to_train=to_train)
        return {part: Rows(each, _texts(spec, each)) for part, each in found.items()}
    if not others:
        raise DataError(
            f"data={spec}: expected train with one of {', '.join(SUFFIXES)}, a folder train, or a folder of .txt files for each "
            f"class in {name.path}; it has {join_words(entry.name for entry in entries) or 'nothing'}"
        )
    if parts := [entry.name for entry in folders if entry.name not in others]:
        raise DataError(
            f"data={spec}: {join_words(parts)} beside {join_words(others)} could be a part or a class; a part needs a folder "
            "train beside it, and a class another name"
        )
    return {"train": Rows(name.path, _texts(spec, name.path))}


def _options_for(file: pathlib.Path, columns: Columns, mixed: bool) -> Columns:
    """The options for a file of a part: those about separated values are for the others, if there are some."""
    if not mixed or file.suffix.lower() not in LINES:
        return columns
    without: dict[str, Any] = dict.fromkeys(OF_SEPARATED)
    return replace(columns, **without)


def _choose(
    spec: str, by_part: Mapping[str, list[pathlib.Path]], kind: str, *, to_train: bool
) -> dict[str, pathlib.Path]:
    """The one file or folder of each part."""
    for part, found in by_part.items():
        if len(found) > 1:
            raise DataError(
                f"data={spec}: {join_words(each.name for each in found)} could each be the part {part}; rename or remove "
                "all but one"
            )
    if not by_part["train"] and to_train:
        others = join_words(each.name for found in by_part.values() for each in found)
        raise DataError(f"data={spec}: there is {others}, but no {kind} train")
    return {part: by_part[part][0] for part in PARTS if by_part[part]}


def _open_file(spec: str, file: pathlib.Path, columns: Columns, say: Say) -> Rows:
    if file.suffix.lower() not in SUFFIXES and columns.delimiter is None:
        known = ", ".join(SUFFIXES)
        raise DataError(
            f"data={spec}: {file.name} has none of the suffixes {known}; delimiter=tab, comma, semicolon or pipe says how to read it"
        )
    decided, rows = read_rows(file, columns)
    if decided != columns:
        said = ", ".join(f"{option}={column}" for option, column in decided.given.items())
        named = "" if file.suffix.lower() in LINES else f", {'with' if decided.header else 'without'} a line of names"
        say(f"text: {file.name}: {said}{named}")
    guessed = columns.header is None and not decided.header
    return Rows(file, rows, decided.target is not None, guessed, decided.names)


def _texts(spec: str, root: pathlib.Path) -> Iterator[Row]:
    """The texts of a folder with one folder for each class."""
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(each for each in folder.rglob("*.txt") if not each.name.startswith("."))
        if not files:
            raise DataError(f"data={spec}: the class {folder.name} has no .txt file in {folder}")
        for file in files:
            yield Row(str(file), read_text(file), None, folder.name)


def read_text(file: pathlib.Path) -> str:
    """The text in a .txt file; DataError if it cannot be read, or is not UTF-8."""
    try:
        return read_file(file, _LARGEST_TEXT).decode("utf-8-sig")
    except FileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: the file is not UTF-8 text (iconv -f latin1 -t utf-8 converts it)") from None
