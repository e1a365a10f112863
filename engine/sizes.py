"""Reads and writes sizes in bytes, and bandwidths in bits, as people do: 1GiB, 500MB, 4096, 10Gbit."""

from __future__ import annotations

import re

from engine.errors import InputError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power, _letter: 1024**_power}


class SizeError(InputError):
    """A text is not a valid size in bytes, or not a valid bandwidth."""


def parse_bytes(text: str, *, name: str) -> int:
    """Converts a text such as ``1GiB``, ``0.5 GB`` or ``4096``, in upper or lower case, to a number of bytes.

    Units are B; KB, MB, GB and TB (powers of 1000); and KiB, MiB, GiB and TiB, or K, M, G and T (powers of 1024).
    A SizeError names the argument ``name`` if the text is anything else, or the size exceeds 2**60.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{0,9})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _UNITS:
        raise SizeError(f"{name}={text!r}: expected a number and a unit, such as 512MiB, 1GiB, 2GB or 0")
    size = int(float(match.group(1)) * _UNITS[match.group(2)])
    if size > 2**60:
        raise SizeError(f"{name}={text!r}: expected at most {2**30}GiB")
    return size


def format_bytes(size: int) -> str:
    """Formats a size for people, with 3 significant digits and a binary unit."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}" if value < 999.5 else f"{value:.0f} {units[0]}"


def parse_bandwidth(text: str, *, name: str) -> float:
    """Converts a text such as ``10Gbit``, ``2.5 Gbit/s`` or ``100Mbps``, in upper or lower case, to bytes per second.

    Units are bits with a prefix k, M, G or T (powers of 1000), as for the links of a network. A SizeError names the argument
    ``name`` if the text is anything else, or the bandwidth is 0.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?)\s*([kmgt]?)(bit(?:/s)?|bps|b/s)", text.strip(), re.IGNORECASE)
    number, prefix, unit = match.groups() if match else ("0", "", "")
    in_bytes = len(unit) == 3 and unit[0] == "B" and unit.lower() != "bit"
    if match is None or not float(number) or in_bytes:
        said = (
            f"bits; that is {8 * float(number):g}{prefix}bit" if in_bytes else "bits, such as 1Gbit, 10Gbit or 100Mbit"
        )
        raise SizeError(f"{name}={text!r}: expected {said}")
    return float(number) * 1000 ** " kmgt".index(prefix.lower() or " ") / 8
