"""The model on paper of a step with many workers: against values by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.distribution import scaling
from engine.distribution.scaling import Compute, Link, ScalingError, StepTime
from engine.errors import InputError
from engine.sizes import parse_bandwidth

GIGABIT = 125e6  # bytes per second
SLOW, FAST = Link(GIGABIT, 50e-6), Link(100 * GIGABIT, 50e-6)
COMPUTE = Compute(seconds_per_example=0.5, seconds_per_step=0.25)


def test_an_all_reduce_takes_what_the_papers_say() -> None:
    link = Link(bandwidth=1e6, latency=1e-3)
    assert scaling.reduce_seconds(8_000_000, 1, link) == 0.0
    # each of 4 workers sends 2 * 3 parts of 2 MB, one after the other
    assert scaling.reduce_seconds(8_000_000, 4, link) == pytest.approx(6 * 2.0 + 6 * 1e-3, rel=1e-12)
    # halving and doubling: the same bytes in 2 * log2(4) messages
    assert scaling.reduce_seconds(8_000_000, 4, link, algorithm="tree") == pytest.approx(12.0 + 4e-3, rel=1e-12)
    assert scaling.reduce_seconds(0, 1024, link) == pytest.approx(2 * 1023 * 1e-3)
    assert scaling.reduce_seconds(0, 1024, link, algorithm="tree") == pytest.approx(2 * 10 * 1e-3)
    assert scaling.reduce_seconds(0, 5, link, algorithm="tree") == pytest.approx(2 * 3 * 1e-3)  # as 8 workers


def test_a_step_is_the_largest_share_and_the_reductions_after_it() -> None:
    found = scaling.predict_step(COMPUTE, examples=10, workers=4, size=4_000_000, collectives=3, link=SLOW)
    ring = 2 * 3 / 4 * 4_000_000 / GIGABIT + 3 * 2 * 3 * 50e-6
    assert found == StepTime(
        workers=4, examples=10, largest_share=3, compute_seconds=1.75, reduction_seconds=pytest.approx(ring)
    )
    assert found.seconds == pytest.approx(1.75 + ring)
    assert found.examples_per_second == pytest.approx(10 / found.seconds)
    one = scaling.predict_step(COMPUTE, examples=10, workers=1, size=4_000_000, collectives=3, link=SLOW)
    assert (one.compute_seconds, one.reduction_seconds, one.largest_share) == (5.25, 0.0, 10)
    assert found.speedup(one) == pytest.approx(5.25 / found.seconds)
    # fewer examples than workers: some have none, and the others one
    assert scaling.predict_step(COMPUTE, examples=10, workers=64, size=0, collectives=1, link=SLOW).largest_share == 1


@pytest.mark.parametrize("algorithm", scaling.ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1000, 346_270_624])
def test_what_must_hold_whatever_the_numbers_are(algorithm: Any, size: int) -> None:
    counts = [1, 2, 3, 4, 7, 8, 63, 64, 65, 1024]

    def times(link: Link) -> list[StepTime]:
        return [
            scaling.predict_step(
                COMPUTE, examples=512, workers=n, size=size, collectives=2, link=link, algorithm=algorithm
            )
            for n in counts
        ]

    slow, fast = times(SLOW), times(FAST)
    for found in (slow, fast):
        assert all(a.compute_seconds >= b.compute_seconds for a, b in itertools.pairwise(found))
        assert all(a.reduction_seconds <= b.reduction_seconds for a, b in itertools.pairwise(found))
        assert all(step.speedup(found[0]) <= step.workers for step in found)
        assert found[0].speedup(found[0]) == 1.0
    assert all(a.seconds >= b.seconds for a, b in zip(slow, fast, strict=True))
    # the bytes that a worker sends stay below twice the size, however many workers there are
    free = Link(GIGABIT, 0.0)
    assert all(scaling.reduce_seconds(size, n, free, algorithm=algorithm) <= 2 * size / GIGABIT for n in counts)


def test_compute_is_fitted_through_two_measured_steps() -> None:
    assert scaling.fit_compute((4, 2.25), (8, 4.25)) == COMPUTE
    # noise: a constant below 0, or a larger step that is not slower, leaves all of the time to the examples
    assert scaling.fit_compute((4, 1.0), (8, 4.0)) == Compute(0.5, 0.0)
    assert scaling.fit_compute((4, 5.0), (8, 4.0)) == Compute(0.5, 0.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Compute(0.0), "seconds_per_example=0.0: expected a number above 0"),
        (lambda: Compute(float("nan")), "seconds_per_example=nan: expected a number above 0"),
        (lambda: Compute(1.0, -0.1), "seconds_per_step=-0.1: expected a number of at least 0"),
        (lambda: Link(0.0, 0.0), "bandwidth=0.0: expected a number above 0"),
        (lambda: Link(1.0, -1e-6), "latency=-1e-06: expected a number of at least 0"),
        (lambda: Link(float("inf"), 0.0), "bandwidth=inf: expected a finite number above 0"),
        (lambda: scaling.reduce_seconds(1, 0, SLOW), "workers=0: expected a number of at least 1"),
        (lambda: scaling.reduce_seconds(-1, 2, SLOW), "size=-1: expected a number of at least 0"),
        (
            lambda: scaling.reduce_seconds(1, 2, SLOW, algorithm="rings"),  # type: ignore[arg-type]
            "algorithm='rings' is not a known one; expected ring or tree; nearest: ring",
        ),
        (
            lambda: scaling.predict_step(COMPUTE, examples=0, workers=2, size=1, collectives=1, link=SLOW),
            "examples=0: expected a number of at least 1",
        ),
        (
            lambda: scaling.predict_step(COMPUTE, examples=1, workers=2, size=1, collectives=0, link=SLOW),
            "collectives=0: expected a number of at least 1",
        ),
        (lambda: scaling.fit_compute((8, 1.0), (8, 2.0)), "8 and 8 examples: expected"),
    ],
)
def test_wrong_arguments_are_named(make: Any, said: str) -> None:
    with pytest.raises(InputError) as found:
        make()
    assert said in str(found.value)
    assert isinstance(found.value, (ScalingError, InputError))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1Gbit", 125e6),
        ("10Gbit/s", 1.25e9),
        (" 2.5 gbit ", 312.5e6),
        ("100Mbit", 12.5e6),
        ("8bit", 1.0),
        ("8kbps", 1000.0),
        ("0.4Tbps", 50e9),
    ],
)
def test_a_bandwidth_is_read_in_bits_and_given_in_bytes(text: str, expected: float) -> None:
    assert parse_bandwidth(text, name="bandwidths") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["1GB/s", "10", "10G", "1Gbyte", "fast", "", "-1Gbit", "0Gbit", "1e3Mbit", "1GiBit", "nanbit"]
)
def test_a_bandwidth_without_bits_is_refused(text: str) -> None:
    with pytest.raises(InputError) as found:
        parse_bandwidth(text, name="bandwidths")
    assert f"bandwidths={text!r}: expected " in str(found.value)


@pytest.mark.parametrize("unit", ["GB/s", "GBps", "GB/S"])
def test_bytes_are_told_from_bits(unit: str) -> None:
    with pytest.raises(InputError, match=f"bandwidths='1.5{unit}': expected bits; that is 12Gbit"):
        parse_bandwidth(f"1.5{unit}", name="bandwidths")
