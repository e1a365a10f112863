"""SGD, momentum, Adam and AdamW on TensorFlow's fused apply kernels, with slots keyed by variable path.

An optimizer is a frozen set of hyperparameters. Its state (slots, and Adam's t of each variable) is kept in ``Slots``,
for exactly the trained variables of the current selection: a variable that is frozen loses its slots, and one that is
unfrozen starts with zeros and t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from engine import text
from engine.errors import InputError
from engine.selection import filters
from engine.selection.filters import Filter
from engine.training.rates import Rates

if TYPE_CHECKING:  # hyperparameters can be checked without TensorFlow
    from engine.selection.selection import Selection
    from engine.selection.variables import ModelVariables

NO_DECAY = filters.group("bias") | filters.group("norm") | filters.group("embedding")


class OptimizerError(InputError):
    """An optimizer or hyperparameter is unknown or out of range, or saved slots do not fit."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The hyperparameters that all optimizers share. The learning rate is an argument of each step.

    Attributes:
        weight_decay: decoupled weight decay: in each step, variable -= learning_rate * weight_decay * variable.
        decay: the trained variables that decay; by default all except biases, norms and embeddings.
        decays: weight decays by filter (``parse_rates(text, name="decays")``), instead of ``weight_decay``; what decays at
            all is what ``decay`` says.
        layer_decay: the factor d on the learning rate per layer, counted from the output (BEiT, arXiv:2106.08254): 1
            after the last block, d in the last block, d**2 in the one below it.
        clip_norm: the largest global norm of the gradient of the trained variables; None does not clip.
    """

    weight_decay: float = 0.0
    decay: Filter = ~NO_DECAY
    decays: Rates | None = None
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
            slots, powers: the resource handles of its slots, by name, and its row of ``powers()``.
        """
        raise TypeError(f"{type(self).__name__} must define update()")


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent: variable -= learning_rate * gradient (kernel ResourceApplyGradientDescent).

    Example:
        >>> from engine import SGD
        >>> SGD(clip_norm=1.0).slots
        ()
    """

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """SGD with momentum: a = momentum * a + gradient; variable -= learning_rate * a (kernel ResourceApplyMomentum).

    With ``nesterov``: variable -= learning_rate * (gradient + momentum * a).

    Example:
        >>> from engine import Momentum
        >>> Momentum(momentum=0.95, nesterov=True).slots
        ('momentum',)
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
        import tensorflow as tf

        given = {"var": variable.handle, "accum": slots["momentum"], "lr": rate, "grad": gradient}
        tf.raw_ops.ResourceApplyMomentum(**given, momentum=constants[0], use_nesterov=self.nesterov)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (arXiv:1412.6980, the second form in section 2; kernel ResourceApplyAdam), with one t per variable.

    variable -= learning_rate * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon)

    Example:
        >>> from engine import Adam
        >>> Adam(beta2=0.95).slots
        ('m', 'v')
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
        if type(self) is Adam and (self.weight_decay or self.decays is not None):
            given = f"decays='{self.decays}'" if self.decays is not None else f"weight_decay={self.weight_decay}"
            raise OptimizerError(
                f"{given}: adam has no weight decay; use adamw, or put an L2 penalty into the regulariser of the loss"
            )

    def powers(self, t: np.ndarray) -> np.ndarray:
        return np.stack([self.beta1 ** t.astype(np.float64), self.beta2 ** t.astype(np.float64)], axis=1)

    def constants(self) -> tuple[float, ...]:
        return (self.beta1, self.beta2, self.epsilon)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        given = {"var": variable.handle, "m": slots["m"], "v": slots["v"], "lr": rate, "grad": gradient}
        given |= dict(zip(("beta1", "beta2", "epsilon"), constants, strict=True))
        tf.raw_ops.ResourceApplyAdam(**given, beta1_power=powers[0], beta2_power=powers[1])


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv:1711.05101), which is applied before the Adam update.

    Example:
        >>> from engine import AdamW, group
        >>> optimizer = AdamW(weight_decay=0.05, decay=group("kernel"), layer_decay=0.75)
        >>> optimizer.weight_decay, optimizer.beta1
        (0.05, 0.9)
    """

    weight_decay: float = 0.01


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}


def build_optimizer(name: str, **hyperparameters: Any) -> Optimizer:
    """Builds sgd, momentum, adam or adamw; raises OptimizerError if the name or a hyperparameter is not valid."""
    if name not in OPTIMIZERS:
        known = list(OPTIMIZERS)
        raise OptimizerError(f"optimizer={name!r}: expected one of {', '.join(known)}{text.nearest(name, known)}")
    kind = OPTIMIZERS[name]
    has = [entry.name for entry in fields(kind)]
    for key in hyperparameters:
        if key not in has:
            raise OptimizerError(f"{key}: the optimizer {name} has no such hyperparameter; it has {', '.join(has)}")
    return kind(**hyperparameters)


class Pace(NamedTuple):
    """How fast a trained variable moves.

    Attributes:
        rule: the number of the rule of ``rates`` that gives its learning rate; None takes that of the step.
        factor: the factor of ``layer_decay`` on the latter; a rule's rate is taken as it is.
        weight_decay, decays: its weight decay, and whether it decays.
    """

    rule: int | None
    factor: float
    weight_decay: float
    decays: bool


def set_paces(chosen: Selection, optimizer: Optimizer, rates: Rates | None) -> list[Pace]:
    """Decides how fast each trained variable moves; RateError if a rule of ``rates`` or ``decays`` decides nothing."""
    decaying = [optimizer.decay(entry) for entry in chosen.trained]
    if rates is not None:
        rates.check(chosen.trained)
    if optimizer.decays is not None:
        optimizer.decays.check([e for e, decays in zip(chosen.trained, decaying, strict=True) if decays])
    factors = layer_factors(chosen.variables, optimizer.layer_decay)
    found = []
    for entry, decays in zip(chosen.trained, decaying, strict=True):
        rule = None if rates is None else rates.deciding(entry)
        own = None if optimizer.decays is None else optimizer.decays.deciding(entry)
        decay = optimizer.weight_decay if optimizer.decays is None or own is None else optimizer.decays.values[own]
        found.append(Pace(rule, factors[entry.path] if rule is None else 1.0, decay, bool(decays and decay)))
    return found


def apply_gradients(
    chosen: Selection,
    optimizer: Optimizer,
    gradients: Sequence[Any],
    *,
    learning_rate: Any,
    paces: Sequence[Pace],
    handles: Sequence[Sequence[Any]],
    powers: Any,
) -> None:
    """Updates each trained variable of a selection, inside a tf.function.

    Args:
        gradients: one dense tensor per trained variable, in its dtype.
        learning_rate: a float64 scalar; or a vector, where the rules of ``paces`` have theirs after that of the step.
        paces: the result of ``set_paces``.
        handles, powers: the results of ``Slots.handles`` and ``Optimizer.powers``.
    """
    import tensorflow as tf

    width = powers.shape[1]
    given = tf.unstack(learning_rate) if learning_rate.shape.rank else [learning_rate]
    # Scalars are shared between variables where possible: a ViT has hundreds, and each op costs time.
    flat: dict[Any, list[Any]] = {}
    rates: dict[Any, tuple[Any, Any]] = {}
    constants: dict[Any, list[Any]] = {}
    for number, (entry, gradient, pace) in enumerate(zip(chosen.trained, gradients, paces, strict=True)):
        variable, dtype = entry.variable, entry.variable.dtype
        if dtype not in flat:
            flat[dtype] = tf.unstack(tf.reshape(tf.cast(powers, dtype), [-1]))
            constants[dtype] = [tf.constant(value, dtype) for value in optimizer.constants()]
        key = (pace.rule, pace.factor, pace.weight_decay, dtype)
        if key not in rates:
            rate = given[0 if pace.rule is None else pace.rule + 1]
            rate = rate if pace.factor == 1.0 else rate * pace.factor
            rates[key] = tf.cast(rate, dtype), tf.cast(rate * pace.weight_decay, dtype)
        rate, shrink = rates[key]
        if pace.decays:
            tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=variable.read_value() * shrink)
        slots = dict(zip(optimizer.slots, handles[number], strict=True))
        row = flat[dtype][number * width : (number + 1) * width]
        optimizer.update(variable, gradient, rate, slots, row, constants[dtype])


def layer_factors(variables: ModelVariables, decay: float | None) -> dict[str, float]:
    """Returns the factor on the learning rate of each variable, by path.

    In a model with n blocks, the depth is 0 before the first block, 1 to n in the blocks and n + 1 after the last one.
    In a model without blocks, the depth counts the layers with weights, in model order.
    """
    if decay is None:
        return {entry.path: 1.0 for entry in variables}
    depths: dict[str, int] = {}
    if any(entry.block for entry in variables):
        current = 0
        for entry in variables:
            current = entry.block[0] + 1 if entry.block else (0 if current == 0 else count_blocks(variables) + 1)
            depths[entry.path] = current
    else:
        order = list(dict.fromkeys(entry.layer for entry in variables))
        depths = {entry.path: order.index(entry.layer) for entry in variables}
    top = max(depths.values())
    return {path: decay ** (top - depth) for path, depth in depths.items()}


def count_blocks(variables: ModelVariables) -> int:
    """Returns the number of blocks in the model."""
    return max((entry.block[1] for entry in variables if entry.block), default=0)


def _check(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    above = value > low if open_low else value >= low
    below = value < high if open_high or high == math.inf else value <= high
    if not (above and below and math.isfinite(value)):
        end = "" if high == math.inf else f" and {'below' if open_high else 'at most'} {high:g}"
        start = f"{'above' if open_low else 'of at least'} {low:g}"
        raise OptimizerError(f"{name}={value:g}: expected a number {start}{end}")
