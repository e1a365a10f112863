"""Learning-rate schedules: pure functions of the step within a phase, so resume needs no state."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engine.errors import InputError
from engine.text import nearest

KINDS = ("constant", "cosine", "linear", "exponential")


class ScheduleError(InputError):
    """A schedule that cannot be read."""


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate by step.

    Attributes:
        kind: "constant"; "cosine" and "linear" fall from 1 towards 0, which the step after the
            last one would have; "exponential" falls from 1 towards 0.01.
        warmup: steps in which the factor first rises linearly to 1.
    """

    kind: str = "constant"
    warmup: int = 0

    def factor(self, step: int, total: int) -> float:
        """Factor at ``step`` (from 0) of ``total`` steps in the phase."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.kind == "linear":
            return 1.0 - done
        if self.kind == "exponential":
            return float(0.01**done)
        return 1.0

    def __str__(self) -> str:
        return f"{self.kind},warmup={self.warmup}" if self.warmup else self.kind


def parse(text: str) -> Schedule:
    """Reads ``kind[,warmup=N]``.

    Raises:
        ScheduleError: unknown kind or option, or a warm-up that is no number of steps.
    """
    kind, *options = [part.strip() for part in text.split(",")]
    if kind not in KINDS:
        raise ScheduleError(f"schedule={text!r}: known schedules are {', '.join(KINDS)}{nearest(kind, list(KINDS))}")
    if len(options) > 1:
        raise ScheduleError(f"schedule={text!r}: it takes one option, warmup=N")
    warmup = 0
    for option in options:
        match = re.fullmatch(r"warmup=(\d{1,9})", option)
        if match is None:
            raise ScheduleError(f"schedule={text!r}: `{option}` is no option; warmup=N (steps, N >= 0) is")
        warmup = int(match.group(1))
    return Schedule(kind, warmup)
