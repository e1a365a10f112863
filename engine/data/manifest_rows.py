"""The rows of a manifest: texts of the columns that are read as such, numbers of the others, and the part of each row."""

from __future__ import annotations

import array
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.csv_file import CsvFile
from engine.data.manifest_roles import Roles
from engine.data.part import DataError
from engine.data.part_names import PARTS, PartWords, suggest_part
from engine.errors import FileError
from engine.reading import check_memory
from engine.text import parse_number

_CHECKED = 1 << 22  # numbers between two looks at the memory
_UNSURE = ("na", "n/a", "nan", "null", "none", "?", "-", "missing", "unknown")  # often written for a missing cell


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the rows hold.

    Attributes:
        lines: the line on which each row begins, int64 [n].
        texts: the cells of the columns that are not features, by the column's number.
        features: float32 [n, D], the columns in the order of ``Roles.features``; NaN where a cell is missing.
        part: for each row, the number of its part in ``PARTS``, int64 [n]; all 0 where no column says it.
    """

    lines: np.ndarray
    texts: dict[int, list[str]]
    features: np.ndarray
    part: np.ndarray


def read_rows(about: str, file: CsvFile, roles: Roles, *, missing: Sequence[str] = ()) -> Rows:
    """Reads all rows; cells that are one of ``missing`` become empty.

    Raises DataError, which names the line, for a feature that is not a number and a part that does not exist.
    """
    labels = [label.number for label in roles.labels]
    kept = [*roles.images, *labels, *(weight.number for weight in roles.weights)]
    texts: dict[int, list[str]] = {number: [] for number in kept}
    lines, parts, features = array.array("q"), array.array("b"), array.array("f")
    checked = max(1, _CHECKED // max(1, len(roles.features)))
    nothing, words = {"", *missing}, PartWords()
    for line, cells in file.rows():
        lines.append(line)
        parts.append(
            0 if roles.split is None else _find_part(about, words, line, file.columns[roles.split], cells[roles.split])
        )
        for number, column in texts.items():
            column.append("" if cells[number] in nothing else cells[number])
        for number in roles.features:
            text = cells[number]
            features.append(math.nan if text in nothing else read_number(about, line, file.columns[number], text))
        if len(lines) % checked == 0:
            _check_features(about, file, len(features))
    _check_features(about, file, len(features))
    if not lines:
        raise DataError(f"{about}: there are no rows below the header")
    for number in roles.images:  # a file has one name, by which it is held out
        texts[number] = [os.path.normpath(text) if text else "" for text in texts[number]]
    return Rows(
        lines=np.array(lines, np.int64),
        texts=texts,
        features=np.frombuffer(features, np.float32).reshape(len(lines), len(roles.features)).copy()
        if roles.features
        else np.zeros([len(lines), 0], np.float32),
        part=np.array(parts, np.int64),
    )


def _check_features(about: str, file: CsvFile, count: int) -> None:
    """Raises DataError if there is no memory to hold so many numbers twice more: in order, and as they are read."""
    try:
        check_memory(file.path, 2 * 4 * count, "its numbers")
    except FileError as error:
        raise DataError(f"{about}: {error}") from None


def read_number(about: str, line: int, column: str, text: str) -> float:
    """The finite number that a cell is; DataError, which names its line and column, for anything else."""
    found = parse_number(text)
    if found is not None and math.isfinite(found) and abs(found) <= 3.4e38:
        return found
    hint = ""
    if found is not None and not math.isnan(found):
        hint = " (too large)"
    elif text.lower() in _UNSURE:
        hint = f"; missing={text} says that it means a missing cell"
    elif parse_number(text.replace(",", ".")) is not None:
        hint = " (decimals have a point)"
    raise DataError(f"{about}: line {line}: {column} is {text[:60]!r}, which is not a number{hint}")


def is_unsure(text: str) -> bool:
    """Whether a text is often written for a missing cell."""
    return text.lower() in _UNSURE


def _find_part(about: str, words: PartWords, line: int, column: str, text: str) -> int:
    try:
        part = words.read(text, line)
    except ValueError as error:
        raise DataError(f"{about}: line {line}: {column}: {error}") from None
    if part is None:
        raise DataError(
            f"{about}: line {line}: {column} is {text[:60]!r}; expected {', '.join(PARTS[:-1])} or {PARTS[-1]}{suggest_part(text)}"
        )
    return PARTS.index(part)
