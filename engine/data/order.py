"""The order of examples: stateless permutations, so any position of any epoch can be computed without storing it."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.data.part import DataError

_FIXED = (0x46726F73, 0x746C696E)  # the key of permutations that do not depend on a seed


def permutation(seed: int, epoch: int, count: int, *, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns the entries [start:stop], int64, of the permutation of range(count) for a seed and an epoch.

    It is computed by ``tf.random.experimental.index_shuffle``, a keyed block cipher on the index.
    """
    import tensorflow as tf

    wanted = np.arange(start, count if stop is None else min(stop, count), dtype=np.int64)
    if not len(wanted):  # the kernel rejects an empty vector
        return wanted
    key = np.array([seed & 0x7FFFFFFF, epoch], np.int32)
    return tf.random.experimental.index_shuffle(wanted, seed=key, max_index=np.int64(count - 1)).numpy()


def fixed_permutation(count: int) -> np.ndarray:
    """Returns a permutation of range(count) that depends only on ``count``."""
    return permutation(_FIXED[0], _FIXED[1], count)


def check_count(name: str, value: Any) -> None:
    """Raises DataError unless a value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DataError(f"{name}={value!r}: expected a whole number")
