"""Turns vectors of numbers into what a network takes, as the source of a run turned its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import features as vectors
from engine.data.features import Features
from engine.data.part import ArraySpec, DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorEncoder:
    """Vectors as the input of a network, standardised where the run standardised its own.

    Attributes:
        name: the name of the input.
        columns: the names of the features, in the order of the input; () if they have none.
        count: how many there are.
        moments: the mean and the deviation of each, float64 [2, D]; None leaves vectors as they are. A function is called
            for them when they are first needed.
        nan: what becomes of NaN: "stop" is an error, "zero" makes it 0 in what the network gets.

    Example:
        >>> moments = np.array([[5.0, 100.0], [1.0, 50.0]])
        >>> encode = VectorEncoder(name="features", columns=("length", "mass"), count=2, moments=moments, nan="zero")
        >>> encode([[6.0, 75.0], [4.5, np.nan]])["features"].tolist()
        [[1.0, -0.5], [-0.5, 0.0]]
    """

    name: str
    columns: tuple[str, ...]
    count: int
    moments: np.ndarray | Callable[[], np.ndarray] | None = None
    nan: str = "stop"

    @functools.cached_property
    def _moments(self) -> np.ndarray | None:
        return self.moments() if callable(self.moments) else self.moments

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """The shape and dtype of the input of the network."""
        return {self.name: ArraySpec((self.count,), np.dtype(np.float32))}

    def __call__(self, examples: Sequence[Any] | np.ndarray) -> dict[str, np.ndarray]:
        """The input of vectors [n, D], in the order of ``columns``; DataError for anything else."""
        found = np.asarray(examples)
        if found.ndim == 2 and not len(found):
            found = np.zeros([0, found.shape[1]], np.float32)
        else:
            found = vectors.check_vectors("vectors", found, self.nan, way_out=vectors.OF_USE)
        if found.shape[1] != self.count:
            raise DataError(f"vectors: shape {list(found.shape)}; expected [n, {self.count}]")
        names = self.columns or [f"x{number}" for number in range(self.count)]
        return {self.name: Features(found, names, self._moments, named=bool(self.columns))[:]}
