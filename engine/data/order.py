"""The order of examples: stateless permutations, so any position of any epoch is computed, not stored."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_FIXED = (0x46726F73, 0x746C696E)  # the key of permutations that no seed changes


def permutation(seed: int, epoch: int, count: int, *, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries [start:stop] of the permutation of range(count) that belongs to (seed, epoch): int64.

    Source: ``tf.random.experimental.index_shuffle``, a keyed block cipher on the index.
    """
    wanted = np.arange(start, count if stop is None else min(stop, count), dtype=np.int64)
    if not len(wanted):  # the kernel refuses an empty vector
        return wanted
    key = np.array([seed & 0x7FFFFFFF, epoch], np.int32)
    return tf.random.experimental.index_shuffle(wanted, seed=key, max_index=np.int64(count - 1)).numpy()


def fixed_permutation(count: int) -> np.ndarray:
    """A permutation of range(count) that depends on nothing else."""
    return permutation(_FIXED[0], _FIXED[1], count)
