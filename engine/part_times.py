"""Where the seconds of a program go until its first step: each part is measured where its work is done.

A part that is done inside another one counts for itself alone, so that the parts add up; what belongs to none is "other".
Nothing is measured unless somebody collects.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

_collecting: ContextVar[PartTimes | None] = ContextVar("collecting", default=None)


class PartTimes:
    """The time that each part has taken so far.

    Attributes:
        parts: by name, ``{"seconds": by the clock, "cpu_seconds": of all threads, user and system}``.

    Example:
        >>> with collect() as times:
        ...     with part("outer"), part("inner"):
        ...         pass
        >>> list(times.finish())
        ['inner', 'outer', 'other']
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._began = _now()
        self._inside = [(0.0, 0.0)]  # of each part that is going on, the innermost last: the time of parts inside it
        self._finished = False

    def add(self, name: str, seconds: float, cpu_seconds: float) -> None:
        """Adds to the time of a part."""
        own = self.parts.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        own["seconds"] += seconds
        own["cpu_seconds"] += cpu_seconds

    def add_start(self) -> None:
        """Adds what the process did before: the part "start"."""
        self.add("start", _process_seconds(), time.process_time())

    def finish(self) -> dict[str, dict[str, float]]:
        """Returns the parts, and measures nothing from now on."""
        if not self._finished:
            self._finished = True
            wall, cpu = (now - then for now, then in zip(_now(), self._began, strict=True))
            measured = [sum(inside) for inside in zip(*self._inside, strict=True)]
            self.add("other", max(0.0, wall - measured[0]), max(0.0, cpu - measured[1]))
        return self.parts

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measures what is done in a ``with`` block as a part."""
        began = _now()
        self._inside.append((0.0, 0.0))
        try:
            yield
        finally:
            wall, cpu = (now - then for now, then in zip(_now(), began, strict=True))
            inner, outer = self._inside.pop(), self._inside.pop()
            self._inside.append((outer[0] + wall, outer[1] + cpu))
            if not self._finished:
                self.add(name, wall - inner[0], cpu - inner[1])


def describe(parts: Mapping[str, Mapping[str, float]]) -> str:
    """The parts in words, such as "9.1 s of CPU (12.0 s by the clock): imports 4.0, trace 3.1"."""
    wall, cpu = (sum(own[key] for own in parts.values()) for key in ("seconds", "cpu_seconds"))
    listed = [f"{name} {own['cpu_seconds']:.1f}" for name, own in parts.items() if own["cpu_seconds"] >= 0.05]
    return f"{cpu:.1f} s of CPU ({wall:.1f} s by the clock): {', '.join(listed)}"


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _process_seconds() -> float:
    """The seconds since this process started, by the clock; where the system does not tell, those that it computed."""
    try:
        ticks = pathlib.Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


@contextlib.contextmanager
def collect(*, since_start: bool = False) -> Iterator[PartTimes]:
    """Collects the times of parts within a ``with`` block; inside another one, continues that.

    With ``since_start``, what the process has done before is the part "start".
    """
    outer = _collecting.get()
    if outer is not None:
        yield outer
        return
    times = PartTimes()
    if since_start:
        times.add_start()
    token = _collecting.set(times)
    try:
        yield times
    finally:
        _collecting.reset(token)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Measures a part: a ``with`` block, or a function that this decorates."""
    times = _collecting.get()
    with contextlib.nullcontext() if times is None else times.measure(name):
        yield


def finish() -> dict[str, dict[str, float]] | None:
    """Ends what is being collected, and returns its parts; None where nobody collects."""
    times = _collecting.get()
    return None if times is None else times.finish()
