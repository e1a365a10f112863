"""Reads the rows of text files: tab- or comma-separated values, and JSON Lines. Nothing but one row is kept."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from engine.data.delimited import DELIMITERS, Delimited, find_encoding
from engine.data.delimited import Row as Record
from engine.data.part import DataError
from engine.errors import FileError
from engine.reading import open_file
from engine.text import cut, join_words, nearest

SEPARATED = {".tsv": DELIMITERS["tab"], ".tab": DELIMITERS["tab"], ".csv": DELIMITERS["comma"]}
LINES = (".jsonl", ".ndjson", ".json")
OF_SEPARATED = ("header", "quotes", "delimiter")  # options that JSON Lines have no use for
SUFFIXES = (*SEPARATED, *LINES)
_OF_TEXT = ("text", "text_b")
_MOST = 1 << 24  # characters of a line or a cell
_TEXTS = ("text", "sentence", "message", "review", "content", "document", "comment", "tweet", "email", "body")
_PAIRS = (("sentence1", "sentence2"), ("text_a", "text_b"), ("premise", "hypothesis"), ("question1", "question2"))
_LABELS = ("label", "labels", "class", "category", "sentiment", "gold_label")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what: names, or numbers from 1 where a file has no line of names; None where a file must say.

    Attributes:
        text, text_b: the text, and the second text of a pair.
        label, target: the class, or the number that is to be predicted; at most one of them.
        header: whether the first line names the columns; None lets the file decide.
        quotes: whether fields may stand in double quotes; None means only in comma-separated values.
        delimiter: what separates fields; None means what the file's name says.
        labelled: whether there is a class or a number to read; otherwise there are texts alone.
        names: of a file that was opened, the names of the columns of text; none where they have no names of their own.
    """

    text: str | None = None
    text_b: str | None = None
    label: str | None = None
    target: str | None = None
    header: bool | None = None
    quotes: bool | None = None
    delimiter: str | None = None
    labelled: bool = True
    names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def given(self) -> dict[str, str]:
        """The columns by option, as far as they are known."""
        named = {"text": self.text, "text_b": self.text_b, "label": self.label, "target": self.target}
        return {option: column for option, column in named.items() if column is not None}


@dataclass(frozen=True)
class Row:
    """An example, and where it stands; ``first`` says that it is the first line, which was taken for an example.

    ``line`` is the number of the line on which it begins, and ``label`` is empty where there is none.
    """

    place: str
    text: str
    second: str | None
    label: str
    first: bool = False
    line: int = 0


def read_rows(path: pathlib.Path, columns: Columns) -> tuple[Columns, Iterator[Row]]:
    """Opens a file by the suffix of its name; returns the columns as the file decides them, and its rows.

    Raises DataError if it cannot be read, or the columns cannot be decided or found; the rows raise it for a line that
    is damaged or lacks a column.
    """
    if path.suffix.lower() in LINES:
        given = [f"{name}=" for name in OF_SEPARATED if getattr(columns, name) is not None]
        if given:
            raise DataError(f"{path}: {given[0]} is about separated values, and the file has JSON Lines; leave it out")
        return _read_json_lines(path, _open(path).lines(), columns)
    return _read_separated(path, columns)


def read_lines(path: pathlib.Path) -> Iterator[Row]:
    """The lines of a file, each a text, but for empty ones; DataError if it cannot be read, or is not UTF-8."""
    for number, line in enumerate(_open(path).lines(), 1):
        if line.strip():
            yield Row(f"{path}: line {number}", line.rstrip("\r\n"), None, "", line=number)


def _open(path: pathlib.Path) -> Delimited:
    """A UTF-8 file, none of whose lines is longer than a limit; the end of a line alone ends one."""
    try:
        with open_file(path) as file:
            encoding = find_encoding(file.read(2))
    except FileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if encoding == "utf-16":
        raise DataError(f"{path}: the file is UTF-16 text; save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    return Delimited(
        about=str(path),
        path=path,
        newline="\n",
        longest_line=_MOST,
        longest_cell=_MOST,
        other_encoding="if it is in the encoding latin-1, as many older files are, `iconv -f latin1 -t utf-8` converts it",
        other_quotes="; if a double quote is a character like any other in this file, add quotes=no to the name of the source",
    )


