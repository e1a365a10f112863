"""Randomness that belongs to an example: a pure function of (seed, epoch, index), however a step is split.

The hash is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014),
the finaliser of java.util.SplittableRandom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def example_seeds(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """Seeds of examples: int32 [B, 2] from a run's seed, the epoch and the examples' index [B]."""
    with np.errstate(over="ignore"):
        key = _mix_numpy(np.uint64(seed % 2**64) + np.uint64(_GOLDEN))
        key = _mix_numpy(key ^ _mix_numpy(np.uint64(epoch) + np.uint64(2 * _GOLDEN % 2**64)))
        mixed = _mix_numpy(key + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return mixed.view(np.int32).reshape(-1, 2)


def uniform(seeds: Any, shape: Sequence[int], *, site: int) -> Any:
    """Uniform numbers in [0, 1): float32 [B, *shape], row i a function of seeds[i] and site alone.

    Args:
        seeds: int32 [B, 2], from ``example_seeds``.
        shape: static shape per example.
        site: a number that is different at every place that draws, so that draws are independent.
    """
    import tensorflow as tf  # here, not above: the ground needs no TensorFlow

    count = math.prod(shape)
    key = tf.bitcast(seeds, tf.uint64)  # [B]
    key = _mix(key + tf.constant((site + 1) * _MIX1 % 2**64, tf.uint64))
    positions = tf.cast(tf.range(1, count + 1, dtype=tf.int64), tf.uint64) * tf.constant(_GOLDEN, tf.uint64)
    bits = tf.bitwise.right_shift(_mix(key[:, None] + positions[None, :]), tf.constant(40, tf.uint64))
    numbers = tf.cast(tf.cast(bits, tf.int32), tf.float32) * (2.0**-24)
    return tf.reshape(numbers, [-1, *shape])


def _mix(z: Any) -> Any:
    import tensorflow as tf

    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, tf.constant(shift, tf.uint64)))
        z = z * tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, tf.constant(31, tf.uint64)))


def _mix_numpy(z: Any) -> Any:
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
