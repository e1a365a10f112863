"""CSV files with a header: the columns at once, the rows one after the other."""

from __future__ import annotations

import codecs
import os
import pathlib
from collections.abc import Iterator
from dataclasses import replace

from engine.data.delimited import DELIMITERS, UTF8, Delimited, Row, find_encoding
from engine.data.part import DataError
from engine.errors import FileError
from engine.reading import check_memory, check_regular, open_file
from engine.sizes import format_bytes
from engine.text import join_some, join_words, nearest

LARGEST = 1 << 32  # bytes of a file
_MOST_COLUMNS, _LONGEST_LINE = 20_000, 1 << 23
_LOOKED_AT = 1 << 16  # bytes from which the encoding is found


class CsvFile:
    """A CSV file with a header: its columns at once, its rows one after the other.

    Args:
        about: the beginning of every message, such as ``data=csv:photos.csv``.
        delimiter, encoding: None finds them: a byte order mark says the encoding, else it is UTF-8; the delimiter is the one
            among comma, semicolon, tab and ``|`` that divides the header.

    Raises:
        DataError: the file is missing, too large, not text or empty; two columns have one name; or the delimiter is not
            clear.
    """

    def __init__(
        self, about: str, path: pathlib.Path, *, delimiter: str | None = None, encoding: str | None = None
    ) -> None:
        self.path, self._about = path, about
        try:
            check_regular(path)
            size = os.path.getsize(path)
            with open_file(path) as file:
                start = file.read(_LOOKED_AT)
        except (FileError, OSError) as error:
            raise DataError(f"{about}: {error}") from None
        if size > LARGEST:
            raise DataError(f"{about}: a file of {format_bytes(size)}; the limit is {format_bytes(LARGEST)}")
        self._file = Delimited(
            about=about,
            path=path,
            encoding=self._find_encoding(start, encoding),
            longest_line=_LONGEST_LINE,
            other_encoding="save the file as UTF-8, or say what it is, such as encoding=latin-1",
        )
        self._file = replace(self._file, delimiter=self._find_delimiter() if delimiter is None else delimiter)
        header = next(self._read_rows(), None)
        if header is None:
            raise DataError(f"{about}: the file is empty; expected a header with the names of the columns")
        self.columns = tuple(header.cells)
        if len(self.columns) > _MOST_COLUMNS:
            raise DataError(f"{about}: {len(self.columns):,} columns; the limit is {_MOST_COLUMNS:,}")
        named = [name for name in self.columns if name]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise DataError(
                f"{about}: the header names {join_words(twice)} twice; every column needs a name of its own"
            )
        if not named:
            raise DataError(f"{about}: the header on line {header.line} names no column")

    def rows(self) -> Iterator[Row]:
        """Yields the rows below the header; empty lines are passed over. Raises DataError, which names the line."""
        rows = self._read_rows()
        next(rows)
        for row in rows:
            self._file.check_width(
                row, len(self.columns), "the header", "; a cell with the delimiter in it must be in double quotes"
            )
            yield row

    def _read_rows(self) -> Iterator[Row]:
        """The rows, with the header, without white space around cells."""
        for held, row in enumerate(self._file.rows(), 1):
            if held % 100_000 == 0:
                self._check_memory(held)
            yield Row(row.line, [cell.strip() for cell in row.cells])

    def _check_memory(self, held: int) -> None:
        try:
            check_memory(self.path, held * 200, "its rows")
        except FileError as error:
            raise DataError(f"{self._about}: {error}") from None

    def _find_encoding(self, start: bytes, given: str | None) -> str:
        if given is not None:
            try:
                codecs.lookup(given)
                "a".encode(given)
            except (LookupError, UnicodeError, TypeError):
                raise DataError(
                    f"{self._about}: encoding={given!r} is not the name of an encoding, such as latin-1"
                ) from None
            return UTF8 if codecs.lookup(given).name == "utf-8" else given
        found = find_encoding(start)
        if found is None:
            raise DataError(
                f"{self._about}: not a text file; if it is UTF-16 without a byte order mark, give encoding=utf-16-le"
            )
        return found

    def _find_delimiter(self) -> str:
        """The delimiter that divides the header; where several could, the one that gives all first rows as many cells."""
        lengths: dict[str, list[int]] = {}
        for candidate in DELIMITERS.values():
            found: list[int] = []
            try:
                for row, _ in zip(replace(self._file, delimiter=candidate).rows(), range(20), strict=False):
                    found.append(len(row.cells))
            except DataError:
                if not found:
                    continue
            if found and found[0] > 1:
                lengths[candidate] = found
        if not lengths:
            return ","
        even = [candidate for candidate, found in lengths.items() if len(set(found)) == 1]
        if len(lengths) == 1 or len(even) == 1:
            return (even or list(lengths))[0]
        names = {character: name for name, character in DELIMITERS.items()}
        raise DataError(
            f"{self._about}: the header could be divided by {join_words(names[each] for each in lengths)}; say which, as in "
            f"delimiter={names[next(iter(lengths))]}"
        )


def find_column(about: str, columns: tuple[str, ...], name: str, role: str) -> int:
    """The number of a column by its name; DataError, which lists the columns, if there is none."""
    if name in columns:
        return columns.index(name)
    named = [each for each in columns if each]
    raise DataError(
        f"{about}: {role}={name}: there is no such column{nearest(name, named)}; the columns are {join_some(named, most=30)}"
    )
