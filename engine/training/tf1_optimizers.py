"""The other optimizers of TensorFlow 1, on its fused kernels: RMSProp, Adagrad, Adadelta and Ftrl.

Defaults, first values of slots and bits are those of tf.compat.v1.train. Where OptimizerV2 (tf.keras before Keras 3)
computes something else, the docstring says how to get that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.training.optimizer_base import Optimizer, OptimizerError, check_hyperparameter, check_word


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """RMSProp (kernels ResourceApplyRMSProp and ResourceApplyCenteredRMSProp), as many old image models were trained.

    rms = rho * rms + (1 - rho) * gradient**2
    momentum_slot = momentum * momentum_slot + learning_rate * gradient / sqrt(rms + epsilon)
    variable -= momentum_slot

    With ``centered``, mg = rho * mg + (1 - rho) * gradient is kept too, and the root is that of rms - mg**2 + epsilon.
    ``rho`` is TensorFlow 1's ``decay``. The slot rms starts from ``initial_accumulator``, which is 1 in TensorFlow 1.

    OptimizerV2 adds epsilon to the root instead where momentum is 0, and starts from 0:
    ``epsilon_placement="outside", initial_accumulator=0, epsilon=1e-7``. It then keeps no momentum slot. No kernel of
    TensorFlow computes this form, so it takes several operations, those of OptimizerV2.

    Example:
        >>> from engine import RMSProp
        >>> RMSProp(momentum=0.9, epsilon=1.0).slots, RMSProp(centered=True).slots
        (('rms', 'momentum'), ('rms', 'mg', 'momentum'))
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-10
    centered: bool = False
    epsilon_placement: Literal["inside", "outside"] = "inside"
    initial_accumulator: float = 1.0

    moves_other_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("rho", self.rho, 0.0, 1.0, open_high=True)
        check_hyperparameter("momentum", self.momentum, 0.0, 1.0, open_high=True)
        check_hyperparameter("epsilon", self.epsilon, 0.0, math.inf, open_low=True)
        check_hyperparameter("initial_accumulator", self.initial_accumulator, 0.0, math.inf)
        check_word("epsilon_placement", self.epsilon_placement, ("inside", "outside"))
        if self.epsilon_placement == "outside" and self.momentum:
            raise OptimizerError(
                f"epsilon_placement=outside, momentum={self.momentum:g}: with momentum, OptimizerV2 too adds epsilon inside "
                "the root; leave out epsilon_placement, or momentum"
            )

    @property
    def rule_slots(self) -> tuple[str, ...]:
        return ("rms", *["mg"] * self.centered, *["momentum"] * (self.epsilon_placement == "inside"))

    @property
    def first_values(self) -> Mapping[str, float]:
        return {"rms": self.initial_accumulator}

    def constants(self) -> tuple[float, ...]:
        return (self.rho, self.momentum, self.epsilon)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        if self.epsilon_placement == "outside":
            _apply_outside(variable, gradient, rate, slots, constants)
            return
        given = {"var": variable.handle, "ms": slots["rms"], "mom": slots["momentum"], "lr": rate, "grad": gradient}
        given |= dict(zip(("rho", "momentum", "epsilon"), constants, strict=True))
        if self.centered:
            tf.raw_ops.ResourceApplyCenteredRMSProp(**given, mg=slots["mg"])
        else:
            tf.raw_ops.ResourceApplyRMSProp(**given)


