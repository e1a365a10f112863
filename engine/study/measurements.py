"""What is measured of a run while it trains, and the two ways in which a run ends early."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from engine.training.loop import LoopError, Stage
from engine.training.phases import Evaluation


class LeftOut(Exception):  # noqa: N818 - not an error
    """A runner would only repeat another runner's run of a strategy; the message says why."""


class NotFiniteError(LoopError):
    """The loss or gradient of a step is not finite; ``batch`` is empty when its update has been applied already."""

    def __init__(self, message: str, stage: Stage, batch: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.stage, self.batch = stage, batch


class Measurements:
    """The measurements of one run.

    Attributes:
        step_ms, examples: of the timed steps. Steps that trace are not timed, nor is the first of each phase.
        first_step_seconds: the time of the first step, with its tracing.
        points: one entry for each evaluation; its ``seconds`` count from the start and include the evaluation.
        slot_bytes: the size of the optimizer's slots, in the phase that has the most.
        norm: the norm of the frozen part's output at the last evaluation.
        preparing: the seconds spent on building graphs before the first step; they count towards that step.
        job_seconds: the time from the first trace to the end of the last evaluation.
        taken: the share of the machine's time that other programs, or other guests of its host, had meanwhile; None
            where the system does not tell.
    """

    def __init__(self) -> None:
        self.step_ms: list[float] = []
        self.examples = 0
        self.first_step_seconds: float | None = None
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.points: list[dict[str, Any]] = []
        self.slot_bytes = 0
        self.norm: float | None = None
        self.preparing = 0.0
        self.job_seconds = 0.0
        self.taken: float | None = None
        self._began = time.perf_counter()
        self._paused = 0.0
        self._ticks = _read_ticks()

    def begin(self) -> None:
        """Starts the clock, just before the first trace."""
        self._began, self._ticks = time.perf_counter(), _read_ticks()

    def end(self) -> None:
        """Stops the clock, just after the last evaluation."""
        self.job_seconds = self.seconds
        if self._ticks is not None and (now := _read_ticks()) is not None:
            whole, others = (after - before for after, before in zip(now, self._ticks, strict=True))
            self.taken = max(0.0, others / whole) if whole else None

    @property
    def seconds(self) -> float:
        """The seconds since the start, without pauses."""
        return time.perf_counter() - self._began - self._paused

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes what is not part of the job, such as drawing histograms, from its time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - started

    def add_step(self, loss: float, *, seconds: float, examples: int, timed: bool) -> None:
        if timed:
            self.step_ms.append(1e3 * seconds)
            self.examples += examples
        if self.first_step_seconds is None:
            self.first_step_seconds, self.first_loss = self.preparing + seconds, loss
        self.last_loss = loss

    def add_evaluation(self, found: Evaluation) -> None:
        point = {"step": found.step, "seconds": self.seconds, "eval_loss": found.loss, "eval_accuracy": found.accuracy}
        self.points.append(point | {"train_loss": self.last_loss})
        self.norm = found.frozen_output_norm

    def to_json(self) -> dict[str, Any]:
        """The measurements that a run's file holds."""
        names = ("step_ms", "examples", "first_step_seconds", "first_loss", "last_loss", "points", "slot_bytes",
                 "job_seconds", "taken")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _read_ticks() -> tuple[float, float] | None:
    """Seconds of all cores since the machine started, and those in which a core was busy for another process.

    Source: the first line of /proc/stat (man 5 proc_stat), in 1/100 s.
    """
    try:
        words = pathlib.Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
        user, nice, system, idle, wait, *interrupts_and_stolen = (int(w) / os.sysconf("SC_CLK_TCK") for w in words[1:9])
    except (OSError, ValueError):
        return None
    used, own = user + nice + system + sum(interrupts_and_stolen), os.times()
    return used + idle + wait, used - own.user - own.system
