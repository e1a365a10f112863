"""The train op of a graph: clipping, weight decay and layer decay around the optimizers of tf.compat.v1.train.

TensorFlow 1 has none of the three. They are built from its operations here, with the meaning and the order that they
have in the engine: the gradient is clipped by the norm over what trains, then each variable decays, then it is updated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import SessionError
from engine.selection.selection import Selection
from engine.training.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Ftrl,
    Momentum,
    Optimizer,
    Pace,
    RMSProp,
    set_paces,
)

v1 = tf.compat.v1


class TrainOp:
    """The optimizers of a graph, and how fast each trained variable moves.

    An optimizer of tf.compat.v1.train has one learning rate, so with layer decay there is one for each factor.

    Attributes:
        optimizers: the factor on the learning rate -> the optimizer of the variables that have it.

    Args:
        rate: the learning rate, a float64 scalar tensor.
        dtypes: the dtypes of the model's variables.
    """

    def __init__(self, rule: Optimizer, selection: Selection, rate: Any, dtypes: set[Any]) -> None:
        self._rule, self._rate = rule, rate
        paces = set_paces(selection, rule, None)
        self._paces: Mapping[str, Pace] = {e.path: pace for e, pace in zip(selection.trained, paces, strict=True)}
        factors = dict.fromkeys(pace.factor for pace in paces)
        self.optimizers = {f: translate_optimizer(rule, self._rate_at(f), dtypes) for f in factors}

    @property
    def first(self) -> Any:
        """One of the optimizers, for the gradients, which do not depend on the learning rate."""
        return next(iter(self.optimizers.values()))

    def apply(self, pairs: Sequence[tuple[Any, Any]], norm: Any, steps: Any) -> Any:
        """Returns the operation that takes a step with these (gradient, variable), whose global norm is ``norm``."""
        if self._rule.clip_norm is not None:
            # exactly 1 below the limit, as in the engine
            scale = self._rule.clip_norm / tf.maximum(norm, tf.constant(self._rule.clip_norm, norm.dtype))
            pairs = [(gradient * tf.cast(scale, gradient.dtype), variable) for gradient, variable in pairs]
        with tf.control_dependencies([gradient for gradient, _ in pairs] if self._decays else []):
            decayed = [self._decay(variable) for _, variable in pairs if self._pace(variable).decays]
        with tf.control_dependencies(decayed):
            if len(self.optimizers) == 1:
                return self.first.apply_gradients(pairs, global_step=steps, name="train")
            applied = [
                optimizer.apply_gradients([pair for pair in pairs if self._pace(pair[1]).factor == factor])
                for factor, optimizer in self.optimizers.items()
            ]
        with tf.control_dependencies(applied):
            return v1.assign_add(steps, tf.ones([], steps.dtype), name="train").op

    def slots(self, variables: Sequence[Any]) -> list[Any]:
        """Returns the slots of the variables, once ``apply`` has made them."""
        found = [
            optimizer.get_slot(variable, name)
            for name in self.first.get_slot_names()
            for variable in variables
            for optimizer in self.optimizers.values()
        ]
        return [slot for slot in found if slot is not None]

    @property
    def _decays(self) -> bool:
        return any(pace.decays for pace in self._paces.values())

    def _pace(self, variable: Any) -> Pace:
        return self._paces[variable.op.name]

    def _rate_at(self, factor: float) -> Any:
        return self._rate if factor == 1.0 else self._rate * factor

    def _decay(self, variable: Any) -> Any:
        pace = self._pace(variable)
        shrink = tf.cast(self._rate_at(pace.factor) * pace.weight_decay, variable.dtype.base_dtype)
        return v1.assign_sub(variable, variable.read_value() * shrink)


def translate_optimizer(optimizer: Optimizer, rate: Any, dtypes: set[Any]) -> Any:
    """Returns the tf.compat.v1.train optimizer with the same update rule; raises SessionError if there is none.

    Clipping, weight decay and layer decay are not part of it. ``rate`` is the learning rate, a float64 scalar tensor. If
    one of the ``dtypes`` of the variables is float64, hyperparameters are numpy float64, since TF1 keeps Python floats as
    float32, whatever it trains.
    """
    check_form(optimizer)
    n: Callable[[float], Any] = np.float64 if tf.float64 in dtypes else float
    rate = rate if tf.float64 in dtypes else tf.cast(rate, tf.float32)
    o = optimizer
    if isinstance(o, Adam):
        return v1.train.AdamOptimizer(rate, n(o.beta1), n(o.beta2), n(o.epsilon))
    if isinstance(o, Momentum):
        return v1.train.MomentumOptimizer(rate, n(o.momentum), use_nesterov=o.nesterov)
    if isinstance(o, SGD):
        return v1.train.GradientDescentOptimizer(rate)
    if isinstance(o, RMSProp):
        return v1.train.RMSPropOptimizer(rate, n(o.rho), n(o.momentum), n(o.epsilon), centered=o.centered)
    if isinstance(o, Adagrad):
        return v1.train.AdagradOptimizer(rate, o.initial_accumulator)
    if isinstance(o, Adadelta):
        return v1.train.AdadeltaOptimizer(rate, n(o.rho), n(o.epsilon))
    if isinstance(o, Ftrl):
        names = {"l1_regularization_strength": n(o.l1), "l2_regularization_strength": n(o.l2), "beta": n(o.beta)}
        names["l2_shrinkage_regularization_strength"] = n(o.l2_shrinkage)
        return v1.train.FtrlOptimizer(rate, n(o.learning_rate_power), o.initial_accumulator, **names)
    raise SessionError(f"optimizer={type(optimizer).__name__} is not in tf.compat.v1.train")


def check_form(optimizer: Optimizer) -> None:
    """Raises SessionError for a form of an optimizer that only OptimizerV2 or other libraries have."""
    name, theirs = "", dict[str, Any]()  # the optimizer's name in TF1, and what it always has
    if isinstance(optimizer, Adam):
        name, theirs = "AdamOptimizer", {"epsilon_placement": "uncorrected"}
    elif isinstance(optimizer, RMSProp):
        name, theirs = "RMSPropOptimizer", {"epsilon_placement": "inside", "initial_accumulator": 1.0}
    elif isinstance(optimizer, Adagrad):
        name, theirs = "AdagradOptimizer", {"epsilon": 0.0}
    if optimizer.decay_toward != "zero":
        raise SessionError(
            f"decay_toward={optimizer.decay_toward}: graphs of TensorFlow 1 decay toward zero here; leave it out, or train "
            "with the engine"
        )
    for key, value in theirs.items():
        if (given := getattr(optimizer, key)) != value:
            raise SessionError(
                f"{key}={given}: {name} of tf.compat.v1.train always has {value}; leave it out, or train with the engine"
            )