def _apply_outside(variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], constants: Any) -> None:
    """RMSProp with epsilon added to the root, by the operations of OptimizerV2 in their order."""
    import tensorflow as tf

    rho, _, epsilon = constants

    def mix(slot: str, new: Any) -> Any:
        old = tf.raw_ops.ReadVariableOp(resource=slots[slot], dtype=gradient.dtype)
        value = rho * old + (1.0 - rho) * new
        tf.raw_ops.AssignVariableOp(resource=slots[slot], value=value)
        return value

    under = mix("rms", tf.square(gradient))
    if "mg" in slots:
        under -= tf.square(mix("mg", gradient))
    variable.assign(variable.read_value() - rate * gradient / (tf.sqrt(under) + epsilon))


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al., JMLR 12, 2011; kernel ResourceApplyAdagrad): rates that fall with what a weight has seen.

    accumulator += gradient**2; variable -= learning_rate * gradient / sqrt(accumulator)

    The accumulator starts from ``initial_accumulator``. OptimizerV2 and Keras also add an epsilon to the root, by default
    1e-7 (kernel ResourceApplyAdagradV2): ``epsilon=1e-7``.

    Example:
        >>> from engine import Adagrad
        >>> Adagrad().slots, Adagrad().initial_accumulator
        (('accumulator',), 0.1)
    """

    initial_accumulator: float = 0.1
    epsilon: float = 0.0

    fixed_slots: ClassVar[tuple[str, ...]] = ("accumulator",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("epsilon", self.epsilon, 0.0, math.inf)
        # Without an epsilon, an accumulator of 0 and a gradient of 0 would make a variable NaN.
        none = self.epsilon == 0.0
        check_hyperparameter("initial_accumulator", self.initial_accumulator, 0.0, math.inf, open_low=none)

    @property
    def first_values(self) -> Mapping[str, float]:
        return {"accumulator": self.initial_accumulator}

    def constants(self) -> tuple[float, ...]:
        return (self.epsilon,)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        given = {"var": variable.handle, "accum": slots["accumulator"], "lr": rate, "grad": gradient}
        if self.epsilon:
            tf.raw_ops.ResourceApplyAdagradV2(**given, epsilon=constants[0])
        else:
            tf.raw_ops.ResourceApplyAdagrad(**given)


@dataclass(frozen=True, kw_only=True)
class Adadelta(Optimizer):
    """Adadelta (arXiv:1212.5701; kernel ResourceApplyAdadelta), whose paper has a learning rate of 1.

    accum = rho * accum + (1 - rho) * gradient**2
    update = sqrt(accum_update + epsilon) / sqrt(accum + epsilon) * gradient
    accum_update = rho * accum_update + (1 - rho) * update**2
    variable -= learning_rate * update

    Example:
        >>> from engine import Adadelta
        >>> Adadelta(rho=0.9).slots
        ('accum', 'accum_update')
    """

    rho: float = 0.95
    epsilon: float = 1e-8

    fixed_slots: ClassVar[tuple[str, ...]] = ("accum", "accum_update")
    moves_other_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("rho", self.rho, 0.0, 1.0, open_high=True)
        check_hyperparameter("epsilon", self.epsilon, 0.0, math.inf, open_low=True)

    def constants(self) -> tuple[float, ...]:
        return (self.rho, self.epsilon)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        given = {"var": variable.handle, "lr": rate, "rho": constants[0], "epsilon": constants[1], "grad": gradient}
        tf.raw_ops.ResourceApplyAdadelta(**given, accum=slots["accum"], accum_update=slots["accum_update"])


@dataclass(frozen=True, kw_only=True)
class Ftrl(Optimizer):
    """Ftrl-proximal (McMahan et al., KDD 2013; kernels ResourceApplyFtrl and ResourceApplyFtrlV2).

    new = accumulator + gradient**2
    linear += gradient - (new**-p - accumulator**-p) / learning_rate * variable, where p is ``learning_rate_power``
    variable = (sign(linear) * l1 - linear) / (new**-p / learning_rate + 2 * (l2 + beta / (2 * learning_rate))) where
    |linear| > l1, and else 0

    With ``l2_shrinkage``, the gradient in ``linear`` gets 2 * l2_shrinkage * variable. A variable is computed from its
    slots alone, so new slots soon forget the variable's value, and another learning rate rescales it: continue
    from the slots of an old checkpoint, and keep the learning rate constant.

    Example:
        >>> from engine import Ftrl
        >>> Ftrl(l1=0.01).slots
        ('accumulator', 'linear')
    """

    learning_rate_power: float = -0.5
    initial_accumulator: float = 0.1
    l1: float = 0.0
    l2: float = 0.0
    l2_shrinkage: float = 0.0
    beta: float = 0.0

    fixed_slots: ClassVar[tuple[str, ...]] = ("accumulator", "linear")
    note: ClassVar[str] = (
        "ftrl computes a variable from its slots alone, so a variable whose slots start anew loses most of its value in "
        "the first steps"
    )
    constant_rate: ClassVar[bool] = True
    moves_other_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyperparameter("learning_rate_power", self.learning_rate_power, -math.inf, 0.0)
        for name in ("initial_accumulator", "l1", "l2", "l2_shrinkage", "beta"):
            check_hyperparameter(name, getattr(self, name), 0.0, math.inf)
        if self.weight_decay or self.decays is not None:
            given = f"decays='{self.decays}'" if self.decays is not None else f"weight_decay={self.weight_decay:g}"
            raise OptimizerError(
                f"{given}: ftrl has no decoupled weight decay, because it computes each variable from its slots; use l2 or "
                "l2_shrinkage"
            )

    @property
    def first_values(self) -> Mapping[str, float]:
        return {"accumulator": self.initial_accumulator}

    def checked_for(self, learning_rate: float) -> Optimizer:
        if not learning_rate > 0:
            raise OptimizerError(f"learning_rate={learning_rate:g}: ftrl divides by it; expected a number above 0")
        return self

    def constants(self) -> tuple[float, ...]:
        return (self.l1, self.l2, self.learning_rate_power, self.l2_shrinkage, self.beta)

    def update(
        self, variable: Any, gradient: Any, rate: Any, slots: Mapping[str, Any], powers: Any, constants: Any
    ) -> None:
        import tensorflow as tf

        l1, l2, power, shrinkage, beta = constants
        l2 = l2 + beta / (2.0 * rate) if self.beta else l2
        given = {"var": variable.handle, "accum": slots["accumulator"], "linear": slots["linear"], "grad": gradient}
        given |= {"lr": rate, "l1": l1, "l2": l2, "lr_power": power}
        if self.l2_shrinkage:
            tf.raw_ops.ResourceApplyFtrlV2(**given, l2_shrinkage=shrinkage)
        else:
            tf.raw_ops.ResourceApplyFtrl(**given)
