"""Exponential moving averages of what trains, counted in steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables, NamedVariable


class EmaError(InputError):
    """A decay outside its range, or saved averages that do not fit."""


class Averages:
    """After each step: average = decay * average + (1 - decay) * variable, for the selection alone.

    An average begins with the variable's value when it is first trained; a variable that is frozen
    loses its average. Skipped steps do not count.

    Args:
        decay: above 0 and below 1; some 1 / (1 - decay) steps are averaged over.

    Attributes:
        values: path -> tf.Variable of the variable's shape and dtype.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise EmaError(f"ema={decay:g}: it must be above 0 and below 1")
        self.decay = decay
        self.values: dict[str, Any] = {}

    def fit(self, chosen: Selection) -> None:
        """Begins averages of what trains and has none; drops those of what is frozen."""
        wanted = {entry.path: entry for entry in chosen.trained}
        for path in [path for path in self.values if path not in wanted]:
            del self.values[path]
        for path, entry in wanted.items():
            if path not in self.values:
                self.values[path] = _copy(entry)

    def bytes(self) -> int:
        return sum(value.shape.num_elements() * value.dtype.size for value in self.values.values())

    def handles(self, chosen: Selection) -> list[Any]:
        return [self.values[entry.path].handle for entry in chosen.trained]

    @contextlib.contextmanager
    def in_place(self, variables: ModelVariables) -> Iterator[None]:
        """Puts the averages into the model and takes them out again; one spare variable of memory."""
        self._swap(variables)
        try:
            yield
        finally:
            self._swap(variables)

    def _swap(self, variables: ModelVariables) -> None:
        for entry in variables:
            if (average := self.values.get(entry.path)) is not None:
                held = entry.variable.numpy()
                entry.variable.assign(average)
                average.assign(held)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """``ema/<path>`` and value of each average, one at a time."""
        for path, value in self.values.items():
            yield f"ema/{path}", value.numpy()

    def restore(self, variables: ModelVariables, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over ``arrays()`` of a model's variables.

        Raises:
            EmaError: an average has another shape than its variable.
        """
        self.values = {}
        for entry in variables:
            if (array := arrays.get(f"ema/{entry.path}")) is None:
                continue
            if tuple(array.shape) != tuple(entry.variable.shape):
                raise EmaError(f"ema/{entry.path}: shape {list(array.shape)}; {list(entry.variable.shape)} is wanted")
            self.values[entry.path] = _copy(entry)
            self.values[entry.path].assign(array)


def update(chosen: Selection, handles: Any, decay: float) -> None:
    """Moves the averages behind ``handles`` towards the selection's variables, inside a tf.function."""
    for entry, handle in zip(chosen.trained, handles, strict=True):
        dtype = entry.variable.dtype
        average = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        step = tf.constant(1.0 - decay, dtype) * (average - entry.variable.read_value())
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=step)


def _copy(entry: NamedVariable) -> Any:
    return tf.Variable(entry.variable.read_value(), trainable=False, name="average")
