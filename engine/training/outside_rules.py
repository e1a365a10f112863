"""Optimizers of the user's own: ``py:module:name``, imported when a run needs them, and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine import outside_names
from engine.errors import InputError
from engine.text import cut
from engine.training.optimizer_base import START, Optimizer, OptimizerError


def check_optimizer_name(text: str) -> None:
    """Raises OptimizerError unless a text is ``py:module:name``, perhaps with options; nothing is imported."""
    module, _, name = text.partition(",")[0].removeprefix(outside_names.PREFIX).partition(":")
    if not module or not name:
        raise OptimizerError(f"optimizer={cut(text)!r} is not a valid optimizer; expected py:module:name")


def import_optimizer(spec: str) -> type[Optimizer] | Optimizer:
    """Imports ``py:module:name``, options left out: a subclass of ``Optimizer``, or an object of one.

    Raises OptimizerError if it cannot be imported, or is anything else.
    """
    name = spec.partition(",")[0].removeprefix(outside_names.PREFIX)
    try:
        found = outside_names.import_named("optimizer", spec, name=name, what="optimizer")
    except InputError as error:
        raise OptimizerError(str(error)) from None
    if isinstance(found, type) and not issubclass(found, Optimizer):
        raise OptimizerError(
            f"optimizer={spec!r}: the class {found.__name__} is not an optimizer of this library; {_EXPECTED}"
        )
    if not isinstance(found, (type, Optimizer)):
        raise OptimizerError(f"optimizer={spec!r}: it is {outside_names.describe_kind(found)}; {_EXPECTED}")
    made: type[Optimizer] | Optimizer = found
    return made


_EXPECTED = (
    "expected a subclass of engine.training.optimizers.Optimizer, whose slots belong to variables by their paths "
    "(docs/extending.md)"
)


def make_optimizer(spec: str, found: type[Optimizer] | Optimizer, given: Mapping[str, Any]) -> Optimizer:
    """The optimizer with these hyperparameters, of what ``import_optimizer`` returned.

    Raises OptimizerError if it cannot be made of them, or what is made does not keep the contract of ``Optimizer``.
    """
    try:
        if isinstance(found, Optimizer):
            made: Any = outside_names.call_named("optimizer", spec, dataclasses.replace, found, **given)
        else:
            made = outside_names.call_named("optimizer", spec, found, **given)
    except InputError as error:
        raise OptimizerError(str(error)) from None
    check_declared(spec, made)
    optimizer: Optimizer = made
    return optimizer


def check_declared(spec: str, optimizer: Optimizer) -> None:
    """Raises OptimizerError unless what an optimizer says of itself, its slots and numbers, can be used."""
    about = f"optimizer={spec!r}: {type(optimizer).__name__}"
    if type(optimizer).update is Optimizer.update:
        raise OptimizerError(f"{about} has no method update(variable, gradient, rate, slots, powers, constants)")
    slots = optimizer.rule_slots
    wrong = [name for name in slots if not isinstance(name, str) or not name or "/" in name or name in ("t", START)]
    if isinstance(slots, str) or wrong or len(set(slots)) < len(tuple(slots)):
        raise OptimizerError(
            f"{about} has the slots {slots!r}; expected a tuple of different names without `/`, and not t or {START}"
        )
    if unknown := set(optimizer.first_values) - set(slots):
        raise OptimizerError(f"{about}: first_values has {min(unknown)!r}, which is not one of its slots, {slots!r}")
    powers = optimizer.powers(np.array([1, 2], np.int64))
    if not isinstance(powers, np.ndarray) or powers.ndim != 2 or len(powers) != 2 or powers.dtype.kind != "f":
        raise OptimizerError(
            f"{about}: powers(t) returned {cut(repr(powers))} for 2 variables; expected float64 [2, k]"
        )
    constants = optimizer.constants()
    if not isinstance(constants, tuple) or not all(isinstance(each, (int, float)) for each in constants):
        raise OptimizerError(f"{about}: constants() returned {cut(repr(constants))}; expected a tuple of numbers")