# ---- separated values


def _read_separated(path: pathlib.Path, columns: Columns) -> tuple[Columns, Iterator[Row]]:
    delimiter = columns.delimiter or SEPARATED.get(path.suffix.lower(), "\t")
    quotes = delimiter != "\t" if columns.quotes is None else columns.quotes
    file = replace(_open(path), delimiter=delimiter, quotes=quotes)
    records = file.rows()
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: the file is empty; expected an example in each line")
    cells = [cell.strip() for cell in first.cells]
    columns = _decide(path, cells, columns)
    places = {option: _find(path, cells, option, column, columns) for option, column in columns.given.items()}
    _check_apart(path, places, columns.given)
    rest = records if columns.header else itertools.chain([first], records)
    found = tuple(cells[places[option]] for option in _OF_TEXT if option in places) if columns.header else ()
    lower = [cell.lower() for cell in cells]
    columns = replace(columns, names=found if all(lower.count(name.lower()) == 1 and name for name in found) else ())
    return columns, _pick(file, rest, places, len(cells), named=bool(columns.header))


def _decide(path: pathlib.Path, cells: Sequence[str], columns: Columns) -> Columns:
    """The columns where some are not given, and whether the first line names them."""
    lower = [cell.lower() for cell in cells]
    header = columns.header
    if header is None:
        text = bool({*_TEXTS, *itertools.chain(*_PAIRS)} & set(lower))
        label = bool(set(_LABELS) & set(lower))
        by_name = any(not column.isdecimal() for column in columns.given.values())
        header = by_name or (text and (label or not columns.labelled)) or (not columns.given and (text or label))
    found = _known(lower, columns) if header else columns.given
    if (
        columns.labelled
        and not header
        and len(cells) == 2
        and len(found) == 1
        and (column := next(iter(found.values()))) in ("1", "2")
    ):
        other = "text" if "text" not in found else "label"
        found = {**found, other: "2" if column == "1" else "1"}
    if _lacks(found, columns):
        _ask(path, cells, found, header=header, labelled=columns.labelled)
    decided: dict[str, Any] = {"header": header, **found}
    return replace(columns, **decided)


def _lacks(found: dict[str, str], columns: Columns) -> bool:
    """Whether a column that is needed is not known."""
    return "text" not in found or (columns.labelled and not {"label", "target"} & found.keys())


def _known(names: Sequence[str], columns: Columns) -> dict[str, str]:
    """The columns that are given, and those that usual names give: of texts alone, the model's own data say which they are."""
    found = columns.given
    if not columns.labelled:
        return found
    if "text" not in found and "text_b" not in found:
        pairs = [pair for pair in _PAIRS if set(pair) <= set(names)]
        texts = [name for name in _TEXTS if name in names]
        if len(pairs) == 1 and not texts:
            found |= dict(zip(("text", "text_b"), pairs[0], strict=True))
        elif len(texts) == 1 and not pairs:
            found["text"] = texts[0]
    labels = [name for name in _LABELS if name in names]
    if not {"label", "target"} & found.keys() and len(labels) == 1:
        found["label"] = labels[0]
    return found


def _ask(
    path: pathlib.Path, cells: Sequence[str], found: dict[str, str], *, header: bool, labelled: bool = True
) -> NoReturn:
    shown = ", ".join(f"{number}: {cut(cell, 30)!r}" for number, cell in enumerate(cells[:12], 1))
    wanted = "the text" if "text" not in found else "the label"
    names = list(cells) if header else [str(number + 1) for number in range(len(cells))]
    example = f",text={found.get('text', cut(names[-1], 40))},label={cut(names[0], 40)}"
    if not labelled:
        raise DataError(
            f"{path}: which column is the text? The data that the model was trained on do not name it. The first line has {shown}; "
            f"--text_columns={cut(names[-1], 40)} says which it is, and two columns with a comma a pair"
        )
    alone = "; if fields are separated by something else, add delimiter=semicolon" if len(cells) == 1 else ""
    raise DataError(
        f"{path}: which column is {wanted}? The first line has {shown}. Add the columns to the name of the source, such as "
        f"{example} (label=COLUMN for classes, target=COLUMN for numbers, text_b=COLUMN for the second text of a pair; names "
        f"of columns, or numbers from 1){alone}"
    )


