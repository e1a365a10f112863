"""What is measured of a run of benchmark_freezing while it goes, and the two ways in which it ends early."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from engine.training.loop import LoopError, Stage
from engine.training.phases import Evaluation


class LeftOut(Exception):  # noqa: N818 - no error: a runner that would only repeat another's run
    """A runner has nothing of its own to show for a strategy; says why."""


class NotFiniteError(LoopError):
    """A step whose loss or gradient is not finite, and the batch of it. ``batch`` trains the selection's step."""

    def __init__(self, message: str, stage: Stage, batch: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.stage, self.batch = stage, batch


class Record:
    """What is measured of a run while it goes.

    Attributes:
        step_ms: of each step that is timed: not the first of a phase, which traces, nor one that traced again.
        examples: of those steps.
        first_step_seconds: of the first step.
        first_loss, last_loss: of the first and the last step.
        points: one for each evaluation; ``seconds`` since the start, that evaluation included.
        slot_bytes: the most of any phase.
        norm: of the frozen part's output, at the last evaluation.
        preparing: seconds of making graphs before the first step; counted to it.
        job_seconds: from the first trace to the last evaluation.
        taken: share of the machine's time that others had meanwhile, its hypervisor too; None where no system tells.
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
        self._ticks = _ticks()

    def begin(self) -> None:
        """The first trace comes now."""
        self._began, self._ticks = time.perf_counter(), _ticks()

    def end(self) -> None:
        """The last evaluation was the last."""
        self.job_seconds = self.seconds
        if self._ticks is not None and (now := _ticks()) is not None:
            whole, others = (after - before for after, before in zip(now, self._ticks, strict=True))
            self.taken = max(0.0, others / whole) if whole else None

    @property
    def seconds(self) -> float:
        """Since the start, pauses apart."""
        return time.perf_counter() - self._began - self._paused

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Surrounds what is no part of the job, such as drawing histograms."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - started

    def step(self, loss: float, *, seconds: float, examples: int, timed: bool) -> None:
        if timed:
            self.step_ms.append(1e3 * seconds)
            self.examples += examples
        if self.first_step_seconds is None:
            self.first_step_seconds, self.first_loss = self.preparing + seconds, loss
        self.last_loss = loss

    def evaluation(self, found: Evaluation) -> None:
        point = {"step": found.step, "seconds": self.seconds, "eval_loss": found.loss, "eval_accuracy": found.accuracy}
        self.points.append(point | {"train_loss": self.last_loss})
        self.norm = found.frozen_output_norm


def _ticks() -> tuple[float, float] | None:
    """Seconds of all cores since the machine began, and those of them that neither idled nor were this process's.

    Source: the first line of /proc/stat (man 5 proc_stat), in 1/100 s.
    """
    try:
        words = pathlib.Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
        user, nice, system, idle, wait, *interrupts_and_stolen = (int(w) / os.sysconf("SC_CLK_TCK") for w in words[1:9])
    except (OSError, ValueError):
        return None
    used, own = user + nice + system + sum(interrupts_and_stolen), os.times()
    return used + idle + wait, used - own.user - own.system
