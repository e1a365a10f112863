"""Reads delimited text line by line and row by row: bounded, decoded as it says, and every complaint with its line."""

from __future__ import annotations

import codecs
import csv
import io
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.data.part import DataError
from engine.errors import FileError
from engine.reading import open_file

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # by the words of options
UTF8 = "utf-8-sig"  # a byte order mark before it is no part of the text
_MARKS = ((codecs.BOM_UTF8, UTF8), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Row(NamedTuple):
    """The cells of a row, and the line on which it begins."""

    line: int
    cells: list[str]


@dataclass(frozen=True, kw_only=True)
class Delimited:
    """A file of delimited text, and how it is read.

    Attributes:
        about: the beginning of every message.
        encoding, delimiter: the name of an encoding, and one character.
        quotes: whether cells may stand in double quotes; if not, a quote is a character like any other.
        newline: what ends a line, as for ``open``: "" for every kind of end.
        longest_line, longest_cell: the characters that there may be.
        other_encoding, other_quotes: the ways out where the text is not of the encoding, or quotes are not closed.
    """

    about: str
    path: pathlib.Path
    encoding: str = UTF8
    delimiter: str = ","
    quotes: bool = True
    newline: str = ""
    longest_line: int = 1 << 23
    longest_cell: int = 1 << 17
    other_encoding: str = "save the file as UTF-8"
    other_quotes: str = ""

    def lines(self) -> Iterator[str]:
        """Yields the lines with their ends; DataError if the file cannot be read, or a line is too long or not text."""
        number = 0
        try:
            with open_file(self.path) as raw, io.TextIOWrapper(raw, self.encoding, newline=self.newline) as text:
                while line := text.readline(self.longest_line):
                    number += 1
                    if len(line) >= self.longest_line:
                        raise DataError(
                            f"{self.about}: line {number} has {self.longest_line:,} characters or more; is it a file of rows?"
                        )
                    yield line
        except FileError as error:
            raise DataError(f"{self.about}: {str(error).removeprefix(f'{self.path}: ')}") from None
        except UnicodeError:
            name = self.encoding.removesuffix("-sig").upper()
            raise DataError(
                f"{self.about}: line {self._find_bad_line() or number + 1} is not {name}; {self.other_encoding}"
            ) from None
        except OSError as error:
            raise DataError(f"{self.about}: cannot be read ({error.strerror or error})") from None

    def rows(self) -> Iterator[Row]:
        """Yields the rows but for empty lines; raises DataError as ``lines`` does, and for quotes that are not closed."""
        if not self.quotes:
            for number, line in enumerate(self.lines(), 1):
                if line.strip():
                    yield Row(number, line.rstrip("\r\n").split(self.delimiter))
            return
        reader, begins = csv.reader(self.lines(), delimiter=self.delimiter, strict=True), 1
        while True:
            before = csv.field_size_limit(self.longest_cell)  # of the whole process: set for this row alone
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{self.about}: line {begins} is not valid CSV ({error}){self.other_quotes}") from None
            finally:
                csv.field_size_limit(before)
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield Row(begins, cells)
            begins = reader.line_num + 1

    def check_width(self, row: Row, width: int, of: str, hint: str = "") -> None:
        """Raises DataError unless a row has as many cells as ``of``, such as "the header"; ``hint`` is for more of them."""
        if len(row.cells) != width:
            more = hint if len(row.cells) > width else ""
            raise DataError(f"{self.about}: line {row.line} has {len(row.cells)} cells, but {of} has {width}{more}")

    def _find_bad_line(self) -> int:
        """The first line that is not UTF-8; 0 in another encoding, whose lines are not known without decoding them."""
        if self.encoding != UTF8:
            return 0
        with open_file(self.path) as file:
            number = 1
            while line := file.readline(self.longest_line):
                try:
                    line.decode("utf-8")
                except UnicodeError:
                    return number
                number += 1
        return 0


def find_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file say: that of its byte order mark, else UTF-8; None if it is not text."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    return None if b"\0" in start else UTF8
