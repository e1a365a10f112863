"""The numbers of a study as text for people."""

from __future__ import annotations

MEBI = 2**20
NONE = "–"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return NONE if value is None else f"{value:,.0f}"


def plural(number: float, name: str) -> str:
    """A number with its noun."""
    return f"{count(number)} {name}{'' if number == 1 else 's'}"


def digits(value: float | None, most: int = 3, *, padded: bool = False) -> str:
    """A number with at most so many digits, without an exponent where that is readable; ``padded`` keeps zeros."""
    if value is None:
        return NONE
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.{most - 1}e}"
    return f"{value:,.0f}" if abs(value) >= 10 ** (most - 1) else f"{value:{'#' if padded else ''}.{most}g}"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{digits(seconds)} s"


def quality(value: float | None, *, accuracy: bool) -> str:
    """An accuracy with three decimals, or a loss with four digits."""
    return NONE if value is None else f"{value:.3f}" if accuracy else digits(value, 4)


def percent(part: float) -> str:
    """A share; one above 0 never becomes 0%."""
    return f"{part:.0%}" if part >= 0.01 or part <= 0 else "under 1%"
