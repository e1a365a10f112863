"""The paired bootstrap: exact on toy cases, the same in any order, and honest about what a test part can show."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.study import bootstrap
from engine.study.bootstrap import compare


def test_a_toy_case_has_the_quantiles_of_all_its_draws() -> None:
    first, second = np.array([1, 1, 0, 1]), np.array([0, 1, 1, 0])
    every = [np.mean(np.array(chosen)) for chosen in itertools.product(first - second, repeat=4)]  # 256 equal draws
    found = compare(first, second, level=0.8, draws=200_000)
    assert (found.mean, found.low, found.high) == (0.25, *np.quantile(every, [0.1, 0.9]))
    assert (found.examples, found.seeds, found.differing, found.resolved) == (4, 1, 3, False)


def test_the_interval_is_that_of_the_normal_distribution_where_there_are_many_examples() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(20_000) < 0.80, rng.random(20_000) < 0.78
    found = compare(first, second)
    differences = first.astype(float) - second
    half = 1.96 * differences.std() / math.sqrt(20_000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)
    assert (found.low + found.high) / 2 == pytest.approx(found.mean, abs=0.03 * half)
    assert found.resolved
    losses = rng.random(300)
    few = compare(losses, losses + 0.1 + 0.3 * rng.standard_normal(300))
    assert few.resolved
    assert few.mean < 0


def test_pairs_count_and_not_the_two_accuracies() -> None:
    right = np.arange(1000) % 2 == 0
    better = right.copy()
    better[1:60:2] = True  # 30 more, and nothing lost: 0.50 and 0.53 as separate samples would not differ
    assert compare(better, right).resolved
    shuffled = np.random.default_rng(1).permutation(better)
    assert not compare(shuffled, right).resolved


@pytest.mark.parametrize("seeds", [1, 3])
def test_order_exchange_and_doubling_change_what_they_should(seeds: int) -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((seeds, 200)) < 0.8, rng.random((seeds, 200)) < 0.7
    found = compare(first, second, seed=4)
    assert compare(first, second, seed=4) == found
    losses = first + rng.random((seeds, 200))
    assert compare(losses, second, seed=5) != compare(losses, second, seed=4)
    order = rng.permutation(200)
    assert compare(first[:, order], second[:, order], seed=4) == found
    swapped = compare(second, first, seed=4)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert (swapped.resolved, swapped.examples_needed) == (found.resolved, found.examples_needed)
    assert found.low < found.mean < found.high
    wider = compare(first, second, seed=4, level=0.99)
    assert wider.low < found.low < found.high < wider.high
    twice = compare(np.tile(first, 4), np.tile(second, 4), seed=4)
    if seeds == 1:
        assert (twice.high - twice.low) == pytest.approx((found.high - found.low) / 2, rel=0.1)


def test_seeds_that_spread_widen_the_interval_and_more_examples_do_not_help() -> None:
    rng = np.random.default_rng(3)
    gains = np.array([0.06, -0.04, 0.05, -0.01, 0.03])
    second = rng.random((5, 4000)) < 0.7
    first = np.where(rng.random((5, 4000)) < np.abs(gains)[:, None], (gains > 0)[:, None], second)
    found = compare(first, second)
    alone = compare(first[0], second[0])
    assert alone.resolved
    assert not found.resolved
    assert found.examples_needed is None
    per_seed = (first.mean(axis=1) - second.mean(axis=1)).astype(float)
    error = per_seed.std(ddof=1) / math.sqrt(5)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.25)
    assert "only more seeds" in found.describe("full", "last_2")


def test_the_needed_number_of_examples_is_what_it_takes() -> None:
    rng = np.random.default_rng(4)
    pool = rng.choice([1.0, 0.0, -1.0], size=40_000, p=[0.10, 0.82, 0.08])
    some = pool[:400]
    found = compare(some, np.zeros(400))
    assert not found.resolved
    assert found.examples_needed is not None
    needed = 1.96**2 * some.var() / some.mean() ** 2
    assert found.examples_needed == pytest.approx(needed, rel=0.01)
    repeated = np.tile(some, math.ceil(1.2 * needed / 400))
    assert compare(repeated, np.zeros(len(repeated))).resolved
    short = np.tile(some, math.floor(0.8 * needed / 400))
    assert not compare(short, np.zeros(len(short))).resolved
    text = found.describe("last_2", "full")
    assert text.startswith(
        "last_2 and full differ in accuracy by less than 400 test examples can resolve (95% interval "
    )
    assert f"about {found.examples_needed:,} examples would show" in text


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("others", [0, 5000])
def test_a_handful_of_differing_examples_shows_nothing(count: int, others: int) -> None:
    first = np.r_[np.ones(count), np.zeros(others)]
    found = compare(first, np.zeros(count + others))
    assert found.resolved == (count >= 6)  # the sign test: 2 / 2**6 is below 0.05
    assert found.examples_needed is not None
    assert (found.examples_needed <= found.examples) == found.resolved


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for number in range(200):
        values = rng.choice([1.0, 0.0, -1.0], size=300, p=[0.15, 0.75, 0.10])
        found = compare(values, np.zeros(300), draws=1000, seed=number)
        held += found.low <= 0.05 <= found.high
    assert 180 <= held <= 198  # 95% of 200, give or take three standard deviations


def test_no_difference_is_none() -> None:
    right = np.array([True, False, True])
    found = compare(right, right)
    assert (found.mean, found.low, found.high, found.resolved, found.examples_needed) == (0.0, 0.0, 0.0, False, None)
    assert found.describe("a", "b").endswith("+0.0000).")
    balanced = compare([1, 0] * 50, [0, 1] * 50)
    assert (balanced.mean, balanced.resolved, balanced.examples_needed) == (0.0, False, None)


def test_the_table_of_draws_is_filled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    first, second = rng.random((2, 3, 40))
    found = compare(first, second, draws=500)
    monkeypatch.setattr(bootstrap, "_CELLS", 1000)
    in_parts = compare(first, second, draws=500)
    ends = [in_parts.low, in_parts.high]  # products of other sizes may round otherwise, by 1 ulp
    assert ends == pytest.approx([found.low, found.high], rel=1e-13)
    assert dataclasses.replace(in_parts, low=found.low, high=found.high) == found


@pytest.mark.parametrize(
    ("first", "second", "options", "said"),
    [
        ([1, 0], [1, 0, 1], {}, r"shapes \[1, 2\] and \[1, 3\]; expected the same seeds and examples"),
        ([], [], {}, "at least one example"),
        ([["a"]], [["b"]], {}, "expected numbers"),
        ([[[1.0]]], [[[1.0]]], {}, r"expected numbers \[n\] or \[seeds, n\]"),
        ([1.0, np.nan], [1.0, 0.0], {}, "first: the value of example 1 is not finite"),
        ([1.0], [1.0], {"level": 1.0}, "level=1.0: expected a number above 0 and below 1"),
        ([1.0], [1.0], {"draws": 3}, "draws=3: expected a number from 100"),
        ([1.0], [1.0], {"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_compared_is_refused(first: Any, second: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare(first, second, **options)
