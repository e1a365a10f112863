"""What every optimizer is: hyperparameters, the slots that it keeps for a variable, and one update of one variable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from engine.errors import InputError
from engine.selection import filters
from engine.selection.filters import Filter
from engine.text import join_some, nearest
from engine.training.rates import Rates

START = "start"  # the slot that holds what a variable decays toward
NO_DECAY = filters.group("bias") | filters.group("norm") | filters.group("embedding")
NO_DECAY |= filters.Group("ssf", optional=True)


class OptimizerError(InputError):
    """An optimizer or hyperparameter is unknown or out of range, or saved slots do not fit."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The hyperparameters that all optimizers share. The learning rate is an argument of each step.

    Attributes:
        weight_decay: decoupled weight decay: in each step, variable -= learning_rate * weight_decay * variable.
        decay: the trained variables that decay; by default all except biases, norms, embeddings, and the scales and
            shifts of adapters.
        decays: weight decays by filter (``parse_rates(text, name="decays")``), instead of ``weight_decay``; what decays at
            all is what ``decay`` says.
        decay_toward: "zero", or "start": variable -= learning_rate * weight_decay * (variable - start), where start is the
            value that the variable had when it began to train, which a slot keeps (L2-SP, arXiv:1802.01483).
        layer_decay: the factor d on the learning rate per layer, counted from the output (BEiT, arXiv:2106.08254): 1
            after the last block, d in the last block, d**2 in the one below it.
        clip_norm: the largest global norm of the gradient of the trained variables; None does not clip.
    """

    weight_decay: float = 0.0
    decay: Filter = ~NO_DECAY
    decays: Rates | None = None
    decay_toward: Literal["zero", "start"] = "zero"
    layer_decay: float | None = None
    clip_norm: float | None = None

    fixed_slots: ClassVar[tuple[str, ...]] = ()
    # What a run says about the optimizer, and whether a learning rate that changes would rescale the variables.
    note: ClassVar[str] = ""
    constant_rate: ClassVar[bool] = False
    # Whether a gradient of zeros moves a variable otherwise than the rule of TensorFlow 1 for rows without a gradient.
    moves_other_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_hyperparameter("weight_decay", self.weight_decay, 0.0, math.inf)
        check_word("decay_toward", self.decay_toward, ("zero", "start"))
        if self.layer_decay is not None:
            check_hyperparameter("layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        if self.clip_norm is not None:
            check_hyperparameter("clip_norm", self.clip_norm, 0.0, math.inf, open_low=True)

    @property
    def rule_slots(self) -> tuple[str, ...]:
        """The names of the slots that the update of a variable reads and writes."""
        return self.fixed_slots

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots of each variable: those of the rule, and what it decays toward if that is not zero."""
        return (*self.rule_slots, *[START] * (self.decay_toward == "start"))

    @property
    def first_values(self) -> Mapping[str, float]:
        """Slot -> the value that all its elements start from, for slots that do not start from 0."""
        return {}

    def describe(self) -> str:
        """The hyperparameters that this kind of optimizer has besides those that all share, such as ``rho=0.9``."""
        shared = {entry.name for entry in fields(Optimizer)}
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in shared}
        return ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in own.items()
        )

    def note_rows(self, paths: Sequence[str]) -> tuple[str, ...]:
        """A sentence on variables of which a step reads some rows, such as embeddings, if there is anything to say."""
        if not paths or not self.moves_other_rows:
            return ()
        return (
            f"{type(self).__name__.lower()} also updates the rows that a step does not look up, by a gradient of 0 "
            f"({join_some(paths)}); the optimizers of TensorFlow 1 leave such rows and their slots as they are",
        )

    def checked_for(self, learning_rate: float) -> Optimizer:
        """Returns the optimizer itself; raises OptimizerError if it cannot take a step with this learning rate."""
        return self

    def powers(self, t: np.ndarray) -> np.ndarray:
        """Returns the numbers per variable that depend on t (its updates, including this one): float64 [n, k]."""
        return np.zeros((len(t), 0))

    def constants(self) -> tuple[float, ...]:
        """Returns the hyperparameters that ``update`` needs as tensors."""
        return ()

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        """Updates one variable.

        Args:
            gradient, rate, constants: its gradient, its learning rate and ``constants()``, in its dtype.
            slots, powers: the resource handles of its slots, by name (``read_slot``, ``write_slot``), and its row of
                ``powers()``.
        """
        raise TypeError(f"{type(self).__name__} must define update()")


def read_slot(slot: Any, variable: Any) -> Any:
    """The value of a slot, from the handle that ``Optimizer.update`` gets: a tensor like the variable."""
    import tensorflow as tf

    return tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=slot, dtype=variable.dtype), variable.shape)


def write_slot(slot: Any, value: Any) -> None:
    """Gives a slot a new value, in ``Optimizer.update``."""
    import tensorflow as tf

    tf.raw_ops.AssignVariableOp(resource=slot, value=value)


def check_hyperparameter(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raises OptimizerError unless the value is a finite number from ``low`` to ``high``, without the open ends."""
    above = value > low if open_low else value >= low
    below = value < high if open_high or high == math.inf else value <= high
    if not (above and below and math.isfinite(value)):
        limits = []
        if low != -math.inf:
            limits.append(f"{'above' if open_low else 'of at least'} {low:g}")
        if high != math.inf:
            limits.append(f"{'below' if open_high else 'at most'} {high:g}")
        raise OptimizerError(f"{name}={value:g}: expected a number {' and '.join(limits)}")


def check_word(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises OptimizerError unless the value is one of the words."""
    if value not in known:
        raise OptimizerError(f"{name}={value!r}: expected {' or '.join(known)}{nearest(str(value), known)}")
