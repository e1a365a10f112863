"""The options of ``csv:FILE`` and ``table:FILE``: which column is what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.data.delimited import DELIMITERS
from engine.data.part import DataError
from engine.text import nearest

KINDS = ("csv", "table")
_DELIMITERS = DELIMITERS | {"space": " "}
_REPEATED = {"image": "images", "features": "features", "label": "labels", "weight": "weights", "missing": "missing"}
_ONCE = ("split", "delimiter", "encoding", "standardise")
_KEYS = (*_REPEATED, *_ONCE)


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """What ``csv:FILE,image=path,label=species,split=part`` says.

    Attributes:
        kind: "csv" or "table".
        images, features, labels, weights: the columns as they are named, labels and weights with what follows a colon.
        missing: texts that mean a missing cell, as an empty one does.
        split, delimiter, encoding: the column with the part of each row, and how the file is written; None to find out.
        standardise: whose training part gives the mean and deviation of the features: "" means the file's own, None
            leaves the features as they are.
    """

    kind: str
    file: str
    images: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    split: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    standardise: str | None = None


def parse_manifest(spec: str) -> ManifestOptions:
    """Reads the name of a source ``csv:FILE[,KEY=VALUE...]`` or ``table:FILE[,...]``. Opens no file.

    A value with a comma is put into double quotes. Raises DataError for an option that there is not.

    Example:
        >>> found = parse_manifest('csv:a/photos.csv,image=path,label=age:number,label=species')
        >>> found.file, found.images, found.labels
        ('a/photos.csv', ('path',), ('age:number', 'species'))
    """
    kind, _, rest = spec.partition(":")
    first, *pieces = re.findall(r'(?:[^,"]|"[^"]*")+', rest) or [""]
    file, many, once = first, {name: [] for name in _REPEATED}, {}  # type: ignore[var-annotated]
    for piece in pieces:
        key, given, value = (word.strip() for word in piece.partition("="))
        value = value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
        if key == "standardise" and (not given or value):
            once[key] = value
        elif not given and not any(many.values()) and not once:
            file = f"{file},{piece}"  # the name of the file has a comma
        elif key not in _KEYS:
            raise DataError(
                f"data={spec}: `{key}` is not an option; expected one of {', '.join(_KEYS)}{nearest(key, _KEYS)}"
            )
        elif not value:
            raise DataError(f"data={spec}: `{piece.strip()}` has no value; expected {key}={_example(key)}")
        elif key in _REPEATED:
            many[key].append(value)
        elif key in once:
            raise DataError(f"data={spec}: {key} is given twice")
        else:
            once[key] = value
    if not file or rest.startswith(","):
        raise DataError(f"data={spec!r}: expected {kind}:FILE")
    if "delimiter" in once:
        once["delimiter"] = _parse_delimiter(spec, once["delimiter"])
    if kind == "table" and many["image"]:
        raise DataError(
            f"data={spec}: image={many['image'][0]}: a table has no images; csv:FILE takes a column of paths"
        )
    found: dict[str, Any] = {_REPEATED[key]: tuple(values) for key, values in many.items()} | once
    return ManifestOptions(kind=kind, file=file, **found)


def _parse_delimiter(spec: str, text: str) -> str:
    found = _DELIMITERS.get(text.lower(), text)
    if len(found) != 1 or found in '"\r\n' or found.isalnum():
        raise DataError(f"data={spec}: delimiter={text!r}: expected {', '.join(_DELIMITERS)}, or one character")
    return found


def _example(key: str) -> str:
    return {"delimiter": "semicolon", "encoding": "latin-1", "missing": "NA"}.get(key, "COLUMN")
