"""``csv:FILE``, a manifest of images or vectors with their labels, and ``table:FILE``, vectors."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.data import features as vectors
from engine.data.batch_names import label_name, weight_name
from engine.data.csv_file import CsvFile
from engine.data.divided import make_divided
from engine.data.features import Features
from engine.data.image_files import ImageFiles, printable
from engine.data.manifest_labels import Labels, read_labels, read_weights
from engine.data.manifest_options import ManifestOptions, parse_manifest
from engine.data.manifest_roles import Roles, find_roles
from engine.data.manifest_rows import Rows, read_rows
from engine.data.part import DataError, Part, Source, Target
from engine.data.part_names import PARTS
from engine.data.shared_images import find_shares, warn_of_shared
from engine.data.source_request import SourceRequest
from engine.data.table_file import open_npz_table
from engine.text import join_some


def open_manifest(request: SourceRequest) -> Source:
    """Opens ``csv:FILE[,OPTIONS]`` or ``table:FILE[,OPTIONS]``; ``eval is train`` if no row is marked as val.

    Raises:
        DataError: the file or images cannot be read, a column is missing or not clear, a cell is not what its column
            needs, or a class of another part is not in the training part.
    """
    options = parse_manifest(request.spec)
    path = pathlib.Path(options.file)
    if options.kind == "table" and path.suffix.lower() == ".npz":
        source = open_npz_table(request, options)
    else:
        source = _open_rows(request, options, path)
    if options.standardise:
        return vectors.standardise(source, say=request.say, moments=_read_moments(request, options, source))
    return source


def _open_rows(request: SourceRequest, options: ManifestOptions, path: pathlib.Path) -> Source:
    about = request.about
    file = CsvFile(about, path, delimiter=options.delimiter, encoding=options.encoding)
    roles = find_roles(about, options, file.columns)
    if options.standardise is not None and not roles.features:
        raise DataError(f"{about}: standardise: there are no features; features=COLUMN names columns of numbers")
    rows = read_rows(about, file, roles, missing=options.missing)
    if request.to_train and not (rows.part == 0).any():
        raise DataError(f"{about}: no row is of the part train, by the column {file.columns[roles.split or 0]}")
    request.say(printable(roles.describe(file.columns)))
    labels = _read_labels(request, file.columns, roles, rows, options)
    inputs: dict[str, Any] = _open_images(request, path.parent, file.columns, roles, rows)
    bad: set[int] = set()
    for images in inputs.values():
        bad |= set(images.bad)
    if roles.features:
        inputs[vectors.NAME] = _make_features(request, file.columns, roles, rows)
    floats = any(images.holds_floats for images in inputs.values() if isinstance(images, ImageFiles))
    request.check_nan(floats or bool(roles.features), "no image stores floats, and no column is one of features")
    if not roles.images:
        request.refuse_image_options()
    for found in labels:
        request.say(printable(found.describe()))
    belongs = rows.part.copy()
    belongs[sorted(bad)] = -1
    paths = [rows.texts[number] for number in roles.images]
    shares = find_shares(paths, say=None if (rows.part == 1).any() else request.say) if paths else None
    parts: dict[str, Part] = {}
    for number, name in enumerate(PARTS):
        index = np.flatnonzero(belongs == number).astype(np.int64)
        if len(index):
            parts[name] = _make_part(inputs, labels, index, shares)
        elif (rows.part == number).any():
            raise DataError(f"{about}: no row of the part {name} has a readable image")
    warn_of_shared(paths, rows.part, request.say)
    return make_labelled(request.spec, parts, labels, skipped=_name_bad(inputs, bad))


def _read_labels(
    request: SourceRequest, columns: Sequence[str], roles: Roles, rows: Rows, options: ManifestOptions
) -> list[Labels]:
    about, found = request.about, []
    for label in roles.labels:
        weights = [
            read_weights(about, weight.number, columns[weight.number], rows)
            for weight in roles.weights
            if weight.label in (None, label.name)
        ]
        given: dict[str, Any] = {"weights": weights, "missing": options.missing, "to_train": request.to_train}
        found.append(read_labels(about, label, rows, **given))
    return found


def _open_images(
    request: SourceRequest, folder: pathlib.Path, columns: Sequence[str], roles: Roles, rows: Rows
) -> dict[str, ImageFiles]:
    """The images of each column of paths, by the name of the input."""
    for number in roles.images:
        _check_paths(request, folder, columns[number], rows.texts[number], rows.lines)
    names = [columns[number] for number in roles.images] if len(roles.images) > 1 else ["image"]
    budget = request.budget // max(1, len(roles.images))
    return {
        name: ImageFiles(
            request.spec,
            folder,
            rows.texts[number],
            size=request.choose_size(),
            budget=budget,
            skip_bad=request.skip_bad,
            options=request.images,
            say=request.say,
        )
        for name, number in zip(names, roles.images, strict=False)
    }


def _check_paths(
    request: SourceRequest, folder: pathlib.Path, column: str, texts: Sequence[str], lines: np.ndarray
) -> None:
    """Raises DataError for an empty path, and for files that do not exist unless they are to be skipped."""
    for text, line in zip(texts, lines, strict=True):
        if not text or "\0" in text:
            raise DataError(f"{request.about}: line {line}: {column} is empty; expected the path of an image")
    if request.skip_bad:
        return
    there = {text: os.path.exists(folder / text) for text in dict.fromkeys(texts)}  # False for a text that is too long
    missing = [f"{text} (line {line})" for text, line in zip(texts, lines, strict=True) if not there[text]]
    if missing:
        slashes = "; their names have \\ where / is expected" if "\\" in missing[0] else ""
        raise DataError(
            f"{request.about}: {len(missing)} of {len(texts)} files in the column {column} do not exist: "
            f"{printable(join_some(missing))}; paths are relative to {folder}{slashes} (--bad_images=skip leaves them out)"
        )


def _make_features(request: SourceRequest, columns: Sequence[str], roles: Roles, rows: Rows) -> Features:
    names = [columns[number] for number in roles.features]
    vectors.check_missing(request.about, names, rows.lines, rows.features, request.images.nan, request.say)
    return Features(rows.features, names)


def _make_part(
    inputs: Mapping[str, Any], labels: Sequence[Labels], index: np.ndarray, shares: np.ndarray | None
) -> Part:
    (first, images), *more = inputs.items()
    columns = {}
    for found in labels:
        task = found.name if len(labels) > 1 else ""
        columns[label_name(task)] = found.values[index]
        if found.weights is not None:
            columns[weight_name(task)] = found.weights[index]
    name = next(iter(columns))
    return Part(
        images,
        columns.pop(name),
        index,
        None if shares is None else shares[index],
        input_name=first,
        inputs=dict(more),
        label_name=name,
        columns=columns,
    )


def make_labelled(
    spec: str, parts: Mapping[str, Part], labels: Sequence[Labels], *, skipped: tuple[str, ...] = ()
) -> Source:
    """The source of these parts ("train" and perhaps "val" and "test"), with what is known of their labels."""
    tasks = tuple(Target(found.name, found.classes) for found in labels) if len(labels) > 1 else ()
    return make_divided(spec, labels[0].classes, parts, skipped=skipped, named=bool(labels[0].classes), tasks=tasks)


def _name_bad(inputs: Mapping[str, Any], bad: set[int]) -> tuple[str, ...]:
    files = [images for images in inputs.values() if isinstance(images, ImageFiles)]
    return tuple(images.name(number) for number in sorted(bad) for images in files if number in images.bad)


def _read_moments(request: SourceRequest, options: ManifestOptions, source: Source) -> np.ndarray:
    """The mean and deviation of the training part of another file with the same columns."""
    about, path = request.about, pathlib.Path(options.standardise or "")
    own = vectors.find_features(source.train)
    names = () if own is None else own.columns
    if path.suffix.lower() == ".npz":
        other = replace(request, spec=f"table:{path}", say=lambda line: None)
        train = open_npz_table(other, parse_manifest(other.spec)).train
        found = vectors.find_features(train)
        assert found is not None
        if not len(train):
            raise DataError(f"{about}: standardise={path}: it has no x, the training part whose mean is asked for")
        if found.raw.shape[1] != len(names):
            raise DataError(f"{about}: standardise={path}: it has {found.raw.shape[1]} columns; expected {len(names)}")
        return vectors.find_moments(found.raw)
    file = CsvFile(about, path, delimiter=options.delimiter, encoding=options.encoding)
    roles = find_roles(about, options, file.columns)
    if roles.split is None:
        raise DataError(
            f"{about}: standardise={path}: no column split says which rows its training part is, so their mean is not known"
        )
    rows = read_rows(about, file, roles, missing=options.missing)
    others = [file.columns[number] for number in roles.features]
    if sorted(others) != sorted(names):
        raise DataError(
            f"{about}: standardise={path}: its columns are {join_some(others)}; expected those of the features, {join_some(names)}"
        )
    if not (rows.part == 0).any():
        raise DataError(
            f"{about}: standardise={path}: no row is of the part train, whose mean and deviation are asked for"
        )
    moments = vectors.find_moments(rows.features[rows.part == 0])
    return moments[:, [others.index(name) for name in names]]
