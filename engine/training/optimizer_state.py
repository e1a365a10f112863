"""The optimizer's state: the slots of the trained variables, each with its own step count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables, NamedVariable
from engine.training.optimizers import START, Optimizer, OptimizerError


@dataclass
class Slots:
    """The slots of the trained variables by path, and the number of updates each has seen.

    Attributes:
        values: by path and slot name, a tf.Variable of the variable's shape and dtype.
        t: by path, the number of updates applied since the slots were created.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    t: dict[str, int] = field(default_factory=dict)

    def fit(self, chosen: Selection, optimizer: Optimizer) -> None:
        """Creates the missing slots of trained variables (new, t = 0), and drops those of frozen ones."""
        wanted = {entry.path: entry for entry in chosen.trained}
        for path in [p for p in self.t if p not in wanted]:
            del self.t[path]
            self.values.pop(path, None)
        for path, entry in wanted.items():
            have = self.values.get(path, {})
            if path not in self.t or set(have) != set(optimizer.slots):
                first = optimizer.first_values
                self.values[path] = {
                    name: copy_variable(entry) if name == START else _make_slot(entry, first.get(name, 0.0))
                    for name in optimizer.slots
                }
                self.t[path] = 0

    def bytes(self) -> int:
        slots = (slot for each in self.values.values() for slot in each.values())
        return sum(slot.shape.num_elements() * slot.dtype.size for slot in slots)

    def variables(self, chosen: Selection) -> list[list[Any]]:
        """The slots of each trained variable."""
        return [list(self.values[entry.path].values()) for entry in chosen.trained]

    def steps(self, chosen: Selection) -> np.ndarray:
        return np.array([self.t[entry.path] for entry in chosen.trained], np.int64)

    def advance(self, chosen: Selection) -> None:
        for entry in chosen.trained:
            self.t[entry.path] += 1

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names ``optimizer/<path>/<slot>`` and ``optimizer/<path>/t`` with their values."""
        for path, slots in self.values.items():
            for name, slot in slots.items():
                yield f"optimizer/{path}/{name}", slot.numpy()
        for path, t in self.t.items():
            yield f"optimizer/{path}/t", np.asarray(t, np.int64)

    def restore(self, variables: ModelVariables, optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores saved ``arrays()``; variables without saved slots get none. The errors are those of ``take``."""
        self.values, self.t = {}, {}
        for entry in variables:
            if (t := arrays.get(f"optimizer/{entry.path}/t")) is not None:
                saved = {name: arrays.get(f"optimizer/{entry.path}/{name}") for name in optimizer.slots}
                self.take(entry, saved, int(t))

    def take(self, entry: NamedVariable, arrays: Mapping[str, np.ndarray | None], t: int) -> None:
        """Sets a variable's slots (in the optimizer's order) and t; OptimizerError: a slot is None or unfit."""
        slots = {name: _make_slot(entry, 0.0) for name in arrays}
        for name, slot in slots.items():
            array = arrays[name]
            if array is None or tuple(array.shape) != tuple(slot.shape):
                found = "the slot was not saved" if array is None else f"the saved shape is {list(array.shape)}"
                raise OptimizerError(f"optimizer/{entry.path}/{name}: {found}; expected shape {list(slot.shape)}")
            slot.assign(array)
        self.values[entry.path], self.t[entry.path] = slots, t


def copy_variable(entry: NamedVariable) -> Any:
    """A slot with the value that the variable has now."""
    return tf.Variable(entry.variable.read_value(), trainable=False, name="slot")


def _make_slot(entry: NamedVariable, value: float) -> Any:
    variable = entry.variable
    first = (
        tf.fill(variable.shape, tf.constant(value, variable.dtype))
        if value
        else tf.zeros(variable.shape, variable.dtype)
    )
    return tf.Variable(first, trainable=False, name="slot")
