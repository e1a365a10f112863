"""The optimizers by name, on TensorFlow's fused apply kernels, with slots keyed by variable path.

An optimizer is a frozen set of hyperparameters. Its state (slots, and Adam's t of each variable) is kept in ``Slots``,
for exactly the trained variables of the current selection: a variable that is frozen loses its slots, and one that is
unfrozen starts with new slots and t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from engine import text
from engine.outside_names import is_outside
from engine.training import outside_rules
from engine.training.optimizer_base import (
    START,
    Optimizer,
    OptimizerError,
    check_hyperparameter,
    check_word,
)
from engine.training.rates import Rates
from engine.training.tf1_optimizers import (
    Adadelta,
    Adagrad,
    Ftrl,
    RMSProp,
)

__all__ = [
    "FORMS", "OPTIMIZERS", "SGD", "START", "Adadelta", "Adagrad", "Adam", "AdamW", "Ftrl", "Momentum", "Optimizer", "OptimizerError",
    "Pace", "RMSProp", "apply_gradients", "build_optimizer", "count_blocks", "layer_factors", "set_paces",
]  # fmt: skip

if TYPE_CHECKING:  # hyperparameters can be checked without TensorFlow
    from engine.selection.selection import Selection
    from engine.selection.variables import ModelVariables


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

    fixed_slots: ClassVar[tuple[str, ...]] = ("momentum",)
    moves_other_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("momentum", self.momentum, 0.0, 1.0, open_high=True)

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
    """Adam (arXiv:1412.6980; kernel ResourceApplyAdam), with one t per variable.

    variable -= learning_rate * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon)

    This is the second form in section 2 of the paper, where epsilon is added before the bias correction: the rule of
    tf.compat.v1.train.AdamOptimizer, and of Adam in OptimizerV2 and Keras, whose epsilon is 1e-7 by default. With
    ``epsilon_placement="corrected"``, epsilon is added to the corrected root, as in algorithm 1 of the paper and in
    PyTorch: the same kernel with epsilon * sqrt(1 - beta2**t).

    Example:
        >>> from engine import Adam
        >>> Adam(beta2=0.95).slots
        ('m', 'v')
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epsilon_placement: Literal["uncorrected", "corrected"] = "uncorrected"

    fixed_slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("beta1", self.beta1, 0.0, 1.0, open_high=True)
        check_hyperparameter("beta2", self.beta2, 0.0, 1.0, open_high=True)
        check_hyperparameter("epsilon", self.epsilon, 0.0, math.inf, open_low=True)
        check_word("epsilon_placement", self.epsilon_placement, ("uncorrected", "corrected"))
        if type(self) is Adam and (self.weight_decay or self.decays is not None):
            given = f"decays='{self.decays}'" if self.decays is not None else f"weight_decay={self.weight_decay}"
            raise OptimizerError(
                f"{given}: adam has no weight decay; use adamw, or put an L2 penalty into the regulariser of the loss"
            )

    def powers(self, t: np.ndarray) -> np.ndarray:
        powers = [self.beta1 ** t.astype(np.float64), self.beta2 ** t.astype(np.float64)]
        if self.epsilon_placement == "corrected":
            powers.append(self.epsilon * np.sqrt(1.0 - powers[1]))
        return np.stack(powers, axis=1)

    def constants(self) -> tuple[float, ...]:
        return (self.beta1, self.beta2, self.epsilon)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        given = {"var": variable.handle, "m": slots["m"], "v": slots["v"], "lr": rate, "grad": gradient}
        given |= dict(zip(("beta1", "beta2", "epsilon"), constants, strict=True))
        if self.epsilon_placement == "corrected":
            given["epsilon"] = powers[2]
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


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSProp,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "ftrl": Ftrl,
}
# One text for each set of slots that an optimizer can keep.
FORMS = (
    *("sgd", "momentum", "adam", "adamw", "adagrad", "adadelta", "ftrl", "rmsprop", "rmsprop,centered"),
    *("rmsprop,epsilon_placement=outside", "rmsprop,centered,epsilon_placement=outside"),
)
_FILTERS = ("decay", "decays")  # hyperparameters that a text cannot hold
_NAMES_IN_TENSORFLOW: dict[str, str | dict[str, str]] = {
    "decay": {"rmsprop": "rho"},
    "beta_1": "beta1",
    "beta_2": "beta2",
    "use_nesterov": "nesterov",
    "initial_accumulator_value": "initial_accumulator",
    "l1_regularization_strength": "l1",
    "l2_regularization_strength": "l2",
    "l2_shrinkage_regularization_strength": "l2_shrinkage",
}


