"""Axes of a drawing: where a value lies between the ends, and which values are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_POWERS = 8  # ticks of a logarithmic axis
_LOG_FROM = 30  # the ratio of the largest to the smallest time above which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """A range of values, those in it that are marked, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, tick: float) -> str:
        """The text of a tick, with as many decimals as distinguish the ticks."""
        if self.log:
            if 1e4 <= tick < 1e12:
                size, letter = next((s, letter) for s, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if tick >= s)
                return f"{tick / size:g}{letter}"
            return f"{tick:g}"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def linear_axis(values: Iterable[float], *, zero: bool = False, most: int = 6) -> Axis:
    """Builds an axis with ticks at multiples of 1, 2 or 5 times a power of ten; ``zero`` makes it begin at 0."""
    found = list(values) or [0.0, 1.0]
    low, high = (min(0.0, *found) if zero else min(found)), max(found)
    if high - low <= 1e-9 * max(abs(high), abs(low)):  # a single value: leave some space around it
        low, high = (low, low + (abs(low) or 1.0)) if zero else (low - (abs(low) or 1) / 20, low + (abs(low) or 1) / 20)
    margin = (high - low) / 16
    low, high = low if zero else low - margin, high + margin
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, tuple(ticks))


def time_axis(values: Iterable[float]) -> Axis:
    """Builds an axis for durations, logarithmic if the largest is more than 30 times the smallest."""
    found = [value for value in values if value > 0]
    if not found or max(found) <= _LOG_FROM * min(found):
        return linear_axis(found, zero=True)
    return log_axis(found)


def log_axis(values: Iterable[float]) -> Axis:
    """Builds a logarithmic axis for values above 0."""
    found = list(values) or [1.0]
    low, high = min(found) / 1.25, max(found) * 1.25
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = [t for power in powers for factor in factors if low <= (t := factor * 10.0**power) <= high]
    if len(ticks) < 2:  # nearly a single value
        ticks = [t for t in linear_axis(found, most=3).ticks if low <= t <= high]
    if len(ticks) > _MOST_POWERS:
        ticks = ticks[:: math.ceil(len(ticks) / _MOST_POWERS)]
    return Axis(low, high, tuple(ticks), log=True)


def choose_unit(longest: float) -> tuple[float, str]:
    """The unit that suits durations up to ``longest`` seconds: its length in seconds, and its name."""
    return next(
        ((size, name) for size, name in ((3600, "hours"), (60, "minutes")) if longest > 3 * size), (1, "seconds")
    )
