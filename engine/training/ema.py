"""Exponential moving averages of the trained variables, updated once per step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables, NamedVariable


class EmaError(InputError):
    """The decay is out of range, or saved averages do not fit the model."""


class Averages:
    """Averages of the trained variables: after each step, average = decay * average + (1 - decay) * variable.

    An average starts at the variable's value when the variable is first trained. A variable that is frozen again loses
    its average. Skipped steps do not count. The decay is above 0 and below 1; about 1 / (1 - decay) steps are averaged.
    ``values`` holds, for each path, a tf.Variable of the variable's shape and dtype.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise EmaError(f"ema={decay:g}: expected a number above 0 and below 1")
        self.decay = decay
        self.values: dict[str, Any] = {}

    def fit(self, chosen: Selection) -> None:
        """Creates the missing averages of trained variables, and drops those of frozen ones."""
        wanted = {entry.path: entry for entry in chosen.trained}
        kept = {path: value for path, value in self.values.items() if path in wanted}
        self.values = kept | {path: _copy(entry) for path, entry in wanted.items() if path not in kept}

    def bytes(self) -> int:
        return sum(value.shape.num_elements() * value.dtype.size for value in self.values.values())

    def variables(self, chosen: Selection) -> list[Any]:
        """The average of each trained variable."""
        return [self.values[entry.path] for entry in chosen.trained]

    @contextlib.contextmanager
    def in_place(self, variables: ModelVariables, *, follow: Callable[[], None] | None = None) -> Iterator[None]:
        """Puts the averages into the model within a ``with`` block; takes the memory of one extra variable.

        ``follow`` is called whenever that has changed the model, for copies of its variables.
        """
        follow = follow or (lambda: None)
        self._swap(variables)
        try:
            follow()
            yield
        finally:
            self._swap(variables)
            follow()

    def _swap(self, variables: ModelVariables) -> None:
        for entry in variables:
            if (average := self.values.get(entry.path)) is not None:
                held = entry.variable.numpy()
                entry.variable.assign(average)
                average.assign(held)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name ``ema/<path>`` and the value of each average."""
        for path, value in self.values.items():
            yield f"ema/{path}", value.numpy()

    def restore(self, variables: ModelVariables, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores saved ``arrays()``; raises EmaError if the shape of an average differs from that of its variable."""
        self.values = {}
        for entry in variables:
            if (array := arrays.get(f"ema/{entry.path}")) is None:
                continue
            if tuple(array.shape) != tuple(entry.variable.shape):
                raise EmaError(
                    f"ema/{entry.path}: the saved shape is {list(array.shape)}; expected {list(entry.variable.shape)}"
                )
            self.values[entry.path] = _copy(entry)
            self.values[entry.path].assign(array)


def update_averages(chosen: Selection, handles: Any, decay: float) -> None:
    """Moves the averages behind ``handles`` towards the trained variables, inside a tf.function."""
    for entry, handle in zip(chosen.trained, handles, strict=True):
        dtype = entry.variable.dtype
        average = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        step = tf.constant(1.0 - decay, dtype) * (average - entry.variable.read_value())
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=step)


def _copy(entry: NamedVariable) -> Any:
    return tf.Variable(entry.variable.read_value(), trainable=False, name="average")
