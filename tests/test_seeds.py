"""Seeds: randomness that is a function of (seed, epoch, index) and of nothing else."""

from __future__ import annotations

import math
import random
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import seeds
from engine.seeds import example_seeds, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9


def mix(z: int) -> int:
    """The finaliser of splitmix64 on Python's own integers."""
    z = ((z ^ (z >> 30)) * MIX1) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_seeds(seed: int, epoch: int, index: list[int]) -> np.ndarray:
    key = mix((seed + GOLDEN) & MASK)
    key = mix(key ^ mix((epoch + 2 * GOLDEN) & MASK))
    mixed = [mix((key + (i + 1) * GOLDEN) & MASK) for i in index]
    return np.array(mixed, np.uint64).view(np.int32).reshape(-1, 2)


def reference_uniform(rows: np.ndarray, count: int, site: int) -> np.ndarray:
    keys = [int(row.view(np.uint64)[0]) for row in np.ascontiguousarray(rows)]
    keys = [mix((key + (site + 1) * MIX1) & MASK) for key in keys]
    return np.array([[(mix((key + n * GOLDEN) & MASK) >> 40) / 2**24 for n in range(1, count + 1)] for key in keys])


def test_the_mix_is_the_published_splitmix64() -> None:
    # The first outputs of the generator with state 0 are mix(GOLDEN), mix(2 * GOLDEN), ...; these
    # two are the reference implementation's (prng.di.unimi.it/splitmix64.c).
    assert mix(GOLDEN) == 0xE220A8397B1DCDAF
    assert mix(2 * GOLDEN & MASK) == 0x6E789E6AA1B965F4
    assert int(seeds._mix_numpy(np.array([GOLDEN], np.uint64))[0]) == 0xE220A8397B1DCDAF


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(-(2**63), 2**64),
    epoch=st.integers(0, 2**40),
    index=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
)
def test_example_seeds_equal_a_reference_on_python_integers(seed: int, epoch: int, index: list[int]) -> None:
    found = example_seeds(seed, epoch, np.array(index))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, reference_seeds(seed, epoch, index))


@pytest.mark.parametrize("site", [0, 1, 7, 1 << 20])
def test_uniform_equals_a_reference_on_python_integers(site: int) -> None:
    rows = example_seeds(3, 1, np.arange(4))
    drawn = uniform(rows, [2, 3], site=site).numpy()
    assert drawn.shape == (4, 2, 3)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn.reshape(4, 6), reference_uniform(rows, 6, site))  # 24 bits: exact in float32


def test_a_compiled_draw_equals_an_eager_one() -> None:
    rows = example_seeds(0, 0, np.arange(3))
    compiled = tf.function(lambda s: uniform(s, [5], site=2), autograph=False)
    np.testing.assert_array_equal(compiled(tf.constant(rows)), uniform(rows, [5], site=2))


def test_no_two_examples_of_a_few_epochs_share_a_seed() -> None:
    rows = np.concatenate([example_seeds(s, e, np.arange(5000)) for s in (0, 1, -1) for e in range(3)])
    # 45,000 draws from 2**64: a collision by chance has probability 6e-11
    assert len(np.unique(np.ascontiguousarray(rows).view(np.uint64))) == len(rows)


def test_numbers_lie_in_zero_to_one_without_one() -> None:
    drawn = uniform(example_seeds(1, 2, np.arange(1000)), [200], site=0).numpy()
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    top = uniform(np.array([[-1, -1]], np.int32), [1], site=0)
    assert 0.0 <= float(top[0, 0]) < 1.0


def test_a_row_does_not_depend_on_the_batch_it_is_in() -> None:
    whole = example_seeds(5, 3, np.arange(10))
    drawn = uniform(whole, [3, 2], site=4).numpy()
    chosen = [7, 0, 3]
    np.testing.assert_array_equal(example_seeds(5, 3, np.array(chosen)), whole[chosen])
    np.testing.assert_array_equal(uniform(whole[chosen], [3, 2], site=4), drawn[chosen])
    np.testing.assert_array_equal(uniform(whole[7:8], [3, 2], site=4)[0], drawn[7])


def test_an_empty_batch_draws_nothing() -> None:
    assert example_seeds(0, 0, np.arange(0)).shape == (0, 2)
    assert uniform(example_seeds(0, 0, np.arange(0)), [3], site=0).shape == (0, 3)


def test_a_scalar_per_example_is_the_first_number_of_a_vector() -> None:
    rows = example_seeds(0, 0, np.arange(4))
    np.testing.assert_array_equal(uniform(rows, [], site=1), uniform(rows, [3], site=1)[:, 0])


def test_mean_variance_and_bins_are_those_of_uniform_numbers() -> None:
    count = 400_000
    drawn = uniform(example_seeds(9, 0, np.arange(2000)), [200], site=0).numpy().astype(np.float64).ravel()
    # five standard deviations of each estimate: sqrt(1/12/n), sqrt(1/180/n), and of a bin's count
    assert abs(drawn.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count)
    assert abs(drawn.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    bins = np.bincount((drawn * 16).astype(int), minlength=16)
    assert np.abs(bins - count / 16).max() < 5 * math.sqrt(count * 15 / 256)


@pytest.mark.parametrize(
    "other",
    [
        lambda: uniform(example_seeds(0, 0, np.arange(1000)), [100], site=1),
        lambda: uniform(example_seeds(1, 0, np.arange(1000)), [100], site=0),
        lambda: uniform(example_seeds(0, 1, np.arange(1000)), [100], site=0),
        lambda: uniform(example_seeds(0, 0, np.arange(1, 1001)), [100], site=0),
        lambda: np.roll(uniform(example_seeds(0, 0, np.arange(1000)), [100], site=0), 1, axis=1),
    ],
    ids=["site", "seed", "epoch", "index", "position"],
)
def test_draws_that_differ_in_one_thing_are_uncorrelated(other: object) -> None:
    one = np.asarray(uniform(example_seeds(0, 0, np.arange(1000)), [100], site=0), np.float64).ravel()
    two = np.asarray(other(), np.float64).ravel()  # type: ignore[operator]
    # the correlation of n independent pairs has standard deviation 1/sqrt(n); five of them
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(len(one))


@pytest.mark.parametrize("loaded", [True, False], ids=["Keras is loaded", "Keras is not loaded"])
def test_global_generators_start_as_keras_starts_them(monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    def draw() -> list[float]:
        numbers = [random.random(), np.random.rand(), tf.random.uniform([])]
        return [float(number) for number in (*numbers, *([keras.random.uniform(())] if loaded else []))]

    keras.utils.set_random_seed(5)
    expected = draw()
    if not loaded:
        monkeypatch.delitem(sys.modules, "keras")
    seeds.seed_global_generators(5)
    assert draw() == expected
