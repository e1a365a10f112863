"""SGD, momentum, Adam and AdamW on TensorFlow's fused apply kernels; slots keyed by variable path.

An optimizer here is a frozen set of hyperparameters. What it remembers (slots, and Adam's t of each
slot) lives in ``Slots``, which holds exactly the trained variables of the current selection: a
variable that is frozen loses its slots, one that is unfrozen starts with zeros and t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from engine import text
from engine.errors import InputError
from engine.selection import filters
from engine.selection.filters import Filter
from engine.selection.selection import Selection
from engine.selection.variables import ModelVariables

NO_DECAY = filters.group("bias") | filters.group("norm") | filters.group("embedding")


class OptimizerError(InputError):
    """Hyperparameters outside their range, or slots that do not fit."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
        weight_decay: decoupled: each step, variable -= learning_rate * weight_decay * variable.
        decay: which trained variables decay; by default none of the biases, norms and embeddings.
        layer_decay: factor on the learning rate per layer counted from the output (BEiT,
            arXiv:2106.08254): 1 for what follows the last block, d for that block, d**2 below it.
        clip_norm: largest global norm of the selection's gradient; None does not clip.
    """

    weight_decay: float = 0.0
    decay: Filter = ~NO_DECAY
    layer_decay: float | None = None
    clip_norm: float | None = None

    slots: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _check("weight_decay", self.weight_decay, 0.0, math.inf)
        if self.layer_decay is not None:
            _check("layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        if self.clip_norm is not None:
            _check("clip_norm", self.clip_norm, 0.0, math.inf, open_low=True)

    def powers(self, t: np.ndarray) -> np.ndarray:
        """Per-variable numbers that depend on t (steps seen, this one included): float64 [n, k]."""
        return np.zeros((len(t), 0))

    def constants(self) -> tuple[float, ...]:
        """Hyperparameters that ``update`` wants as tensors."""
        return ()

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        """Applies one gradient.

        Args:
            variable: what is updated.
            gradient, rate: in its dtype.
            slots: name -> resource handle.
            powers: a row of ``powers()``.
            constants: ``constants()`` in its dtype.
        """
        raise TypeError(f"{type(self).__name__} must define update()")


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """variable -= learning_rate * gradient (kernel ResourceApplyGradientDescent)."""

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """a = momentum * a + gradient; variable -= learning_rate * a (kernel ResourceApplyMomentum).

    With ``nesterov``: variable -= learning_rate * (gradient + momentum * a).
    """

    momentum: float = 0.9
    nesterov: bool = False

    slots: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("momentum", self.momentum, 0.0, 1.0, open_high=True)

    def constants(self) -> tuple[float, ...]:
        return (self.momentum,)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slots["momentum"],
            lr=rate,
            grad=gradient,
            momentum=constants[0],
            use_nesterov=self.nesterov,
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (arXiv:1412.6980, section 2's second form; kernel ResourceApplyAdam), t kept per variable.

    variable -= learning_rate * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("beta1", self.beta1, 0.0, 1.0, open_high=True)
        _check("beta2", self.beta2, 0.0, 1.0, open_high=True)
        _check("epsilon", self.epsilon, 0.0, math.inf, open_low=True)
        if type(self) is Adam and self.weight_decay:
            raise OptimizerError(
                f"weight_decay={self.weight_decay}: adam has none; adamw decays decoupled, and an L2 term "
                "belongs into the loss's regulariser"
            )

    def powers(self, t: np.ndarray) -> np.ndarray:
        return np.stack([self.beta1 ** t.astype(np.float64), self.beta2 ** t.astype(np.float64)], axis=1)

    def constants(self) -> tuple[float, ...]:
        return (self.beta1, self.beta2, self.epsilon)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        beta1, beta2, epsilon = constants
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots["m"],
            v=slots["v"],
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            grad=gradient,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv:1711.05101), applied before the Adam step."""

    weight_decay: float = 0.01


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}


