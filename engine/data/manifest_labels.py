"""The labels of a manifest: classes by name or numbers, with what is missing, and their weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.manifest_roles import LabelColumn
from engine.data.manifest_rows import Rows, is_unsure, read_number
from engine.data.part import DataError
from engine.data.part_names import PARTS
from engine.text import join_words, nearest, parse_number

_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of one column.

    Attributes:
        name: the name of the column.
        classes: the names of the classes, sorted (whole numbers by their value); empty for numbers.
        values: classes (int64 [n]) or numbers (float32 [n]); 0 where the label is missing.
        weights: float32 [n], 0 where the label is missing; None if none is missing and no column gives weights.
    """

    name: str
    classes: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray | None

    def describe(self) -> str:
        """A line on what the labels are."""
        lost = 0 if self.weights is None else int(np.count_nonzero(self.weights == 0))
        what = f"{len(self.classes)} classes, {join_words(self.classes)}" if self.classes else "numbers"
        return f"data: label {self.name}: {what}" + (f"; {lost:,} missing or of weight 0" if lost else "")


def read_labels(
    about: str,
    column: LabelColumn,
    rows: Rows,
    *,
    weights: Sequence[np.ndarray] = (),
    missing: Sequence[str] = (),
    to_train: bool = True,
) -> Labels:
    """Reads a column of labels.

    Texts are classes, and numbers of which one has a point or an exponent are numbers; ``column.kind`` decides anything
    else. The ``weights`` [n] are multiplied. ``to_train=False`` takes whatever classes there are (``SourceRequest.to_train``).

    Raises:
        DataError: it is not clear what the labels are; one is not a number; a class is not in the training part; or no
            label of the training part counts.
    """
    texts = rows.texts[column.number]
    present = np.array([bool(text) for text in texts])
    _check_texts(about, column, texts, rows, missing)
    classes: tuple[str, ...] = ()
    if _decide(about, column, texts, rows) == "number":
        numbers = (
            read_number(about, int(line), column.name, text) if text else 0.0
            for line, text in zip(rows.lines, texts, strict=True)
        )
        values = np.fromiter(numbers, np.float32, len(texts))
    else:
        classes = tuple(sorted({text for text in texts if text}, key=_class_order))
        if to_train:
            _check_classes(about, column.name, texts, rows)
        number: dict[str, int] = {name: at for at, name in enumerate(classes)}
        values = np.fromiter((number.get(text, 0) for text in texts), np.int64, len(texts))
    found = None
    if weights or not present.all():
        found = present.astype(np.float32)
        for each in weights:
            found = found * each
        if not found[rows.part == 0].any() and to_train:
            raise DataError(f"{about}: no row of the training part has a {column.name} that counts (weight above 0)")
    return Labels(name=column.name, classes=classes, values=values, weights=found)


def read_weights(about: str, column: int, name: str, rows: Rows) -> np.ndarray:
    """Reads a column of weights, float32 [n]; raises DataError for one that is missing, negative or not a number."""
    found = np.zeros(len(rows.lines), np.float32)
    for at, (line, text) in enumerate(zip(rows.lines, rows.texts[column], strict=True)):
        if not text:
            raise DataError(f"{about}: line {line}: {name} is empty; expected a weight (0 leaves a row out)")
        found[at] = read_number(about, int(line), name, text)
        if found[at] < 0:
            raise DataError(f"{about}: line {line}: {name} is {text}; a weight is at least 0")
    return found


def _decide(about: str, column: LabelColumn, texts: Sequence[str], rows: Rows) -> str:
    """Whether labels are classes ("class") or numbers ("number")."""
    if column.kind is not None:
        return column.kind
    given = [(text, int(line)) for text, line in zip(texts, rows.lines, strict=True) if text]
    if not given:
        raise DataError(f"{about}: the column {column.name} is empty, so there is nothing to learn or to evaluate by")
    numbers = [pair for pair in given if parse_number(pair[0]) is not None]
    if not numbers:
        return "class"
    if len(numbers) < len(given):
        text, line = next(pair for pair in given if parse_number(pair[0]) is None)
        raise DataError(
            f"{about}: {column.name} has numbers, such as {numbers[0][0]!r} on line {numbers[0][1]}, and texts, such as "
            f"{text[:60]!r} on line {line}; label={column.name}:class reads all as names of classes, and missing={text[:60]} "
            "says that this text means a missing label"
        )
    if any(_WHOLE.fullmatch(text) is None for text, _ in given):
        return "number"
    raise DataError(
        f"{about}: {column.name} has whole numbers, such as {given[0][0]}: label={column.name}:class if they are the names "
        f"of classes, label={column.name}:number if they are amounts"
    )


def _check_texts(about: str, column: LabelColumn, texts: Sequence[str], rows: Rows, missing: Sequence[str]) -> None:
    """Raises DataError for a text that may mean a missing label, unless the options say what the column holds."""
    if column.kind == "class" or missing:
        return
    for line, text in zip(rows.lines, texts, strict=True):
        if text and is_unsure(text) and (parse_number(text) is None or text.lower() == "nan"):
            raise DataError(
                f"{about}: line {line}: {column.name} is {text!r}: missing={text} if it means a missing label (an empty cell "
                f"does), label={column.name}:class if it is a class"
            )


def _check_classes(about: str, name: str, texts: Sequence[str], rows: Rows) -> None:
    """Raises DataError for a class that no row of the training part has."""
    seen = {text for text, part in zip(texts, rows.part, strict=True) if text and part == 0}
    for text, part, line in zip(texts, rows.part, rows.lines, strict=True):
        if text and text not in seen:
            raise DataError(
                f"{about}: line {line}: {name} {text[:60]!r} appears only in the part {PARTS[part]}{nearest(text, sorted(seen))}; a "
                "class needs examples to train on"
            )
    if len(seen) < 2:
        raise DataError(f"{about}: {name} has only one class, {next(iter(seen), '')!r}; a classifier needs two or more")


def _class_order(text: str) -> tuple[int, int, str]:
    return (0, int(text), text) if len(text) < 19 and _WHOLE.fullmatch(text) else (1, 0, text)
