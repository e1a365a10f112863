"""Order: every epoch a permutation, any piece of which can be had without the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.order import fixed_permutation, permutation


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 1, -5, 2**40])
def test_every_epoch_is_a_permutation(count: int, seed: int) -> None:
    for epoch in (0, 1, 1000):
        found = permutation(seed, epoch, count)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(np.sort(found), np.arange(count))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), count=st.integers(1, 300), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 100))
def test_a_slice_equals_that_piece_of_the_whole(data: st.DataObject, count: int, seed: int, epoch: int) -> None:
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count + 10))
    whole = permutation(seed, epoch, count)
    np.testing.assert_array_equal(permutation(seed, epoch, count, start=start, stop=stop), whole[start:stop])
    np.testing.assert_array_equal(permutation(seed, epoch, count, start=start), whole[start:])


def test_an_empty_slice_is_empty() -> None:
    assert permutation(0, 0, 5, start=5).shape == (0,)
    assert permutation(0, 0, 5, start=2, stop=2).shape == (0,)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_same_seed_and_epoch_give_the_same_order() -> None:
    np.testing.assert_array_equal(permutation(3, 4, 100), permutation(3, 4, 100))


def test_neighbours_do_not_stay_together() -> None:
    """Of n random neighbours, n * 2/n = 2 are expected to differ by one; 20 would be a weak shuffle."""
    for epoch in range(5):
        assert (np.abs(np.diff(permutation(0, epoch, 2000))) == 1).sum() < 20


def test_the_fixed_permutation_is_one_and_never_changes() -> None:
    np.testing.assert_array_equal(np.sort(fixed_permutation(100)), np.arange(100))
    # the held-out part of every data set hangs on it: other numbers here would move examples between parts
    assert fixed_permutation(10).tolist() == [8, 5, 4, 7, 3, 9, 6, 2, 1, 0]
