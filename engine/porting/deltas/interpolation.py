"""Weights between a base and what was trained from it: w = (1 - ratio) * base + ratio * tuned (WiSE-FT, arXiv:2109.01903).

Such weights often keep more of what the base knew, at the same accuracy on what was trained, and they cost nothing to use.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.errors import InputError, check_range
from engine.text import cut, join_some, parse_number

RATIOS = tuple(number / 10 for number in range(11))


def parse_ratios(text: str) -> tuple[float, ...]:
    """Reads ``auto`` (0, 0.1, ... 1) or numbers from 0 to 1, separated by commas.

    Example:
        >>> parse_ratios("0.5,1")
        (0.5, 1.0)
    """
    if text.strip() == "auto":
        return RATIOS
    found = []
    for word in text.split(","):
        ratio = parse_number(word.strip())
        if ratio is None or not 0 <= ratio <= 1:
            raise InputError(
                f"interpolate={cut(text)!r}: `{cut(word.strip())}`: expected auto, or numbers from 0 to 1, such as 0.5,0.7"
            )
        if ratio in found:
            raise InputError(f"interpolate={cut(text)!r}: {ratio:g} appears twice")
        found.append(ratio)
    return tuple(found)


def interpolate(base: Mapping[str, np.ndarray], tuned: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """Returns the weights at a ratio from 0, the base, to 1, what was tuned; at both ends bit for bit.

    The sum is computed in float64 and rounded once to the dtype of ``tuned``. Whole numbers, such as counters, are not between
    two values: they are those of ``tuned``.

    Args:
        base, tuned: arrays by path, of the same shapes; paths that only the base has are left out.

    Raises:
        InputError: the ratio is out of range, or the base lacks an array or has it in another shape.

    Example:
        >>> base, tuned = {"w": np.array([0.0, 4.0])}, {"w": np.array([1.0, 2.0])}
        >>> interpolate(base, tuned, 0.25)["w"].tolist()
        [0.25, 3.5]
    """
    check_range("ratio", ratio, 0, 1)
    if wrong := [path for path, value in tuned.items() if path not in base or base[path].shape != value.shape]:
        raise InputError(f"base: it lacks {join_some(wrong)}, or has another shape there")
    return {path: _between(base[path], value, ratio) for path, value in tuned.items()}


def _between(base: np.ndarray, tuned: np.ndarray, ratio: float) -> np.ndarray:
    if ratio == 1.0 or not np.can_cast(tuned.dtype, np.float64) or tuned.dtype.kind in "biu":
        return tuned
    if ratio == 0.0:
        return base.astype(tuned.dtype, copy=False)
    found: np.ndarray = ((1.0 - ratio) * base.astype(np.float64) + ratio * tuned.astype(np.float64)).astype(tuned.dtype)
    return found