def by_name(name: str, **hyperparameters: Any) -> Optimizer:
    """An optimizer by its flag name.

    Raises:
        OptimizerError: unknown name, or a hyperparameter that it does not have or not in that range.
    """
    if name not in OPTIMIZERS:
        known = list(OPTIMIZERS)
        raise OptimizerError(f"optimizer={name!r}: known are {', '.join(known)}{text.nearest(name, known)}")
    made = OPTIMIZERS[name]
    has = [entry.name for entry in fields(made)]
    for key in hyperparameters:
        if key not in has:
            raise OptimizerError(f"{key}: the optimizer {name} has no such hyperparameter; it has {', '.join(has)}")
    return made(**hyperparameters)


def apply(
    chosen: Selection,
    optimizer: Optimizer,
    gradients: Sequence[Any],
    *,
    learning_rate: Any,
    handles: Sequence[Sequence[Any]],
    powers: Any,
) -> None:
    """Updates each trained variable of the selection, inside a tf.function.

    Args:
        gradients: one dense tensor per trained variable, in its dtype.
        learning_rate: float64 scalar.
        handles: resource handles of the slots, as ``Slots.handles`` orders them.
        powers: float64 [n, k], as ``Optimizer.powers`` gives them.
    """
    decayed = {e.path for e in chosen.trained if optimizer.weight_decay and optimizer.decay(e)}
    factors = layer_factors(chosen.variables, optimizer.layer_decay)
    width = powers.shape[1]
    # Scalars are made once for all variables that share them: a ViT has hundreds, each op costs time.
    flat: dict[Any, list[Any]] = {}
    rates: dict[Any, tuple[Any, Any]] = {}
    constants: dict[Any, list[Any]] = {}
    for number, (entry, gradient) in enumerate(zip(chosen.trained, gradients, strict=True)):
        variable, dtype, factor = entry.variable, entry.variable.dtype, factors[entry.path]
        if dtype not in flat:
            flat[dtype] = tf.unstack(tf.reshape(tf.cast(powers, dtype), [-1]))
            constants[dtype] = [tf.constant(value, dtype) for value in optimizer.constants()]
        if (factor, dtype) not in rates:
            rate = learning_rate if factor == 1.0 else learning_rate * factor
            rates[factor, dtype] = tf.cast(rate, dtype), tf.cast(rate * optimizer.weight_decay, dtype)
        rate, shrink = rates[factor, dtype]
        if entry.path in decayed:
            tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=variable.read_value() * shrink)
        slots = dict(zip(optimizer.slots, handles[number], strict=True))
        row = flat[dtype][number * width : (number + 1) * width]
        optimizer.update(variable, gradient, rate, slots, row, constants[dtype])


def layer_factors(variables: ModelVariables, decay: float | None) -> dict[str, float]:
    """path -> factor on the learning rate.

    Depth counts blocks where the model has any: 0 before the first, n + 1 after the last of n.
    In a model without blocks each layer with weights is one step of depth, in model order.
    """
    if decay is None:
        return {entry.path: 1.0 for entry in variables}
    depths: dict[str, int] = {}
    if any(entry.block for entry in variables):
        current = 0
        for entry in variables:
            current = entry.block[0] + 1 if entry.block else (0 if current == 0 else entry_count(variables) + 1)
            depths[entry.path] = current
    else:
        order = list(dict.fromkeys(entry.layer for entry in variables))
        depths = {entry.path: order.index(entry.layer) for entry in variables}
    top = max(depths.values())
    return {path: decay ** (top - depth) for path, depth in depths.items()}


def entry_count(variables: ModelVariables) -> int:
    """Number of blocks in the model."""
    return max((entry.block[1] for entry in variables if entry.block), default=0)


def _check(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    above = value > low if open_low else value >= low
    below = value < high if open_high or high == math.inf else value <= high
    if not (above and below and math.isfinite(value)):
        end = "" if high == math.inf else f" and {'below' if open_high else 'at most'} {high:g}"
        raise OptimizerError(f"{name}={value:g}: it must be {'above' if open_low else 'at least'} {low:g}{end}")
