"""Random numbers per example: a pure function of (seed, epoch, index), independent of how a step is split.

The hash is splitmix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, 2014), the finaliser of
java.util.SplittableRandom.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine import tensorflow_private

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def seed_global_generators(seed: int) -> None:
    """Seeds the global generators of Python, NumPy, TensorFlow and Keras, the last only if Keras is loaded."""
    import tensorflow as tf  # here, not above: the ground needs no TensorFlow

    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)


@contextlib.contextmanager
def kept_global_generators() -> Iterator[None]:
    """A scope for running foreign code early: afterwards the generators of Python and NumPy are as they were before it.

    TensorFlow's are as after ``tf.random.set_seed``, if that was called: their state cannot be read.
    """
    import tensorflow as tf

    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if (seed := tensorflow_private.global_seed()) is not None:
            tf.random.set_seed(seed)


def example_seeds(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """Returns the seeds of examples, int32 [B, 2], from the run's seed, the epoch and the examples' index [B]."""
    with np.errstate(over="ignore"):
        key = _mix_numpy(np.uint64(seed % 2**64) + np.uint64(_GOLDEN))
        key = _mix_numpy(key ^ _mix_numpy(np.uint64(epoch) + np.uint64(2 * _GOLDEN % 2**64)))
        mixed = _mix_numpy(key + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return mixed.view(np.int32).reshape(-1, 2)


def uniform(seeds: Any, shape: Sequence[int], *, site: int) -> Any:
    """Draws uniform numbers in [0, 1): float32 [B, *shape], where row i depends only on seeds[i] and the site.

    The seeds are int32 [B, 2], from ``example_seeds``; the shape is static. The site is a number unique to each place
    in the code that draws, which makes the draws independent.
    """
    import tensorflow as tf  # not at the top: this module must be importable without TensorFlow

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
