"""Which learning rates are tried."""

from __future__ import annotations

import math

import pytest

from engine.errors import InputError
from engine.study.quality import rates


def test_given_rates_are_sorted_and_auto_gives_none() -> None:
    assert rates.parse_learning_rates("3e-2, 1e-3") == (1e-3, 3e-2)
    assert rates.parse_learning_rates(" auto ") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`` is not a number; expected auto, or rates"),
        ("1e-3,,1e-2", "`` is not a number"),
        ("1e-3;1e-2", "`1e-3;1e-2` is not a number"),
        ("0", "learning_rates=0.0: expected a number above 0"),
        ("-1e-3", "expected a number above 0"),
        ("nan", "expected a number above 0"),
        ("inf", "expected a finite number above 0"),
        ("1e-3,0.001", "0.001 appears twice"),
    ],
)
def test_what_is_not_a_rate_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        rates.parse_learning_rates(text)
    assert message in str(caught.value)


def test_a_range_test_suggests_a_tenth_of_the_rate_with_the_lowest_loss() -> None:
    losses = []

    def train(rate: float) -> float:
        losses.append(rate)
        return 1.0 + abs(math.log10(rate) + 2.0)  # lowest at 1e-2

    found = rates.run_range_test(train)
    assert len(found["learning_rates"]) == len(found["losses"]) <= rates.RANGE_STEPS
    assert found["learning_rates"][0] == rates.LOWEST
    assert found["learning_rates"] == losses[: len(found["learning_rates"])]
    assert 1e-3 <= found["suggested"] <= 3e-3  # smoothing sees the lowest loss a little late


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_range_test_ends_where_the_loss_is_not_finite(bad: float | None) -> None:
    found = rates.run_range_test(lambda rate: 1.0 / (1 + rate) if rate < 1e-3 else bad)
    assert max(found["learning_rates"]) < 1e-3
    assert found["suggested"] < 1e-3
    assert all(map(math.isfinite, found["losses"]))


def test_a_range_test_ends_where_the_loss_has_grown() -> None:
    found = rates.run_range_test(lambda rate: 1.0 if rate < 1e-4 else 100.0)
    assert len(found["learning_rates"]) < rates.RANGE_STEPS


def test_a_network_that_diverges_at_once_gets_the_lowest_rates() -> None:
    found = rates.run_range_test(lambda rate: None)
    assert found == {"learning_rates": [], "losses": [], "suggested": rates.round_rate(rates.LOWEST / 10)}


@pytest.mark.parametrize("rate", [1e-4, 3e-4, 1e-3, 3e-3, 1.0, 3e-7])
def test_neighbours_lie_half_a_power_of_ten_apart_and_lead_back(rate: float) -> None:
    low, middle, high = rates.build_grid(rate)
    assert low < middle == rate < high
    assert 2.9 < middle / low < 3.5
    assert 2.9 < high / middle < 3.5
    assert rates.next_rate(low, up=True) == rates.next_rate(high, up=False) == rate


def test_a_grid_is_extended_where_the_best_rate_lies_at_its_end() -> None:
    grid = rates.build_grid(1e-3)
    assert rates.extend_grid(grid, 1e-3) is None
    assert rates.extend_grid(grid, 3e-3) == 1e-2
    assert rates.extend_grid(grid, 3e-4) == 1e-4
