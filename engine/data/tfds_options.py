"""The options of ``tfds:NAME``: which data set, which of its splits and features."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.data.part import DataError
from engine.text import nearest

_KEYS = ("split", "eval", "test", "image", "label", "data_dir")
_NAME = re.compile(r"[A-Za-z0-9_]+(/[\w.\-]+)?(:[0-9*]+\.[0-9*]+\.[0-9*]+)?")


@dataclass(frozen=True, kw_only=True)
class TfdsOptions:
    """What ``tfds:NAME[/CONFIG][:VERSION][,KEY=VALUE...]`` says.

    Attributes:
        name, version: the data set, with its config, and the version; None takes the newest that is prepared.
        split, evaluation, test: the split or slice of each part, such as ``train[:80%]``; None takes the usual names.
        image, label: the names of the features; None takes the only image, and ``label``.
        label_kind: "class" or "number", for whole numbers that have no names; None does not say.
        data_dir: the folder of the prepared data sets; None takes TFDS_DATA_DIR, or ~/tensorflow_datasets.
    """

    name: str
    version: str | None = None
    split: str | None = None
    evaluation: str | None = None
    test: str | None = None
    image: str | None = None
    label: str | None = None
    label_kind: str | None = None
    data_dir: str | None = None


def parse_tfds(spec: str) -> TfdsOptions:
    """Reads the name of a source ``tfds:NAME[...]``; raises DataError if it is not valid. Opens no file.

    Example:
        >>> parse_tfds("tfds:mnist:3.0.1,split=train[:80%]").split
        'train[:80%]'
    """
    first, *pieces = spec.partition(":")[2].split(",")
    if _NAME.fullmatch(first) is None:
        raise DataError(
            f"data={spec!r}: expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, such as tfds:mnist:3.0.1"
        )
    name, _, version = first.partition(":")
    found: dict[str, str] = {}
    for piece in pieces:
        key, _, value = (word.strip() for word in piece.partition("="))
        if key not in _KEYS:
            raise DataError(
                f"data={spec}: `{key}` is not an option; expected one of {', '.join(_KEYS)}{nearest(key, _KEYS)}"
            )
        if not value:
            raise DataError(f"data={spec}: `{piece}` has no value; expected {key}=...")
        if key in found:
            raise DataError(f"data={spec}: {key} is given twice")
        found[key] = value
    if "label" in found and ":" in found["label"]:
        found["label"], _, found["label_kind"] = found["label"].partition(":")
        if found["label_kind"] not in ("class", "number"):
            raise DataError(f"data={spec}: label={found['label']}:{found['label_kind']}: expected :class or :number")
    if "eval" in found:
        found["evaluation"] = found.pop("eval")
    return TfdsOptions(name=name, version=version or None, **found)
