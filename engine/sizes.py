"""Sizes in bytes as people write them: 1GiB, 500MB, 4096."""

from __future__ import annotations

import re

from engine.errors import InputError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power, _letter: 1024**_power}


class SizeError(InputError):
    """A text that is no size in bytes."""


def parse_bytes(text: str, *, name: str) -> int:
    """Bytes from a text: a number and a unit (B, KB, MB, GB, TB of 1000; KiB, MiB, GiB, TiB, or K, M, G, T, of 1024).

    Args:
        text: such as ``1GiB``, ``0.5 GB`` or ``4096``; capitals do not matter.
        name: the argument's, for the error.

    Raises:
        SizeError: no number, an unknown unit, or above 2**60.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{0,9})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _UNITS:
        raise SizeError(f"{name}={text!r}: a size is a number and a unit, such as 512MiB, 1GiB, 2GB or 0")
    size = int(float(match.group(1)) * _UNITS[match.group(2)])
    if size > 2**60:
        raise SizeError(f"{name}={text!r}: it is at most {2**30}GiB")
    return size


def format_bytes(size: int) -> str:
    """A size for people: 3 significant digits and a unit of 1024."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}" if value < 999.5 else f"{value:.0f} {units[0]}"
