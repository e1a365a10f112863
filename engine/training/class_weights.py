"""Weights of classes, which make up for classes with few examples, or say which mistakes are worse than others.

The weight of a class multiplies the weight of its examples in the loss; accuracies and other figures do not use it.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from engine.data.class_names import normal_form
from engine.data.delimited import Delimited, Row
from engine.data.part import DataError
from engine.errors import FileError, InputError
from engine.files import PathLike
from engine.reading import read_file
from engine.text import cut, join_some, nearest, parse_number
from engine.training.loss_names import BALANCED

_LARGEST = 1 << 24  # bytes of a file


def balance_classes(labels: np.ndarray, classes: Sequence[str], *, about: str = "class_weights") -> tuple[float, ...]:
    """Weights n / (C * n_c) for n examples of C classes, n_c of them of class c: every class then weighs n / C.

    These are the weights "balanced" of scikit-learn (King and Zeng: Logistic Regression in Rare Events Data, 2001).

    Args:
        labels: the classes of the training examples that have a label, int [n].
        classes: the names of the classes.

    Raises:
        InputError: a class has no example.

    Example:
        >>> balance_classes(np.array([0, 0, 0, 1]), ["cat", "dog"])
        (0.6666666666666666, 2.0)
    """
    return balance_counts(np.bincount(labels.astype(np.int64), minlength=len(classes)), classes, about=about)


def balance_counts(counts: np.ndarray, classes: Sequence[str], *, about: str = "class_weights") -> tuple[float, ...]:
    """As ``balance_classes``, from the number of examples, or of pixels, of each class, int [C]."""
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise InputError(
            f"{about}=balanced: {len(empty)} of {len(classes)} classes have no training example, so no weight balances them: "
            f"{join_some(empty)}; a file of weights can give them any (docs/several_outputs.md)"
        )
    return tuple(float(counts.sum() / (len(classes) * count)) for count in counts)


def read_class_weights(path: PathLike, classes: Sequence[str], *, about: str = "class_weights") -> tuple[float, ...]:
    """Reads the weights of classes from a file: a JSON object {class: weight}, or CSV lines ``class,weight``.

    A first CSV line whose weight is not a number, such as ``class,weight``, is a heading. Classes that the data do not name
    are called by their numbers.

    Raises:
        InputError: the file cannot be read, names a class twice or one that the data do not have, lacks a class, or has a
            weight that is not a number of at least 0; or all weights are 0.
    """
    name = f"{about}={path}"
    if not pathlib.Path(path).is_file():
        hint = nearest(str(path), [BALANCED]) if pathlib.Path(path).suffix == "" else ""
        raise InputError(f"{name}: there is no such file; expected {BALANCED} or a JSON or CSV file{hint}")
    try:
        text = read_file(path, _LARGEST).decode("utf-8-sig")
        rows = Delimited(about="CSV", path=pathlib.Path(path)).rows()
        given = _parse_json(text) if text.lstrip().startswith(("{", "[")) else _parse_rows(rows)
    except (ValueError, RecursionError, FileError, DataError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(
            f"{name}: expected a JSON object {{class: weight}} or CSV lines class,weight ({cut(str(error))})"
        ) from None
    return _match(name, given, classes)


def describe_weights(weights: Sequence[float], classes: Sequence[str]) -> str:
    """The weights for people, those of all classes or the first ones; it says which classes weigh nothing.

    Example:
        >>> describe_weights([0.6666, 2, 0], ["cat", "dog", "emu"])
        'cat 0.6666, dog 2, emu 0; examples of emu do not count in the loss'
    """
    text = join_some([f"{name} {weight:.4g}" for name, weight in zip(classes, weights, strict=True)], most=12)
    if none := [name for name, weight in zip(classes, weights, strict=True) if not weight]:
        text += f"; examples of {join_some(none)} do not count in the loss"
    return text


def _parse_json(text: str) -> list[tuple[str, float]]:
    """The pairs of a class and its weight, in the order of the file; raises ValueError."""
    found = json.loads(text, object_pairs_hook=list, parse_constant=float)
    if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
        raise ValueError("it has a list")
    pairs = [(str(name), value) for name, value in found]
    for name, value in pairs:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"the weight of {name!r} is {value!r}")
    return [(name, float(value)) for name, value in pairs]


def _parse_rows(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """The same of CSV lines; raises ValueError."""
    found = []
    for number, row in enumerate(rows):
        if len(row.cells) != 2:
            raise ValueError(f"line {row.line} has {len(row.cells)} cells")
        value = parse_number(row.cells[1].strip())
        if value is None and number:
            raise ValueError(f"line {row.line}: {row.cells[1]!r} is not a number")
        if value is not None:
            found.append((row.cells[0].strip(), value))
    return found


def _match(name: str, given: Sequence[tuple[str, float]], classes: Sequence[str]) -> tuple[float, ...]:
    """The weights in the order of the classes."""
    keys, known = normal_form([key for key, _ in given]), normal_form(classes)
    weights: dict[str, float] = {}
    for key, (written, weight) in zip(keys, given, strict=True):
        if key in weights:
            raise InputError(f"{name}: class {written!r} has two weights; expected one")
        if key not in known:
            raise InputError(
                f"{name}: the data have no class {written!r}; their classes are {join_some(list(classes), most=20)}"
                f"{nearest(key, known)}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{name}: the weight of {written!r} is {weight:g}; expected a number of at least 0")
        weights[key] = weight
    if missing := [each for each, key in zip(classes, known, strict=True) if key not in weights]:
        raise InputError(
            f"{name}: it has no weight for {join_some(missing)}; expected one for each of {len(known)} classes"
        )
    if not any(weights.values()):
        raise InputError(f"{name}: all weights are 0, so nothing would train")
    return tuple(weights[key] for key in known)
