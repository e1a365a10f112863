"""Where the seconds go: parts that add up, and cost nothing where nobody collects."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from engine import part_times
from engine.part_times import collect, describe, part


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that stands still; its list is [by the clock, of CPU]."""
    now = [100.0, 50.0]
    monkeypatch.setattr(part_times, "_now", lambda: (now[0], now[1]))
    return now


def _work(clock: list[float], seconds: float) -> None:
    clock[0] += seconds
    clock[1] += 2 * seconds


def test_a_part_inside_another_one_counts_for_itself_alone_and_all_add_up(clock: list[float]) -> None:
    @part("inner")
    def inner(seconds: float) -> float:
        _work(clock, seconds)
        return seconds

    with collect() as times:
        _work(clock, 0.5)
        with part("outer"):
            _work(clock, 1.0)
            assert inner(4.0) == 4.0
            with contextlib.suppress(ValueError), part("inner"):
                _work(clock, 2.0)
                raise ValueError
            _work(clock, 8.0)
        found = times.finish()
    assert found == {
        "inner": {"seconds": 6.0, "cpu_seconds": 12.0},
        "outer": {"seconds": 9.0, "cpu_seconds": 18.0},
        "other": {"seconds": 0.5, "cpu_seconds": 1.0},
    }
    assert describe(found) == "31.0 s of CPU (15.5 s by the clock): inner 12.0, outer 18.0, other 1.0"


def test_nothing_is_measured_after_the_end_or_where_nobody_collects(clock: list[float]) -> None:
    with part("nobody"):
        _work(clock, 1.0)
    assert part_times.finish() is None
    with collect() as times, part("running"):
        _work(clock, 1.0)
        with collect() as same, part("inside"):
            _work(clock, 2.0)
        found = part_times.finish()
        _work(clock, 4.0)
        with part("late"):
            _work(clock, 8.0)
    assert same is times
    assert times.finish() is found
    assert found is not None
    # what is still running ends after the end: until then it is other work
    assert {name: own["seconds"] for name, own in found.items()} == {"inside": 2.0, "other": 1.0}


def test_the_start_of_the_process_is_measured_too() -> None:
    with collect() as times:
        times.add_start()
    start = times.parts["start"]
    assert 0 < start["cpu_seconds"] <= time.process_time()
    assert start["seconds"] > 0
