"""Reads boxes around objects from a CSV file: one row for each box, checked line by line. Needs no TensorFlow."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.data.csv_file import CsvFile
from engine.data.image_files import printable
from engine.data.part import DataError
from engine.data.part_names import PARTS, PartWords
from engine.text import cut, join_some, join_words, nearest

CORNERS, SIZES = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
COORDINATES = {"corners": CORNERS, "xywh": SIZES}
MOST_BOXES = 1000  # in an image
_SHOWN = 5  # faults in a message

Box = tuple[str, float, float, float, float]  # the name of its class, x1, y1, x2, y2


@dataclass(frozen=True)
class Listed:
    """What a table says of an image.

    Attributes:
        split: the part that it belongs to ("train", "val" or "test"); "" if the table has no such column.
        line: the line that first names it, for messages.
        boxes: its boxes in pixels of the image, each from its left and upper edge to the right and lower one, which lie
            outside of it: a box of one pixel has x2 = x1 + 1.
        lines: the line of each box.
    """

    split: str
    line: int
    boxes: list[Box] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """The images that a table names, in its order, and how many rows repeated another one and were left out."""

    images: Mapping[str, Listed]
    repeated: int

    @property
    def divided(self) -> bool:
        """Whether it says which part each image belongs to."""
        return any(listed.split for listed in self.images.values())


def read_boxes(spec: str, file: pathlib.Path, *, coordinates: str = "corners") -> Table:
    """Reads a table with the columns image, x1, y1, x2, y2, class and, optionally, split; in any order.

    Args:
        spec: the name of the source, for error messages.
        coordinates: "corners", or "xywh" for the columns x, y (of the left upper corner), w and h.

    An image without objects has one row in which all cells but ``image`` and ``split`` are empty. A row that repeats
    another one is left out.

    Raises:
        DataError: the file cannot be read, columns are missing or unknown, a cell is not valid, a box has no area or
            begins outside of the image (whose size is not known here), or an image belongs to two parts.
    """
    if not file.exists() and file.parent.is_dir():
        near = nearest(file.name, [path.name for path in file.parent.glob("*.csv")])
        raise DataError(f"data={spec}: there is no file {file}{near}")
    table, names = CsvFile(f"data={spec}", file), COORDINATES[coordinates]
    heading = _check_heading(spec, file, table.columns, names)
    reader = _Reader(spec, file, heading, names)
    for line, cells in table.rows():
        reader.read(line, cells)
    reader.refuse()
    if not reader.images:
        raise DataError(f"data={spec}: {file} has a heading, but no rows")
    return Table(reader.images, reader.repeated)


class _Reader:
    """Collects the images of a table, and what is wrong with its rows."""

    def __init__(self, spec: str, file: pathlib.Path, heading: Sequence[str], names: Sequence[str]) -> None:
        self._spec, self._file, self._heading, self._names = spec, file, list(heading), tuple(names)
        self.images: dict[str, Listed] = {}
        self.repeated = 0
        self._seen: set[tuple[str, Box]] = set()
        self._faults: list[str] = []
        self._words = PartWords()

    def read(self, line: int, cells: Sequence[str]) -> None:
        row = dict(zip(self._heading, cells, strict=True))
        try:
            self._add(line, row)
        except _BadRowError as error:
            self._faults.append(f"line {line}: {error}")

    def refuse(self) -> None:
        """Raises DataError if rows were wrong; the message names the first ones."""
        if self._faults:
            more = f"\n  ... and {len(self._faults) - _SHOWN} more" if len(self._faults) > _SHOWN else ""
            listed = "".join(f"\n  {fault}" for fault in self._faults[:_SHOWN])
            raise DataError(f"data={self._spec}: rows of {self._file} are not valid:{listed}{more}")

    def _add(self, line: int, row: Mapping[str, str]) -> None:
        if not row["image"]:
            raise _BadRowError("the cell image is empty")
        image = os.path.normpath(row["image"])
        split = self._read_split(line, row)
        listed = self.images.setdefault(image, Listed(split, line))
        if listed.split != split:
            raise _BadRowError(
                f"{printable(row['image'])} belongs to the part {split}, but line {listed.line} says {listed.split}"
            )
        cells = [*self._names, "class"]
        empty = [name for name in cells if not row[name]]
        if len(empty) == len(cells):
            return
        if empty:
            raise _BadRowError(
                f"no {join_words(empty)}; an image without objects has a row in which all of {join_words(cells)} are empty"
            )
        box = (row["class"], *self._read_corners(row))
        if (image, box) in self._seen:
            self.repeated += 1
            return
        self._seen.add((image, box))
        if len(listed.boxes) == MOST_BOXES:
            raise _BadRowError(f"{printable(image)} has more than {MOST_BOXES:,} boxes, the most that are read")
        listed.boxes.append(box)
        listed.lines.append(line)

    def _read_split(self, line: int, row: Mapping[str, str]) -> str:
        if "split" not in self._heading:
            return ""
        try:
            found = self._words.read(row["split"], line)
        except ValueError as error:
            raise _BadRowError(f"split: {error}") from None
        if found is None:
            raise _BadRowError(f"split={cut(row['split'], 40)!r}: expected one of {', '.join(PARTS)}")
        return found

    def _read_corners(self, row: Mapping[str, str]) -> tuple[float, float, float, float]:
        numbers = [_number(name, row[name]) for name in self._names]
        left, top, right, bottom = numbers
        if self._names == SIZES:
            if right <= 0 or bottom <= 0:
                raise _BadRowError(f"w={right:g}, h={bottom:g}: expected more than 0")
            right, bottom = left + right, top + bottom
        for low, high, first, second in ((left, right, "x1", "x2"), (top, bottom, "y1", "y2")):
            if not low < high:
                hint = " (the columns x, y, w and h are read by the option coordinates=xywh)" if high < low else ""
                raise _BadRowError(f"{first}={low:g}, {second}={high:g}: expected {first} below {second}{hint}")
        return left, top, right, bottom


class _BadRowError(ValueError):
    """A row is not valid; the message says why, but not which one."""


def _check_heading(spec: str, file: pathlib.Path, cells: Sequence[str], names: Sequence[str]) -> list[str]:
    heading = list(cells)
    required, known = ["image", *names, "class"], ["image", *names, "class", "split"]
    expected = f"expected {', '.join(required)} and, if you like, split"
    if unknown := [name for name in heading if name not in known]:
        other = next(
            (way for way, each in COORDINATES.items() if each != tuple(names) and set(each) <= set(heading)), ""
        )
        hint = f"; the option coordinates={other} reads these" if other else nearest(unknown[0], known)
        shown = join_some([repr(cut(printable(name), 40)) for name in unknown])
        raise DataError(f"data={spec}: {file} has unknown columns: {shown}; {expected}{hint}")
    if missing := [name for name in required if name not in heading]:
        raise DataError(f"data={spec}: {file} has no column {join_words(missing)}; {expected}")
    return heading


def _number(name: str, text: str) -> float:
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _BadRowError(f"{name}={cut(text, 40)!r} is not a number; expected pixels, such as 12 or 12.5")
    return value
