"""Axes of a drawing: where a value lies between its ends, and which numbers stand beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_LOG_FROM = 30  # largest over smallest time, above which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """A range of values.

    Attributes:
        low, high: its ends.
        ticks: values to be marked, within the ends.
        log: whether equal distances are equal ratios.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, tick: float) -> str:
        """A tick in words: as many decimals as tell the ticks apart."""
        if self.log:
            return f"{tick:g}" if tick < 1e5 else f"{tick:.0e}"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def linear(values: Iterable[float], *, zero: bool = False, most: int = 6) -> Axis:
    """An axis with ticks at 1, 2 or 5 times a power of ten; ``zero``: it begins there."""
    found = list(values) or [0.0, 1.0]
    low, high = (min(0.0, *found) if zero else min(found)), max(found)
    if high - low <= 1e-9 * max(abs(high), abs(low)):  # one value: some room around it
        low, high = (low, low + (abs(low) or 1.0)) if zero else (low - (abs(low) or 1) / 20, low + (abs(low) or 1) / 20)
    room = (high - low) / 16
    low, high = low if zero else low - room, high + room
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, tuple(ticks))


def times(values: Iterable[float]) -> Axis:
    """An axis for durations: logarithmic where the largest is more than 30 times the smallest."""
    found = [value for value in values if value > 0]
    if not found or max(found) <= _LOG_FROM * min(found):
        return linear(found, zero=True)
    low, high = min(found) / 1.25, max(found) * 1.25
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return Axis(low, high, tuple(t for t in ticks if low <= t <= high), log=True)


def unit(longest: float) -> tuple[float, str]:
    """Seconds in, and name of, the unit that suits durations up to ``longest`` seconds."""
    return next(
        ((size, name) for size, name in ((3600, "hours"), (60, "minutes")) if longest > 3 * size), (1, "seconds")
    )
