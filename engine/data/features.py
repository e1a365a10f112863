"""Vectors of numbers as an input: rows of float32, standardised if that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.data.class_names import match_names, normal_form, same_names
from engine.data.part import DataError, Part, Source
from engine.text import join_words, nearest

NAME = "features"  # the name of the input
OF_TRAINING = "--nan=zero reads missing numbers as 0, which is their mean where they are standardised"
OF_USE = "the model was trained without missing numbers (--nan=zero of finetune); fill them in, or leave these rows out"


class Features:
    """Vectors float32 [n, D], by number; implements ``engine.data.part.Images``.

    Missing values are NaN in ``raw`` and 0 where they are read. With ``moments``, the mean and the deviation of each
    column, float64 [2, D], rows are (raw - mean) / deviation, computed in float64. ``named`` says whether ``columns`` are
    the data's own names, by which the columns of other data are found.
    """

    def __init__(
        self, raw: np.ndarray, columns: Sequence[str], moments: np.ndarray | None = None, *, named: bool = True
    ) -> None:
        self.raw, self.columns, self.moments, self.named = raw, tuple(columns), moments, named
        self.shape, self.dtype = raw.shape, np.dtype(np.float32)
        scaled = raw if moments is None else ((raw.astype(np.float64) - moments[0]) / moments[1]).astype(np.float32)
        self._read = np.where(np.isnan(scaled), np.float32(0), scaled)

    def __getitem__(self, numbers: Any) -> np.ndarray:
        return self._read[numbers]

    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._read).data).hexdigest()

    def with_moments(self, moments: np.ndarray) -> Features:
        """The same vectors, standardised by other moments."""
        return Features(self.raw, self.columns, moments, named=self.named)

    def take_columns(self, order: Sequence[int]) -> Features:
        """The vectors with their columns in another order."""
        moments = None if self.moments is None else self.moments[:, order]
        return Features(self.raw[:, order], [self.columns[at] for at in order], moments, named=self.named)


def check_vectors(about: str, x: np.ndarray, nan: str, *, way_out: str = OF_TRAINING) -> np.ndarray:
    """Vectors as float32 [n, D]; DataError for anything else, for infinity, and for NaN unless ``nan`` is "zero".

    ``way_out`` says what may be done about NaN.
    """
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise DataError(f"{about} is {x.dtype} {list(x.shape)}; expected numbers [n, D]")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if np.isinf(x).any() or (np.isnan(x).any() and nan == "stop"):
        raise DataError(f"{about} holds NaN or infinity{'' if nan == 'zero' else f'; {way_out}'}")
    return x


def check_missing(
    about: str,
    names: Sequence[str],
    lines: np.ndarray,
    values: np.ndarray,
    nan: str,
    say: Callable[[str], None],
    *,
    way_out: str = OF_TRAINING,
) -> None:
    """Tells ``say`` of missing numbers, NaN in [n, D]; DataError, which names the first, unless ``nan`` is "zero".

    ``way_out`` is that of ``check_vectors``.
    """
    lost = np.argwhere(np.isnan(values))
    if len(lost) and nan == "stop":
        row, column = lost[0]
        raise DataError(f"{about}: line {lines[row]}: {names[column]} is empty ({len(lost):,} such cells); {way_out}")
    if len(lost):
        say(f"data: {len(lost):,} missing numbers are read as 0")


def find_moments(rows: np.ndarray) -> np.ndarray:
    """The mean and the deviation (of the whole population) of each column of [n, D], without NaN: float64 [2, D].

    The deviation of a column that does not vary is 1.
    """
    wide, there = rows.astype(np.float64), ~np.isnan(rows)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, wide, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(there, (wide - mean) ** 2, 0).sum(axis=0) / count)
    return np.stack([mean, np.where(deviation > 0, deviation, 1.0)])


def standardise(source: Source, *, say: Callable[[str], None], moments: np.ndarray | None = None) -> Source:
    """The source with its features standardised: by the examples of its training part, or by ``moments``."""
    features = find_features(source.train)
    if features is None:
        return source
    if moments is None:
        moments = find_moments(features.raw[np.unique(source.train.index)])
    say(describe_moments(features.columns, moments))
    found = moments
    return _replace(source, lambda own: own.with_moments(found))


def order_columns(source: Source, names: tuple[str, ...] | None, *, say: Callable[[str], None]) -> Source:
    """The source with its features in the order in which a model was trained on them.

    Args:
        names: the names of the columns in that order (``name_columns``); None if they are not known, and () if they had
            none. Columns of which only one side is named are taken in their order.

    Raises DataError, which lists them, if the columns have other names, or two of them names that count as equal.
    """
    own = find_features(source.train)
    if own is None or names is None or not (names or own.named):
        return source
    given, wanted = normal_form(own.columns), normal_form(names)
    if not names or not own.named:
        say(
            f"data:    only {'the run names' if names else 'the data name'} the columns of features, so those of {source.name} are "
            "taken in their order"
        )
        return source
    if same_names(own.columns, names):
        return source
    missing, other = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
    if missing or other:
        told = [
            f"{what} {join_words(some, most=20)}" for what, some in (("lack", missing), ("also have", other)) if some
        ]
        raise DataError(
            f"data={source.name}: the model was trained on the features {join_words(names, most=20)}; these data "
            f"{' and '.join(told)}{nearest(missing[0], other) if missing else ''}. Rename the columns of the file, or name "
            "those to read, each by features=COLUMN"
        )
    order = match_names(f"data={source.name}", "features", names, own.columns)
    say(
        f"data:    the columns of features stand in another order; they are put into that of the run: {join_words(names)}"
    )
    return _replace(source, lambda features: features.take_columns(order))


def name_columns(source: Source) -> tuple[str, ...]:
    """The names of the columns of features, in their order; none if there are no features, or they have no names."""
    own = find_features(source.train)
    return own.columns if own is not None and own.named else ()


def name_moments(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and the deviation of each feature, by which they are standardised; None if they are not, or there are none."""
    own = find_features(source.train)
    if own is None or own.moments is None:
        return None
    return tuple(own.moments[0].tolist()), tuple(own.moments[1].tolist())


def _replace(source: Source, make: Callable[[Features], Features]) -> Source:
    """The source with other features in all parts."""
    made: dict[int, Features] = {}

    def fit(part: Part) -> Part:
        own = find_features(part)
        assert own is not None
        new = made.setdefault(id(own), make(own))
        if part.input_name == NAME:
            return replace(part, images=new)
        return replace(part, inputs={**part.inputs, NAME: new})

    train = fit(source.train)
    return replace(
        source,
        train=train,
        eval=train if source.eval is source.train else fit(source.eval),
        test=None if source.test is None else fit(source.test),
    )


def find_features(part: Part) -> Features | None:
    """The vectors among the inputs of a part."""
    found = part.images if part.input_name == NAME else part.inputs.get(NAME)
    return found if isinstance(found, Features) else None


def describe_moments(columns: Sequence[str], moments: np.ndarray) -> str:
    """A line on how features were standardised."""
    each = [f"{name} ({mean:.4g}, {dev:.4g})" for name, mean, dev in zip(columns, *moments, strict=True)]
    return f"data: features standardised by the mean and deviation of the training part: {join_words(each)}"
