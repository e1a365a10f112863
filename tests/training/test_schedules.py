"""Schedules: exact values at their ends, and what cannot be read."""

from __future__ import annotations

import itertools

import pytest

from engine.training.schedules import KINDS, Schedule, ScheduleError, parse


def test_constant_is_one_everywhere() -> None:
    assert {Schedule().factor(step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_starts_at_one(kind: str) -> None:
    assert Schedule(kind).factor(0, 100) == 1.0
    assert Schedule(kind).factor(0, 1) == 1.0


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.5), ("linear", 0.5), ("exponential", 0.1)])
def test_the_middle_has_its_exact_value(kind: str, middle: float) -> None:
    assert Schedule(kind).factor(50, 100) == pytest.approx(middle, rel=1e-15)


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.0), ("linear", 0.0), ("exponential", 0.01), ("constant", 1.0)])
def test_the_step_after_the_last_has_the_end_value_and_later_ones_keep_it(kind: str, end: float) -> None:
    for step in (100, 101, 1000):
        assert Schedule(kind).factor(step, 100) == end


@pytest.mark.parametrize(("kind", "last"), [("linear", 0.01), ("exponential", 0.01**0.99)])
def test_the_last_step_still_trains(kind: str, last: float) -> None:
    assert Schedule(kind).factor(99, 100) == pytest.approx(last, rel=1e-13)
    assert Schedule("cosine").factor(99, 100) > 0.0


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_the_factor_only_falls(kind: str, warmup: int) -> None:
    factors = [Schedule(kind, warmup).factor(step, 50) for step in range(warmup, 51)]
    assert factors[0] == 1.0
    assert all(b < a for a, b in itertools.pairwise(factors))


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_rises_in_equal_steps_and_never_starts_at_zero(kind: str) -> None:
    schedule = Schedule(kind, warmup=4)
    assert [schedule.factor(step, 20) for step in range(5)] == [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]


def test_a_warm_up_as_long_as_the_phase_never_divides_by_zero() -> None:
    assert [Schedule("cosine", warmup=3).factor(step, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert Schedule("cosine", warmup=9).factor(2, 3) == 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_text_reads_back_as_the_same_schedule(kind: str) -> None:
    for schedule in (Schedule(kind), Schedule(kind, 12)):
        assert parse(str(schedule)) == schedule
    assert parse(f" {kind} , warmup=0 ") == Schedule(kind, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "expected one of constant, cosine, linear, exponential; nearest: cosine"),
        ("", "expected one of"),
        ("Cosine", "expected one of"),
        ("cosine,warmup", "`warmup` is not a valid option"),
        ("cosine,warmup=-1", "`warmup=-1` is not a valid option"),
        ("cosine,warmup=1.5", "`warmup=1.5` is not a valid option"),
        ("cosine,warmup=1e3", "`warmup=1e3` is not a valid option"),
        ("cosine,cooldown=3", "`cooldown=3` is not a valid option"),
        ("cosine,", "`` is not a valid option"),
        ("cosine,warmup=9999999999", "is not a valid option"),
        ("cosine,warmup=1,warmup=2", "expected at most one option"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)
