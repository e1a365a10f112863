"""Schedules: exact values at their ends, against Keras' own schedules, and what cannot be read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.training.schedules import KINDS, Schedule, ScheduleError, parse

# A schedule of each kind that decays to its end within the phase.
FALLING = ("cosine", "linear", "exponential", "polynomial,power=2")
EVERY = (
    *("constant", *FALLING, "step,at=13:50,factor=0.3", "step,at=13", "exponential,rate=0.96,steps=7"),
    *(
        "exponential,rate=0.5,steps=20,staircase",
        "cosine,end=0.001",
        "linear,end=1e-05",
        "polynomial,power=0.5,end=0.01",
    ),
)


def test_every_kind_is_tried() -> None:
    assert {text.split(",")[0] for text in EVERY} == set(KINDS)


def test_constant_is_one_everywhere() -> None:
    assert {Schedule().factor_at(step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("text", EVERY)
def test_every_schedule_starts_at_one(text: str) -> None:
    assert parse(text).factor_at(0, 100, learning_rate=0.1) == 1.0
    assert parse(text).factor_at(0, 1, learning_rate=0.1) == 1.0


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.5), ("linear", 0.5), ("exponential", 0.1)])
def test_the_middle_has_its_exact_value(kind: str, middle: float) -> None:
    assert Schedule(kind).factor_at(50, 100) == pytest.approx(middle, rel=1e-15)


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.0), ("linear", 0.0), ("exponential", 0.01), ("constant", 1.0)])
def test_the_step_after_the_last_has_the_end_value_and_later_ones_keep_it(kind: str, end: float) -> None:
    for step in (100, 101, 1000):
        assert Schedule(kind).factor_at(step, 100) == end


@pytest.mark.parametrize(("kind", "last"), [("linear", 0.01), ("exponential", 0.01**0.99)])
def test_the_last_step_still_trains(kind: str, last: float) -> None:
    assert Schedule(kind).factor_at(99, 100) == pytest.approx(last, rel=1e-13)
    assert Schedule("cosine").factor_at(99, 100) > 0.0


@pytest.mark.parametrize("text", FALLING)
@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_the_factor_only_falls(text: str, warmup: int) -> None:
    schedule = parse(f"{text},warmup={warmup}")
    factors = [schedule.factor_at(step, 50) for step in range(warmup, 51)]
    assert factors[0] == 1.0
    assert all(b < a for a, b in itertools.pairwise(factors))


@pytest.mark.parametrize("text", EVERY)
def test_a_warm_up_rises_in_equal_steps_and_never_starts_at_zero(text: str) -> None:
    schedule = parse(f"{text},warmup=4")
    found = [schedule.factor_at(step, 20, learning_rate=0.1) for step in range(5)]
    assert found == [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]


def test_a_warm_up_as_long_as_the_phase_never_divides_by_zero() -> None:
    assert [Schedule("cosine", warmup=3).factor_at(step, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert Schedule("cosine", warmup=9).factor_at(2, 3) == 0.3


# --- the kinds with options ---


def test_exponential_multiplies_by_the_rate_every_so_many_steps() -> None:
    schedule = parse("exponential,rate=0.96,steps=100")
    for step in (0, 1, 50, 100, 250, 1000):
        assert schedule.factor_at(step, 300) == 0.96 ** (step / 100), "whatever the length of the phase"
    stairs = parse("exponential,rate=0.5,steps=10,staircase")
    assert [stairs.factor_at(step, 99) for step in (0, 9, 10, 19, 20)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert parse("exponential,rate=0.5,steps=10,warmup=5").factor_at(25, 99) == 0.25, "counted from the warm-up's end"


def test_step_drops_after_the_steps_named_and_nowhere_else() -> None:
    schedule = parse("step,at=30:60,factor=0.1")
    found = [schedule.factor_at(step, 90) for step in range(90)]
    assert found == [1.0] * 30 + [0.1] * 30 + [0.1**2] * 30
    assert parse("step,at=3").factor_at(3, 9) == 0.1
    assert parse("step,at=3,warmup=2").factor_at(3, 9) == 0.1, "counted from the start of the phase"


def test_polynomial_ends_at_the_learning_rate_named() -> None:
    schedule = parse("polynomial,power=2,end=1e-5")
    for step in (0, 25, 50, 99, 100, 200):
        wanted = (1e-3 - 1e-5) * (1 - min(step, 100) / 100) ** 2 + 1e-5
        assert 1e-3 * schedule.factor_at(step, 100, learning_rate=1e-3) == pytest.approx(wanted, rel=1e-14)
    for kind in ("linear", "cosine"):
        assert parse(f"{kind},end=1e-5").factor_at(100, 100, learning_rate=1e-3) == pytest.approx(0.01, rel=1e-14)
    for step in range(50):
        assert parse("polynomial,power=1").factor_at(step, 50) == Schedule("linear").factor_at(step, 50)


def test_schedules_of_keras_with_the_same_numbers_give_the_same_rates() -> None:
    from keras.optimizers import schedules

    # PiecewiseConstantDecay keeps the old value at the boundary itself.
    pairs: dict[str, Any] = {
        "exponential,rate=0.9,steps=7": schedules.ExponentialDecay(0.01, 7, 0.9),
        "exponential,rate=0.9,steps=7,staircase": schedules.ExponentialDecay(0.01, 7, 0.9, staircase=True),
        "step,at=10:20,factor=0.2": schedules.PiecewiseConstantDecay([9, 19], [0.01, 0.002, 0.0004]),
        "polynomial,power=3,end=0.001": schedules.PolynomialDecay(0.01, 40, 0.001, power=3.0),
        "cosine,end=0.001": schedules.CosineDecay(0.01, 40, alpha=0.1),
    }
    for text, theirs in pairs.items():
        for step in (0, 1, 9, 10, 14, 25, 39):
            ours = 0.01 * parse(text).factor_at(step, 40, learning_rate=0.01)
            assert ours == pytest.approx(float(theirs(step)), rel=1e-5), (text, step)


# --- text ---


@pytest.mark.parametrize("text", EVERY)
def test_text_reads_back_as_the_same_schedule(text: str) -> None:
    for more in ("", ",warmup=12"):
        assert parse(str(parse(text + more))) == parse(text + more)
    assert parse(" , ".join(["", *text.split(","), "warmup=0"]).removeprefix(" , ")) == parse(text)


def test_a_text_without_new_options_is_written_as_it_was() -> None:
    assert str(parse("cosine,warmup=3")) == "cosine,warmup=3"
    assert str(parse(" linear ")) == "linear"
    assert str(parse("step,at=30:60,warmup=2")) == "step,at=30:60,factor=0.1,warmup=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "expected one of constant, cosine, linear, exponential, step, polynomial; nearest: cosine"),
        ("poly,power=2", "nearest: polynomial"),
        ("", "expected one of"),
        ("Cosine", "expected one of"),
        (
            "cosine,warmup",
            "`warmup` is not a valid option of cosine; expected end=R (R >= 0, a learning rate), warmup=N",
        ),
        ("cosine,warmup=-1", "`warmup=-1` is not a valid option"),
        ("cosine,warmup=1.5", "`warmup=1.5` is not a valid option"),
        ("cosine,warmup=1e3", "`warmup=1e3` is not a valid option"),
        ("cosine,cooldown=3", "`cooldown=3` is not a valid option"),
        ("cosine,", "`` is not a valid option"),
        ("cosine,warmup=9999999999", "is not a valid option"),
        ("cosine,warmup=1,warmup=2", "`warmup` is given twice"),
        ("cosine,rate=0.9", "`rate=0.9` is not a valid option of cosine"),
        ("constant,end=1", "`end=1` is not a valid option of constant; expected warmup=N (N >= 0 steps)"),
        ("exponential,rat=0.96,steps=3", "`rat=0.96` is not a valid option of exponential"),
        ("exponential,rat=0.96,steps=3", "nearest: rate"),
        ("exponential,rate=96,steps=3", "rate=96.0: expected a number above 0 and below 1"),
        ("exponential,rate=0,steps=3", "rate=0.0: expected a number above 0 and below 1"),
        ("exponential,rate=nan,steps=3", "rate=nan: expected a number above 0 and below 1"),
        ("exponential,rate=0_9,steps=3", "`rate=0_9` is not a valid option"),
        ("exponential,rate=0.9,steps=0", "steps=0: expected a number of at least 1"),
        ("exponential,rate=0.9", "exponential needs rate= and steps= together, such as rate=0.96,steps=100"),
        ("exponential,steps=9", "exponential needs rate= and steps= together"),
        ("exponential,staircase", "exponential needs rate= and steps= together"),
        ("exponential,rate=0.9,steps=3,staircase=1", "`staircase=1` is not a valid option"),
        ("step", "step needs at=N:N:..., the numbers of steps after which the rate drops"),
        ("step,factor=0.1", "step needs at="),
        ("step,at=", "`at=` is not a valid option of step"),
        ("step,at=30,60", "`60` is not a valid option of step"),
        ("step,at=30:", "`at=30:` is not a valid option"),
        ("step,at=30:30", "at=30:30: expected numbers that rise, each above warmup=0"),
        ("step,at=60:30", "at=60:30: expected numbers that rise"),
        ("step,at=0:30", "at=0:30: expected numbers that rise, each above warmup=0"),
        ("step,at=5,warmup=5", "at=5: expected numbers that rise, each above warmup=5"),
        ("step,at=5,factor=10", "factor=10.0: expected a number above 0 and below 1"),
        ("step,at=5,factor=0.5:0.1", "`factor=0.5:0.1` is not a valid option"),
        ("polynomial", "polynomial needs power=R"),
        ("polynomial,end=0", "polynomial needs power=R"),
        ("polynomial,power=0", "power=0.0: expected a number above 0"),
        ("polynomial,power=inf", "power=inf: expected a finite number above 0"),
        ("polynomial,power=2,end=-1", "end=-1.0: expected a number of at least 0"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_what_a_phase_could_not_follow_is_refused_with_a_way_out() -> None:
    parse("step,at=30:99").check(learning_rate=1e-3, steps=100)
    with pytest.raises(ScheduleError, match=r"at=30:100: .* after 100 steps, but the phase has 100; .*schedule="):
        parse("step,at=30:100").check(learning_rate=1e-3, steps=100)
    for text in ("linear,end=0.001", "polynomial,power=2,end=0.1"):
        with pytest.raises(ScheduleError, match=r"end=0\.\d+: expected a learning rate below the phase's, 0\.001"):
            parse(text).check(learning_rate=1e-3, steps=100)
