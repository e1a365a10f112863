"""Examples without labels, to be predicted: texts, and tables of numbers, read as the data of a run were read."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.data.arrays import tell_unread
from engine.data.class_names import match_names, normal_form, same_names
from engine.data.csv_file import CsvFile, find_column
from engine.data.features import OF_USE, check_missing, check_vectors
from engine.data.image_files import printable
from engine.data.image_list import natural_key
from engine.data.manifest_options import ManifestOptions, parse_manifest
from engine.data.manifest_roles import Roles
from engine.data.manifest_rows import read_rows as read_cells
from engine.data.part import DataError
from engine.data.text_files import LINES, SUFFIXES, Columns, read_lines, read_rows
from engine.data.text_layout import read_text
from engine.data.text_name import TextName, parse_text_name
from engine.errors import FileError
from engine.files import Npz
from engine.text import join_some, join_words, nearest

Say = Callable[[str], None]
_TXT = ".txt"


@dataclass(frozen=True)
class Unlabelled:
    """Examples without labels.

    Attributes:
        key: what identifies an example: "line" (from 1), "file", or "index" (from 0).
        count: how many there are.
        read: opens them anew: yields the key and the example of each, in order.
    """

    key: str
    count: int
    read: Callable[[], Iterator[tuple[Any, Any]]]


def find_texts(given: str) -> TextName:
    """What ``--texts=FILE[,OPTION=VALUE]...`` names; DataError if there is no such file, or it takes no such option."""
    name = parse_text_name(f"text:{given}")
    own = name.columns
    wrong = [*own.given, *(["tokenizer"] if name.tokenizer is not None else [])]
    if wrong:
        way_out = "--text_columns names the columns" if wrong[0] in ("text", "text_b") else "leave it out"
        raise DataError(
            f"texts={given}: {wrong[0]}: it takes the options header, quotes and delimiter alone; {way_out}"
        )
    _check_there("texts", given, name.path)
    suffix = name.path.suffix.lower()
    if not name.path.is_dir() and suffix not in (*SUFFIXES, _TXT) and own.delimiter is None:
        raise DataError(
            f"texts={given}: expected a name that ends in {', '.join((_TXT, *SUFFIXES))}, or a folder of {_TXT} files; the option "
            "delimiter=tab, comma, semicolon or pipe reads any other file as rows"
        )
    return name


def open_texts(given: str, *, columns: Sequence[str], count: int, source: str, say: Say) -> Unlabelled:
    """Opens texts to predict: a file with one a line, rows with columns of text, or a folder of .txt files.

    All of it is read once before anything is predicted, so what is wrong is found then; afterwards one example is held.

    Args:
        given: ``FILE[,OPTION=VALUE]...``.
        columns: the names (or numbers from 1) of the columns of text; none if nothing says them.
        count: the texts of an example.
        source: the name of the data that the model was trained on, whose way of writing rows holds here too.
        say: called with a line on what is read.

    Examples are texts, or pairs (text, text_b). Raises DataError, with the place in a file.
    """
    name = find_texts(given)
    lines = name.path.suffix.lower() == _TXT and not name.path.is_dir()
    if (name.path.is_dir() or lines) and count == 2:
        raise DataError(
            f"texts={given}: the model takes two texts for an example, and {'a .txt file' if lines else 'a folder'} has one; "
            "expected rows with a column for each (.tsv, .csv or .jsonl)"
        )
    if name.path.is_dir():
        return _open_folder(given, name.path, say)
    if lines:
        _refuse_options(given, name.columns, "a .txt file has one text a line")
        read: Callable[[], Iterator[Any]] = lambda: read_lines(name.path)  # noqa: E731
    else:
        if columns and len(columns) != count:
            taken = "two texts for an example" if count == 2 else "one text for an example"
            raise DataError(f"text_columns={','.join(columns)}: the model takes {taken}; expected {count} of them")
        asked: dict[str, Any] = dict(zip(("text", "text_b"), columns, strict=False))
        wanted = replace(_as_source(name, source), **asked, labelled=False)
        found, _ = read_rows(name.path, wanted)
        said = join_words(columns)
        say(f"texts: {name.path.name}: {said}, {'with' if found.header else 'without'} a line of names")
        read = lambda: read_rows(name.path, wanted)[1]  # noqa: E731

    def examples() -> Iterator[tuple[Any, Any]]:
        for row in read():
            yield row.line, row.text if row.second is None else (row.text, row.second)

    total = sum(1 for _ in examples())
    if not total:
        raise DataError(f"texts={given}: there is no text in the file")
    return Unlabelled("line", total, examples)


def _as_source(name: TextName, source: str) -> Columns:
    """How rows are written: as the options say, else as those of the source, where its files are of the same kind."""
    if not source.startswith("text:") or name.path.suffix.lower() in LINES:
        return name.columns
    own = parse_text_name(source)
    if own.path.suffix.lower() not in (name.path.suffix.lower(), ""):
        return name.columns
    quotes = own.columns.quotes if name.columns.quotes is None else name.columns.quotes
    delimiter = own.columns.delimiter if name.columns.delimiter is None else name.columns.delimiter
    return replace(name.columns, quotes=quotes, delimiter=delimiter)


def _refuse_options(given: str, columns: Columns, why: str) -> None:
    if asked := [option for option in ("header", "quotes", "delimiter") if getattr(columns, option) is not None]:
        raise DataError(f"texts={given}: {asked[0]}: {why}; leave it out")


def _open_folder(given: str, folder: pathlib.Path, say: Say) -> Unlabelled:
    """The .txt files of a folder and its sub-folders, each a text, in natural order."""
    _refuse_options(given, parse_text_name(f"text:{given}").columns, "a folder has a text in each file")
    files: list[pathlib.Path] = []
    left: list[pathlib.Path] = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_dir():
            (files if path.suffix.lower() == _TXT and not hidden else left).append(path)
    if left:
        names = sorted(printable(str(path.relative_to(folder))) for path in left)
        say(f"texts: left out, as they are hidden or not {_TXT} files: {join_some(names, most=3)}")
    if not files:
        raise DataError(f"texts={given}: there are no {_TXT} files; a file of rows is named itself")
    files.sort(key=natural_key)
    for path in files:
        read_text(path)  # its complaint comes before anything is predicted
    return Unlabelled("file", len(files), lambda: ((path, read_text(path)) for path in files))


def find_table(given: str) -> ManifestOptions:
    """What ``--table=FILE[,OPTION=VALUE]...`` names; DataError if there is no such file, or it takes no such option."""
    options = parse_manifest(f"table:{given}")
    own = ("images", "labels", "weights", "split", "standardise")
    if wrong := [name for name in own if getattr(options, name) not in (None, ())]:
        raise DataError(
            f"table={given}: {wrong[0].removesuffix('s') if wrong[0] != 'standardise' else wrong[0]}: it takes the options "
            "features, missing, delimiter and encoding alone; features are found by their names, and standardised as those of "
            "the run"
        )
    path = pathlib.Path(options.file)
    _check_there("table", given, path)
    of_rows = ("features", "missing", "delimiter", "encoding")
    if path.suffix.lower() == ".npz" and (asked := [name for name in of_rows if getattr(options, name)]):
        raise DataError(
            f"table={given}: {asked[0]}: it is about a table of text, and an .npz file is none; leave it out"
        )
    return options


def open_table(given: str, *, columns: Sequence[str], count: int, source: str, nan: str, say: Say) -> Unlabelled:
    """Opens a table of numbers to predict: a CSV with a header, or the array ``x`` [n, D] of an .npz file.

    Args:
        given: ``FILE[,OPTION=VALUE]...``.
        columns: the names of the features, in the order of the model's input; none if they have no names.
        count: how many features there are.
        source: the name of the data that the model was trained on, whose words for missing cells hold here too.
        nan: what becomes of missing numbers: "stop" or "zero".
        say: called with a line on what is read, and what is not.

    Examples are vectors [D], not yet standardised, in which NaN is a missing number. Raises DataError, with the place.
    """
    options, about = find_table(given), f"table={given}"
    path = pathlib.Path(options.file)
    if path.suffix.lower() == ".npz":
        values, keys, key = _read_array(about, path, nan, say), None, "index"
        if values.shape[1] != count:
            raise DataError(f"{about}: x has {values.shape[1]} columns; the model takes {count}")
        if columns:
            say(f"table: x has no names, so its columns are taken in the order of the run: {join_words(columns)}")
    else:
        file = CsvFile(about, path, delimiter=options.delimiter, encoding=options.encoding)
        numbers = _find_features(about, file.columns, options.features, columns, count, say)
        rest = [name or f"number {at + 1}" for at, name in enumerate(file.columns) if at not in numbers]
        if rest:
            say(f"table: not used: {printable(join_words(rest))}")
        roles = Roles(images=(), features=tuple(numbers), labels=(), weights=(), split=None, unused=tuple(rest))
        missing = options.missing or _missing_of(source)
        rows = read_cells(about, file, roles, missing=missing)
        check_missing(about, [file.columns[at] for at in numbers], rows.lines, rows.features, nan, say, way_out=OF_USE)
        values, keys, key = rows.features, rows.lines, "line"

    def examples() -> Iterator[tuple[Any, Any]]:
        for at, row in enumerate(values):
            yield at if keys is None else int(keys[at]), row

    return Unlabelled(key, len(values), examples)


def _missing_of(source: str) -> tuple[str, ...]:
    return parse_manifest(source).missing if source.partition(":")[0] in ("csv", "table") else ()


def _read_array(about: str, path: pathlib.Path, nan: str, say: Say) -> np.ndarray:
    """The array x of an .npz file."""
    try:
        with Npz(path) as npz:
            names = npz.names()
            if "x" not in names:
                raise DataError(f"{about}: the file has no x; it has {', '.join(names) or 'no arrays'}")
            found = npz.read("x")
    except FileError as error:
        raise DataError(f"{about}: {error}") from None
    tell_unread(about, set(names) - {"x"}, say=say)
    return check_vectors(f"{about}: x", found, nan, way_out=OF_USE)


def _find_features(
    about: str, given: Sequence[str], named: Sequence[str], wanted: Sequence[str], count: int, say: Say
) -> list[int]:
    """The numbers of the columns of features, in the order of the model's input."""
    if not wanted:
        chosen = [find_column(about, tuple(given), name, "features") for name in named] or list(range(len(given)))
        if len(chosen) != count or len(set(chosen)) < count:
            raise DataError(
                f"{about}: the model takes {count} features, whose names the run did not record, and the file has {len(chosen)} "
                f"columns ({join_some(list(given), most=20)}); name those to read in their order, each by features=COLUMN"
            )
        say(
            "table: the names of the features that the model was trained on are not recorded, so these are taken in their order: "
            f"{join_words(given[at] for at in chosen)}"
        )
        return chosen
    if named:
        raise DataError(
            f"{about}: features={named[0]}: the run names its features, which are found by them; leave it out"
        )
    if same_names(given, wanted):
        return list(range(len(given)))
    there, needed = normal_form(given), normal_form(wanted)
    if missing := [name for name in needed if there.count(name) != 1]:
        twice = [name for name in missing if name in there]
        what = f"has {join_words(twice)} twice" if twice else f"lacks {join_words(missing, most=20)}"
        raise DataError(
            f"{about}: the model was trained on the features {join_words(wanted, most=20)}; the file {what}"
            f"{nearest(missing[0], [name for name in there if name and name not in needed])}"
        )
    return match_names(about, "features", wanted, given)


def _check_there(flag: str, given: str, path: pathlib.Path) -> None:
    if not os.path.lexists(path):
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{flag}={given}: there is no such file{nearest(path.name, near)}")
    if flag == "table" and path.is_dir():
        raise DataError(f"table={given}: it is a folder; expected a file .csv, .tsv or .npz")
