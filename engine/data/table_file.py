"""``table:FILE.npz``: vectors as arrays."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from engine.data import features as vectors
from engine.data.arrays import tell_unread
from engine.data.batch_names import WEIGHT
from engine.data.divided import make_divided, name_label_columns
from engine.data.features import Features
from engine.data.manifest_options import ManifestOptions
from engine.data.named_weights import check_weights
from engine.data.part import DataError, Part, Source, check_labels, number_classes
from engine.data.part_names import find_misnamed
from engine.data.source_request import SourceRequest
from engine.files import FileError, Npz

_PREFIXES = {"train": "", "val": "val_", "test": "test_"}


def open_npz_table(request: SourceRequest, options: ManifestOptions) -> Source:
    """Opens vectors "x" [n, D] and labels "y" (classes [n], or numbers [n] or [n, C]) of an .npz file.

    "weight" [n] may say how much each example counts. "val_x", "val_y" and so on, and "test_x", are further parts, and
    "class_names" the names of the classes. Raises DataError if arrays are missing or do not fit together.
    """
    about = request.about
    request.refuse_image_options()
    given = [
        name
        for name in ("features", "labels", "weights", "missing", "split", "delimiter", "encoding")
        if getattr(options, name)
    ]
    if given:
        raise DataError(f"{about}: {given[0]}: an .npz file has no columns; it takes only standardise")
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    weights: dict[str, np.ndarray] = {}
    try:
        with Npz(pathlib.Path(options.file)) as npz:
            names = npz.names()
            own = [f"{prefix}{what}" for prefix in _PREFIXES.values() for what in ("x", "y", WEIGHT)]
            if (wrong := find_misnamed(names, ("x", "y", WEIGHT), own)) is not None:
                raise DataError(f"{about}: the array {wrong[0]} would not be read; expected {wrong[1]}")
            for part, prefix in _PREFIXES.items():
                there = [name for name in (f"{prefix}x", f"{prefix}y") if name in names]
                if len(there) == 1 or (part == "train" and not there and not _may_lack_train(request, names)):
                    lacks = f"{prefix}{'y' if there and there[0].endswith('x') else 'x'}"
                    raise DataError(f"{about}: the file has no {lacks}; it has {', '.join(names) or 'no arrays'}")
                if there:
                    arrays[part] = npz.read(f"{prefix}x"), npz.read(f"{prefix}y")
                if there and f"{prefix}{WEIGHT}" in names:
                    weights[part] = npz.read(f"{prefix}{WEIGHT}")
            named = [str(name) for name in npz.read("class_names").ravel()] if "class_names" in names else None
    except FileError as error:
        raise DataError(f"{about}: {error}") from None
    read = {"class_names", *(f"{_PREFIXES[part]}{name}" for part in arrays for name in ("x", "y", WEIGHT))}
    tell_unread(request.spec, set(names) - read, say=request.say)
    checked = {part: _check(request, _PREFIXES[part], *pair) for part, pair in arrays.items()}
    request.check_nan(any(x.dtype.kind == "f" for x, _ in arrays.values()), "x holds whole numbers")
    first, (x, y) = next(iter(checked.items()))
    classes: tuple[str, ...] = ()
    if y.dtype.kind == "i":
        seen = [y] if request.to_train else [labels for _, labels in checked.values()]
        largest = max(int(labels.max()) for labels in seen)
        if largest >= 100_000:
            raise DataError(f"{about}: y goes up to {largest}; expected classes from 0 to at most 99,999")
        classes = tuple(named) if named else number_classes(largest + 1)
    parts = {}
    for part, (features, labels) in checked.items():
        if (features.shape[1], labels.shape[1:], labels.dtype) != (x.shape[1], y.shape[1:], y.dtype):
            raise DataError(
                f"{about}: {part} has x {list(features.shape)} and y {labels.dtype} {list(labels.shape)}, but {first} has "
                f"{list(x.shape)} and {y.dtype} {list(y.shape)}"
            )
        check_labels(request.spec, f"{_PREFIXES[part]}y", labels, len(classes))
        vector = Features(features, [f"x{number}" for number in range(features.shape[1])], named=False)
        columns = {}
        if part in weights:
            columns[WEIGHT] = check_weights(f"{about}: {_PREFIXES[part]}{WEIGHT}", weights[part], len(labels))
        parts[part] = Part(vector, labels, np.arange(len(labels)), input_name=vectors.NAME, columns=columns)
    columns_of_labels = name_label_columns(request.spec, named, y)
    return make_divided(request.spec, classes, parts, named=bool(named and classes), columns=columns_of_labels)


def _may_lack_train(request: SourceRequest, names: Sequence[str]) -> bool:
    """Whether a file without x and y is whole: its data are only evaluated, and it has another part."""
    return not request.to_train and any(f"{prefix}x" in names for prefix in _PREFIXES.values())


def _check(request: SourceRequest, prefix: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as float32 [n, D] and labels as int64 or float32."""
    about = f"{request.about}: {prefix}"
    x = vectors.check_vectors(f"{about}x", x, request.images.nan)
    if y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape or y.dtype.kind not in "fiub":
        raise DataError(
            f"{about}y is {y.dtype} {list(y.shape)} for {len(x)} vectors; expected classes [n], or numbers [n] or [n, C]"
        )
    y = y[:, 0] if y.shape[1:] == (1,) and y.dtype.kind != "f" else y
    if y.dtype.kind == "f" or y.ndim == 2:
        y = y.astype(np.float32)
        if not np.isfinite(y).all():
            raise DataError(f"{about}y holds NaN or infinity")
        return x, y
    return x, y.astype(np.int64)
