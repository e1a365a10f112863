"""The one base of all errors that a user's input can cause."""

from __future__ import annotations

import math


class InputError(ValueError):
    """What was given is wrong. The message names it, its value, the rule, and the nearest valid thing."""


def check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises InputError unless a value lies between ``least`` and ``most``, both included; None is not given.

    Args:
        name: of the argument or flag, for the message.

    Example:
        >>> check_range("keep", 0, 1)
        Traceback (most recent call last):
        engine.errors.InputError: keep=0: expected a number of at least 1
    """
    if value is None or (math.isfinite(value) and least <= value <= most):
        return
    limits = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
    raise InputError(f"{name}={value}: expected a number {limits}")
