"""Which column of a manifest is what: as its options say, else by the names that are clear by themselves."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.data.batch_names import is_input
from engine.data.csv_file import find_column
from engine.data.manifest_options import ManifestOptions
from engine.data.part import DataError
from engine.text import join_some, join_words

_DEFAULTS = {"image": ("image", "path", "file"), "label": ("label",), "weight": ("weight",), "split": ("split",)}
LABEL_KINDS = ("class", "number")


class LabelColumn(NamedTuple):
    """A column of labels: its number and name, and what the options say that it holds (None where they do not)."""

    number: int
    name: str
    kind: str | None


class WeightColumn(NamedTuple):
    """A column of weights, and the label to which it belongs; None means every label."""

    number: int
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The numbers of the columns in each role."""

    images: tuple[int, ...]
    features: tuple[int, ...]
    labels: tuple[LabelColumn, ...]
    weights: tuple[WeightColumn, ...]
    split: int | None
    unused: tuple[str, ...]

    def describe(self, columns: Sequence[str]) -> str:
        """A line on which column is read as what."""
        found = []
        if self.images:
            found.append(f"image {join_words(columns[n] for n in self.images)}")
        if self.features:
            found.append(f"{len(self.features)} features ({join_words(columns[n] for n in self.features)})")
        found.append(f"label {join_words(label.name for label in self.labels)}")
        if self.weights:
            found.append(f"weight {join_words(columns[weight.number] for weight in self.weights)}")
        if self.split is not None:
            found.append(f"split {columns[self.split]}")
        rest = f"; not used: {join_words(self.unused)}" if self.unused else ""
        return f"data: columns: {', '.join(found)}{rest}"


def find_roles(about: str, options: ManifestOptions, columns: tuple[str, ...]) -> Roles:
    """Decides what each column is; raises DataError, which lists the columns, where that is not clear.

    ``features`` may be patterns such as ``x*``: the columns that match and have no other role.
    """
    labels = [_find_label(about, columns, text) for text in options.labels]
    labels = labels or [LabelColumn(n, columns[n], None) for n in _default(about, columns, "label")]
    if not labels:
        raise DataError(
            f"{about}: no column is called label; label=COLUMN names the one to learn; the columns are "
            f"{join_some([name for name in columns if name], most=30)}"
        )
    weights = [_find_weight(about, columns, text, [label.name for label in labels]) for text in options.weights]
    taken = {label.number for label in labels}
    if not weights:
        weights = [WeightColumn(n, None) for n in _default(about, columns, "weight", taken)]
    taken |= {weight.number for weight in weights}
    split = [find_column(about, columns, options.split, "split")] if options.split is not None else []
    split = split or _default(about, columns, "split", taken)
    taken |= set(split)
    images = [find_column(about, columns, name, "image") for name in options.images]
    patterns = options.features or (("*",) if options.kind == "table" else ())
    if not images and not patterns:
        images = _default(about, columns, "image", taken)
    features = _match(about, columns, patterns, taken | set(images))
    if not features and "*" in patterns:
        raise DataError(f"{about}: no column is left for features; the columns are {join_some(columns, most=30)}")
    if not images and not features:
        raise DataError(
            f"{about}: no column is called image, path or file; image=COLUMN names the one with the paths of images, and "
            f"features=COLUMN numbers; the columns are {join_some([name for name in columns if name], most=30)}"
        )
    used = [*images, *features, *(label.number for label in labels), *(weight.number for weight in weights), *split]
    if twice := [number for number in used if used.count(number) > 1]:
        raise DataError(f"{about}: the column {columns[twice[0]]!r} is used for two things; each column has one role")
    if len(images) > 1 and (wrong := [columns[n] for n in images if not is_input(columns[n])]):
        raise DataError(f"{about}: image={wrong[0]}: a batch has something else of this name; rename the column")
    if len(labels) > 1 and (wrong := [label.name for label in labels if "/" in label.name or " " in label.name]):
        raise DataError(f"{about}: label={wrong[0]}: the name of a task has no blank and no /; rename the column")
    left = [number for number in range(len(columns)) if number not in used]
    return Roles(
        images=tuple(images),
        features=tuple(features),
        labels=tuple(labels),
        weights=tuple(weights),
        split=split[0] if split else None,
        unused=tuple(columns[number] or f"number {number + 1}, without a name" for number in left),
    )


def _default(about: str, columns: tuple[str, ...], role: str, taken: set[int] | None = None) -> list[int]:
    """The column that has a role by its name; none if there is no such column."""
    found = [n for n, name in enumerate(columns) if name.lower() in _DEFAULTS[role] and n not in (taken or set())]
    if len(found) > 1:
        names = [columns[n] for n in found]
        raise DataError(f"{about}: {join_words(names)} could each be the {role}; {role}={names[0]} says which it is")
    return found


def _find_label(about: str, columns: tuple[str, ...], text: str) -> LabelColumn:
    """A column by its name, which ``:class`` or ``:number`` may follow."""
    if text in columns:
        return LabelColumn(columns.index(text), text, None)
    name, colon, kind = text.rpartition(":")
    if not colon:
        name, kind = text, ""
    number = find_column(about, columns, name, "label")
    if colon and kind not in LABEL_KINDS:
        raise DataError(f"{about}: label={text}: expected {name}:class or {name}:number")
    return LabelColumn(number, name, kind or None)


def _find_weight(about: str, columns: tuple[str, ...], text: str, labels: Sequence[str]) -> WeightColumn:
    """A column by its name, which ``:LABEL`` may follow."""
    if text in columns:
        return WeightColumn(columns.index(text), None)
    name, colon, label = text.rpartition(":")
    number = find_column(about, columns, name if colon else text, "weight")
    if label not in labels:
        raise DataError(f"{about}: weight={text}: {label!r} is not a label; the labels are {join_words(labels)}")
    return WeightColumn(number, label)


def _match(about: str, columns: tuple[str, ...], patterns: Sequence[str], taken: set[int]) -> list[int]:
    """The columns that patterns name, in their order; one without a name never."""
    found: dict[int, None] = {}
    for pattern in patterns:
        if pattern in columns:
            found[columns.index(pattern)] = None
            continue
        some = [n for n, name in enumerate(columns) if name and fnmatch.fnmatchcase(name, pattern) and n not in taken]
        if not some and pattern != "*":
            find_column(about, columns, pattern, "features")
        found |= dict.fromkeys(some)
    return list(found)
