"""Numbers of a study as people read them."""

from __future__ import annotations

from typing import Any

MEBI = 2**20
NONE = "–"


def count(value: float | None) -> str:
    """224,650."""
    return NONE if value is None else f"{value:,.0f}"


def plural(number: float, name: str) -> str:
    """1 row, 2 rows."""
    return f"{count(number)} {name}{'' if number == 1 else 's'}"


def digits(value: float | None, most: int = 3, *, padded: bool = False) -> str:
    """A number with so many significant digits (``padded``: also zeros), and no exponent where it can be read without."""
    if value is None:
        return NONE
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.{most - 1}e}"
    return f"{value:,.0f}" if abs(value) >= 10 ** (most - 1) else f"{value:{'#' if padded else ''}.{most}g}"


def duration(seconds: float) -> str:
    """9.3 s, 4.2 min, 1.5 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{digits(seconds)} s"


def quality(value: float | None, *, accuracy: bool) -> str:
    """An accuracy with three decimals, a loss with four digits."""
    return NONE if value is None else f"{value:.3f}" if accuracy else digits(value, 4)


def percent(part: float) -> str:
    """A share; what is not nothing is not 0%."""
    return f"{part:.0%}" if part >= 0.01 or part <= 0 else "under 1%"


def listed(names: Any, *, most: int = 6) -> str:
    """a, b and c; or the first of them and how many more."""
    words = [str(name) for name in names]
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