def build_optimizer(spec: str, **hyperparameters: Any) -> Optimizer:
    """Builds an optimizer from its name, with options after commas, and from hyperparameters by name.

    The options are the hyperparameters that are numbers, words or switches: ``adagrad``, ``momentum,nesterov`` or
    ``rmsprop,momentum=0.9,epsilon=1.0,centered``. The name may be ``py:module:name``, which is imported. Raises
    OptimizerError if the name, an option or a hyperparameter is not valid, or if one is given twice.

    Example:
        >>> build_optimizer("rmsprop,momentum=0.9,centered", epsilon=1.0).slots
        ('rms', 'mg', 'momentum')
    """
    name, *options = spec.split(",")
    kind: Any = OPTIMIZERS.get(name)
    if is_outside(name):
        outside_rules.check_optimizer_name(spec)
        kind = outside_rules.import_optimizer(spec)
    if kind is None:
        known = list(OPTIMIZERS)
        close = text.nearest(name.lower(), known)
        raise OptimizerError(f"optimizer={text.cut(spec)!r}: expected one of {', '.join(known)}{close}")
    has = {entry.name: entry.default for entry in fields(kind)}
    given = dict(hyperparameters)
    for option in options:
        key, equals, value = option.partition("=")
        about = f"optimizer={text.cut(spec)!r}: `{option}`"
        if key not in has or key in _FILTERS:
            able = [known for known in has if known not in _FILTERS]
            raise OptimizerError(
                f"{about}: expected a hyperparameter of {name}: {', '.join(able)}{text.nearest(key, able)}{_hint(key, name)}"
            )
        if key in given:
            raise OptimizerError(f"{about}: {key} is given twice; give it once")
        given[key] = _read_option(about, has[key], value if equals else None)
    for key in given:
        if key not in has:
            raise OptimizerError(
                f"{key}: the optimizer {name} has no such hyperparameter; it has {', '.join(has)}{_hint(key, name)}"
            )
    if is_outside(name):
        return outside_rules.make_optimizer(spec, kind, given)
    made: Optimizer = kind(**given)
    return made


def _read_option(about: str, default: Any, value: str | None) -> Any:
    """The value of an option, of the type that the hyperparameter has by default; None is for numbers."""
    if isinstance(default, bool):
        switch = {None: True, "true": True, "false": False}.get(value if value is None else value.lower())
        if switch is None:
            raise OptimizerError(f"{about}: expected the word alone, or true or false")
        return switch
    if isinstance(default, str) and value:
        return value
    number = None if value is None else text.parse_number(value)
    if number is None:
        raise OptimizerError(f"{about}: expected {'a word' if isinstance(default, str) else 'a number'} after `=`")
    return number


def _hint(key: str, name: str) -> str:
    """What TensorFlow calls a hyperparameter that has another name here."""
    if key == "learning_rate":
        return "; the learning rate is given separately"
    found = _NAMES_IN_TENSORFLOW.get(key, "")
    if isinstance(found, dict):
        found = found.get(name, "")
    return f"; TensorFlow's {key} is {found} here" if found else ""


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
        slots = dict(zip(optimizer.slots, handles[number], strict=True))
        if pace.decays:
            away = variable.read_value()
            if START in slots:
                away -= tf.raw_ops.ReadVariableOp(resource=slots[START], dtype=dtype)
            tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=away * shrink)
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
