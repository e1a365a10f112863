"""Which learning rates are tried: those that are given, or a grid around a range test.

A range test trains with a rate that grows from step to step and looks where the loss falls (Smith: Cyclical Learning Rates
for Training Neural Networks, arXiv:1506.01186). The rate at which the smoothed loss is lowest is already too high for a
whole run, since from there on the loss grows; the grid therefore has that rate divided by 3, by 10 and by 30. If the best rate
lies at an end of the grid, the optimum may lie beyond it, and the search goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import InputError, check_range
from engine.text import cut

AUTO = "auto"
RANGE_STEPS = 24  # of a range test
LOWEST, HIGHEST = 1e-6, 1.0  # the first and the last rate of a range test
EXTENSIONS = 2  # rates that are tried beyond an end of the grid, at most
_SMOOTHING = 0.7  # of the running mean of the loss
_WORSE = 2.0  # times the lowest smoothed loss: then the test ends
_NICE = (1.0, 3.0)  # the rates of a grid are these times a power of ten


def parse_learning_rates(text: str) -> tuple[float, ...]:
    """Reads ``auto``, which gives none, or rates separated by commas, which are sorted.

    Raises InputError if one is not a number above 0, or appears twice.

    Example:
        >>> parse_learning_rates("1e-2, 1e-3"), parse_learning_rates("auto")
        ((0.001, 0.01), ())
    """
    if text.strip() == AUTO:
        return ()
    found: list[float] = []
    for word in text.split(","):
        try:
            rate = float(word)
        except ValueError:
            raise InputError(
                f"learning_rates={cut(text)!r}: `{cut(word.strip())}` is not a number; expected {AUTO}, or rates such as "
                "1e-2,1e-3,1e-4"
            ) from None
        check_range("learning_rates", rate, above=0)
        if rate in found:
            raise InputError(f"learning_rates={cut(text)!r}: {rate:g} appears twice")
        found.append(rate)
    return tuple(sorted(found))


def run_range_test(train: Callable[[float], float | None]) -> dict[str, Any]:
    """Trains with growing rates; ``train`` does a step with a rate and returns its loss before the update, or None if that
    is not finite.

    Returns:
        ``learning_rates``, the smoothed ``losses`` after each of them, and the ``suggested`` middle of a grid.
    """
    rates = [LOWEST * (HIGHEST / LOWEST) ** (number / (RANGE_STEPS - 1)) for number in range(RANGE_STEPS)]
    tried: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, rate in enumerate(rates):
        loss = train(rate)
        if loss is None or not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed = mean / (1 - _SMOOTHING ** (number + 1))
        tried.append(rate)
        losses.append(smoothed)
        if smoothed > _WORSE * min(losses):
            break
    best = tried[min(range(len(losses)), key=lambda number: losses[number])] if losses else LOWEST
    return {"learning_rates": tried, "losses": losses, "suggested": round_rate(best / 10)}


def build_grid(suggested: float) -> tuple[float, ...]:
    """The first rates of a search: half a power of ten below the suggestion, the suggestion, and as much above it."""
    return next_rate(suggested, up=False), suggested, next_rate(suggested, up=True)


def extend_grid(rates: Sequence[float], best: float) -> float | None:
    """The rate to be tried beyond the end of the grid where the best one lies; None if it lies between others."""
    if best == max(rates):
        return next_rate(best, up=True)
    return next_rate(best, up=False) if best == min(rates) else None


def round_rate(rate: float) -> float:
    """The nearest of 1 and 3 times a power of ten, in proportion.

    Example:
        >>> round_rate(0.0021), round_rate(0.9e-4)
        (0.003, 0.0001)
    """
    power = math.floor(math.log10(rate))
    choices = [float(f"{nice:g}e{exponent}") for exponent in (power, power + 1) for nice in _NICE]
    return min(choices, key=lambda choice: abs(math.log(choice / rate)))


def next_rate(rate: float, *, up: bool) -> float:
    """The next higher or lower of 1 and 3 times a power of ten."""
    return round_rate(rate * (10**0.5 if up else 10**-0.5))