def _find(path: pathlib.Path, cells: Sequence[str], option: str, column: str, columns: Columns) -> int:
    """The place of a column in a row."""
    if columns.header:
        for names, wanted in ((list(cells), column), ([cell.lower() for cell in cells], column.lower())):
            if names.count(wanted) == 1:
                return names.index(wanted)
            if names.count(wanted) > 1:
                raise DataError(f"{path}: {names.count(wanted)} columns are called {column!r}; give the number of one")
    if column.isdecimal() and 1 <= int(column) <= len(cells):
        return int(column) - 1
    if columns.header:
        names = [cut(cell, 40) for cell in cells]
        raise DataError(
            f"{path}: {option}={column}: there is no such column; the first line names {join_words(names, most=12)}"
            f"{nearest(column, names)}"
        )
    raise DataError(f"{path}: {option}={column}: expected the number of a column, 1 to {len(cells)}")


def _check_apart(path: pathlib.Path, places: Mapping[str, int | str], named: Mapping[str, str]) -> None:
    """Raises DataError if one column is asked for as two things, such as a text that is its own label."""
    taken: dict[int | str, str] = {}
    for option, place in places.items():
        if (other := taken.setdefault(place, option)) != option:
            raise DataError(
                f"{path}: {other}={named[other]}, {option}={named[option]}: they are the same column; expected two columns"
            )


def _pick(
    file: Delimited, records: Iterator[Record], places: dict[str, int], count: int, *, named: bool
) -> Iterator[Row]:
    hint = "" if file.quotes else "; if its cells stand in double quotes, add quotes=yes to the name of the source"
    label = places.get("label", places.get("target"))
    for position, record in enumerate(records):
        file.check_width(record, count, "the first line", hint)
        cells = record.cells
        second = cells[places["text_b"]] if "text_b" in places else None
        first = not named and position == 0
        said = "" if label is None else cells[label].strip()
        yield Row(f"{file.path}: line {record.line}", cells[places["text"]], second, said, first, record.line)


# ---- JSON Lines


def _read_json_lines(path: pathlib.Path, lines: Iterator[str], columns: Columns) -> tuple[Columns, Iterator[Row]]:
    records = _objects(path, lines)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: the file is empty; expected an object in each line")
    keys = list(first[1])
    found = _known(keys, columns)
    if _lacks(found, columns):
        _ask(path, keys, found, header=True, labelled=columns.labelled)
    _check_apart(path, found, found)
    decided: dict[str, Any] = {"header": True, **found}
    decided["names"] = tuple(found[option] for option in _OF_TEXT if option in found)
    return replace(columns, **decided), _pick_keys(path, itertools.chain([first], records), found)


def _objects(path: pathlib.Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; expected one object a line, not a list over several lines" if line.lstrip()[:1] == "[" else ""
            raise DataError(f"{path}: line {number} is not valid JSON ({error}){hint}") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}: line {number} is {type(found).__name__}; expected an object with a text")
        yield number, found


def _pick_keys(
    path: pathlib.Path, records: Iterator[tuple[int, dict[str, Any]]], keys: dict[str, str]
) -> Iterator[Row]:
    for number, record in records:
        place = f"{path}: line {number}"
        values = {option: _as_text(place, record, key, flags=option == "label") for option, key in keys.items()}
        label = values.get("label", values.get("target", ""))
        yield Row(place, values["text"], values.get("text_b"), label.strip(), line=number)


def _as_text(place: str, record: dict[str, Any], key: str, *, flags: bool) -> str:
    value = record.get(key)
    if key not in record:
        raise DataError(
            f"{place}: it has no {key!r}; it has {join_words(record) or 'no keys'}{nearest(key, list(record))}"
        )
    if isinstance(value, bool) and flags:
        return str(value).lower()
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        shown = json.dumps(value)
        raise DataError(f"{place}: {key!r} is {cut(shown, 60)}; expected a text or a number")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{place}: {key!r} has half of a surrogate pair, which is not a character")
    return text
