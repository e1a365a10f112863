"""Vectors of numbers as an input: rows of float32, standardised if that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.data.part import Part, Source
from engine.text import join_words

NAME = "features"  # the name of the input


class Features:
    """Vectors float32 [n, D], by number; implements ``engine.data.part.Images``.

    Missing values are NaN in ``raw`` and 0 where they are read. With ``moments``, the mean and the deviation of each
    column, float64 [2, D], rows are (raw - mean) / deviation, computed in float64.
    """

    def __init__(self, raw: np.ndarray, columns: Sequence[str], moments: np.ndarray | None = None) -> None:
        self.raw, self.columns, self.moments = raw, tuple(columns), moments
        self.shape, self.dtype = raw.shape, np.dtype(np.float32)
        scaled = raw if moments is None else ((raw.astype(np.float64) - moments[0]) / moments[1]).astype(np.float32)
        self._read = np.where(np.isnan(scaled), np.float32(0), scaled)

    def __getitem__(self, numbers: Any) -> np.ndarray:
        return self._read[numbers]

    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._read).data).hexdigest()


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
    scaled: dict[int, Features] = {}

    def fit(part: Part) -> Part:
        own = find_features(part)
        assert own is not None
        made = scaled.setdefault(id(own), Features(own.raw, own.columns, moments))
        if part.input_name == NAME:
            return replace(part, images=made)
        return replace(part, inputs={**part.inputs, NAME: made})

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
