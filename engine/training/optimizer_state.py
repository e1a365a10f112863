"""The optimizer's state: slots of a selection, each with its own step count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables, NamedVariable
from engine.training.optimizers import Optimizer, OptimizerError


@dataclass
class Slots:
    """Slots of the trained variables by path, and the steps each has seen.

    Attributes:
        values: path -> slot name -> tf.Variable of the variable's shape and dtype.
        t: path -> number of steps applied since the slots were made.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    t: dict[str, int] = field(default_factory=dict)

    def fit(self, chosen: Selection, optimizer: Optimizer) -> None:
        """Makes slots for what trains and has none (zeros, t = 0); drops those of what is frozen."""
        wanted = {entry.path: entry for entry in chosen.trained}
        for path in [p for p in self.t if p not in wanted]:
            del self.t[path]
            self.values.pop(path, None)
        for path, entry in wanted.items():
            have = self.values.get(path, {})
            if path not in self.t or set(have) != set(optimizer.slots):
                self.values[path] = {name: _zeros_like(entry) for name in optimizer.slots}
                self.t[path] = 0

    def bytes(self) -> int:
        return sum(
            slot.shape.num_elements() * slot.dtype.size for slots in self.values.values() for slot in slots.values()
        )

    def handles(self, chosen: Selection) -> list[list[Any]]:
        return [[slot.handle for slot in self.values[entry.path].values()] for entry in chosen.trained]

    def steps(self, chosen: Selection) -> np.ndarray:
        return np.array([self.t[entry.path] for entry in chosen.trained], np.int64)

    def advance(self, chosen: Selection) -> None:
        for entry in chosen.trained:
            self.t[entry.path] += 1

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """``optimizer/<path>/<slot>`` and ``optimizer/<path>/t`` with their values, one at a time."""
        for path, slots in self.values.items():
            for name, slot in slots.items():
                yield f"optimizer/{path}/{name}", slot.numpy()
        for path, t in self.t.items():
            yield f"optimizer/{path}/t", np.asarray(t, np.int64)

    def restore(self, variables: ModelVariables, optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over ``arrays()`` of a model's variables; those without saved slots have none.

        Raises:
            OptimizerError: a slot is missing or has another shape.
        """
        self.values, self.t = {}, {}
        for entry in variables:
            if (t := arrays.get(f"optimizer/{entry.path}/t")) is not None:
                self.take(
                    entry, {name: arrays.get(f"optimizer/{entry.path}/{name}") for name in optimizer.slots}, int(t)
                )

    def take(self, entry: NamedVariable, arrays: Mapping[str, np.ndarray | None], t: int) -> None:
        """Gives one variable these slots (name -> array, in the optimizer's order) and t.

        Raises:
            OptimizerError: one is None or has another shape.
        """
        made = {name: _zeros_like(entry) for name in arrays}
        for name, slot in made.items():
            array = arrays[name]
            if array is None or tuple(array.shape) != tuple(slot.shape):
                found = "nothing" if array is None else f"shape {list(array.shape)}"
                raise OptimizerError(
                    f"optimizer/{entry.path}/{name}: {found} saved, shape {list(slot.shape)} is wanted"
                )
            slot.assign(array)
        self.values[entry.path], self.t[entry.path] = made, t


def _zeros_like(entry: NamedVariable) -> Any:
    return tf.Variable(tf.zeros(entry.variable.shape, entry.variable.dtype), trainable=False, name="slot")
