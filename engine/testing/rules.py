"""The test kits of optimizers and schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.selection.selection import select
from engine.testing.contract import calling, demand, same_bits
from engine.training.losses import Loss
from engine.training.optimizers import Optimizer
from engine.training.outside_rules import check_declared
from engine.training.outside_schedules import check_pure
from engine.training.step import TrainStep

_RATE = 0.125


def check_schedule(schedule: Callable[[int, int], Any], steps: int = 1000) -> None:
    """Checks a schedule, a function of (step, number of steps) that returns a factor on the learning rate.

    Args:
        schedule: the function, as for ``--schedule=py:module:name``.
        steps: the number of steps of a phase that it is tried for; a phase of 1 step is tried too.

    Raises:
        ScheduleError: it returns anything but finite numbers of at least 0, or another number the second time.

    Example:
        >>> from engine.testing import check_schedule
        >>> check_schedule(lambda step, total: 1 - step / total)
    """
    for total in (1, steps):
        check_pure("check_schedule", schedule, total)


def check_optimizer(optimizer: Optimizer | type[Optimizer]) -> None:
    """Checks an optimizer: what it says of itself, that a step changes its variable and slots alone, and that it resumes.

    Args:
        optimizer: a subclass of ``engine.training.optimizers.Optimizer``, or an object of one.

    Raises:
        OptimizerError: what it says of its slots or numbers cannot be used.
        ContractError: an update breaks a rule of the contract.

    Example:
        >>> from engine import AdamW
        >>> from engine.testing import check_optimizer
        >>> check_optimizer(AdamW(weight_decay=0.01))
    """
    made = optimizer() if isinstance(optimizer, type) else optimizer
    check_declared("check_optimizer", made)
    about = type(made).__name__
    with calling(about):
        whole = _Trained(made)
        first = whole.values()
        whole.train(2)
        between, arrays, state = whole.values(), whole.arrays(), whole.step.state()
        whole.train(2, start=2)
    after = whole.values()
    demand(
        same_bits(after["other/kernel"], first["other/kernel"]),
        f"{about}: a step changed a variable that does not train; update must write its own variable and slots alone",
    )
    for path in ("head/kernel", "head/bias"):
        demand(
            not same_bits(first[path], between[path]),
            f"{about}: two steps left {path} as it was; update must move its variable",
        )
        demand(np.isfinite(after[path]).all(), f"{about}: after four steps, {path} is not finite")
    with calling(about):
        resumed = _Trained(made)
        resumed.assign(between)
        resumed.step.restore(select(resumed.model, "@all").variables, state, arrays)
        resumed.train(2, start=2)
    for path, value in resumed.values().items():
        demand(
            same_bits(value, after[path]),
            f"{about}: resumed from its slots after two steps, {path} ends with other bits; whatever an update remembers must "
            "be in its slots, or follow from t in powers(t)",
        )


class _Layer(tf.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        rng = np.random.default_rng(len(shape))
        self.kernel = tf.Variable(rng.standard_normal(shape), dtype=tf.float32)
        self.bias = tf.Variable(tf.zeros(shape[-1:]))


class _Model(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.head = _Layer((3, 3)), _Layer((3, 2))

    def __call__(self, x: Any) -> Any:
        return (x @ self.other.kernel + self.other.bias) @ self.head.kernel + self.head.bias


class _Trained:
    """A model of two layers, of which the upper one trains with an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.model = _Model()
        self._chosen = select(self.model, "head/.*")

        def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
            return Loss(terms={"mse": (tf.reduce_sum(tf.square(self.model(batch["x"]) - 1.0), axis=1), None)})

        self.step = TrainStep(loss_fn, optimizer)

    def train(self, steps: int, *, start: int = 0) -> None:
        for number in range(start, start + steps):
            x = np.random.default_rng(number).standard_normal((4, 3)).astype(np.float32)
            self.step(self._chosen, {"x": tf.constant(x)}, learning_rate=_RATE / (1 + number))

    def values(self) -> dict[str, np.ndarray]:
        return {entry.path: entry.variable.numpy() for entry in self._chosen.variables}

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        for entry in self._chosen.variables:
            entry.variable.assign(values[entry.path])

    def arrays(self) -> dict[str, np.ndarray]:
        return dict(self.step.arrays())
