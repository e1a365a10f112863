"""Files of weights: of classes, or of training examples."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from engine.data.batch_names import WEIGHT
from engine.data.delimited import Delimited, Row
from engine.data.image_files import ImageFiles, printable
from engine.data.part import DataError, Part
from engine.errors import FileError, InputError
from engine.files import PathLike
from engine.reading import read_file
from engine.text import cut, nearest, parse_number

_LARGEST = 1 << 28  # bytes of a file


def check_weights(about: str, weights: np.ndarray, count: int) -> np.ndarray:
    """Weights of examples as float32 [n]; raises DataError if they are not ``count`` finite numbers of at least 0.

    Example:
        >>> check_weights("weight", np.array([1, 0]), 2)
        array([1., 0.], dtype=float32)
    """
    if weights.shape != (count,) or weights.dtype.kind not in "iufb":
        raise DataError(
            f"{about} is {weights.dtype} {list(weights.shape)}; expected numbers [{count}], the weights of examples"
        )
    with np.errstate(over="ignore"):
        found = weights.astype(np.float32)
    if len(wrong := np.flatnonzero(~(np.isfinite(found) & (found >= 0)))):
        raise DataError(
            f"{about}[{wrong[0]}]={weights[wrong[0]]:g}: a weight is a finite number of at least 0 (0 leaves an example out)"
        )
    return found


def read_named_weights(path: PathLike, *, about: str, named: str = "class") -> list[tuple[str, float]]:
    """Reads pairs of a name and its weight, in the order of the file: a JSON object {name: weight}, or CSV lines ``name,weight``.

    A first CSV line that calls its second column weight, such as ``class,weight``, is a heading.

    Args:
        path: a file that exists.
        about: the beginning of messages.
        named: what the names are those of, for messages.

    Raises:
        InputError: the file cannot be read, or a weight is not a number of at least 0.
    """
    try:
        text = read_file(path, _LARGEST).decode("utf-8-sig")
        rows = Delimited(about="CSV", path=pathlib.Path(path)).rows()
        found = _parse_json(text) if text.lstrip().startswith(("{", "[")) else _parse_rows(rows)
    except (
        ValueError,
        OverflowError,
        RecursionError,
        FileError,
        DataError,
    ) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(
            f"{about}: expected a JSON object {{{named}: weight}} or CSV lines {named},weight ({cut(str(error))})"
        ) from None
    for name, weight in found:
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{about}: the weight of {name!r} is {weight:g}; expected a finite number of at least 0")
    return found


def _parse_json(text: str) -> list[tuple[str, float]]:
    """The pairs of a name and its weight, in the order of the file; raises ValueError."""
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
        if value is None and (number or WEIGHT not in row.cells[1].lower()):
            raise ValueError(f"line {row.line}: {row.cells[1]!r} is not a number")
        if value is not None:
            found.append((row.cells[0].strip(), value))
    return found


def read_sample_weights(path: PathLike, part: Part, *, about: str = "sample_weights") -> tuple[np.ndarray, str]:
    """Reads the weights of training examples from a file of ``read_named_weights``.

    An example is named by the path of its first image, as the folder or the manifest has it, where images are files;
    otherwise by its number among the examples that were read with it, from 0: ``Part.index``. Examples of the same files
    that are not in this part (held out, or of another part) may be named and change nothing; examples of this part that
    the file does not name weigh 1.

    Args:
        path: the file.
        part: the training part, of m examples.

    Returns:
        The weights of the examples by position, float32 [m], and a sentence on them.

    Raises:
        InputError: the file cannot be read, names an example twice or one that there is not, or none of this part, or has
            a weight that is not a number of at least 0; or all weights are 0.
    """
    name = f"{about}={path}"
    if not pathlib.Path(path).is_file():
        raise InputError(
            f"{name}: there is no such file; expected a CSV file with lines example,weight, or a JSON file"
        )
    given = read_named_weights(path, about=name, named="example")
    paths = part.images.paths if isinstance(part.images, ImageFiles) else None
    numbers = None if paths is None else _number_images(paths)
    by_number = np.full(part.images.shape[0], np.nan, np.float32)
    for example, weight in given:
        found = _find(name, example, len(by_number), numbers)
        if not np.isnan(by_number[found[0]]):
            raise InputError(f"{name}: example {printable(example)!r} has two weights; expected one")
        if weight > float(np.finfo(np.float32).max):
            raise InputError(f"{name}: the weight of {printable(example)!r} is {weight:g}, which no float32 holds")
        by_number[found] = weight
    chosen = by_number[part.index]
    missing = np.isnan(chosen)
    if missing.all():
        raise InputError(f"{name}: it names none of the {len(part):,} training examples")
    weights = np.where(missing, np.float32(1), chosen)
    if not weights.any():
        raise InputError(f"{name}: all training examples have the weight 0, so nothing would train")
    low, high = chosen[~missing].min(), chosen[~missing].max()
    text = f"of {len(part):,} training examples, {len(part) - missing.sum():,} weigh {low:g}"
    text += f" to {high:g}" if high > low else ""
    if missing.any():
        text += ", the others 1"
    if zeros := int((weights == 0).sum()):
        text += f"; {zeros:,} of weight 0 do not count in the loss"
    return weights, text


def _number_images(paths: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the images by the path that the data have of them; a manifest may name a file more than once."""
    found: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        found.setdefault(path, []).append(number)
    return found


def _find(about: str, example: str, count: int, numbers: dict[str, list[int]] | None) -> list[int]:
    """The numbers of the examples of this name; InputError if there are none."""
    if numbers is not None:
        example = os.path.normpath(example)  # as manifests read paths
        if example not in numbers:
            close = nearest(example, list(numbers)) or f", such as {next(iter(numbers))}"
            raise InputError(
                f"{about}: the data have no image {printable(example)!r}; an image is named by its path as the data have it"
                f"{printable(close)}"
            )
        return numbers[example]
    if not (example.isascii() and example.isdecimal()) or len(example) > 18 or int(example) >= count:
        raise InputError(
            f"{about}: {printable(example)!r} is not a valid number of an example; the training data have examples 0 to {count - 1:,}"
        )
    return [int(example)]
