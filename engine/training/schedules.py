"""Learning-rate schedules: pure functions of the step within a phase, so a resume needs no state."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engine.errors import InputError
from engine.text import nearest

KINDS = ("constant", "cosine", "linear", "exponential")


class ScheduleError(InputError):
    """The text of a schedule cannot be read."""


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate, by step.

    Attributes:
        kind: "constant"; "cosine" or "linear", which decay from 1 to 0, reached one step after the last; or
            "exponential", which decays from 1 to 0.01.
        warmup: the number of steps in which the factor first rises linearly to 1.
    """

    kind: str = "constant"
    warmup: int = 0

    def factor(self, step: int, total: int) -> float:
        """Returns the factor at ``step``, counted from 0, of ``total`` steps in the phase."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return {"linear": 1.0 - done, "exponential": float(0.01**done)}.get(self.kind, 1.0)

    def __str__(self) -> str:
        return f"{self.kind},warmup={self.warmup}" if self.warmup else self.kind


def parse(text: str) -> Schedule:
    """Reads ``kind[,warmup=N]``; raises ScheduleError if it is anything else."""
    kind, *options = [part.strip() for part in text.split(",")]
    if kind not in KINDS:
        raise ScheduleError(f"schedule={text!r}: expected one of {', '.join(KINDS)}{nearest(kind, list(KINDS))}")
    if len(options) > 1:
        raise ScheduleError(f"schedule={text!r}: expected at most one option, warmup=N")
    warmup = 0
    for option in options:
        match = re.fullmatch(r"warmup=(\d{1,9})", option)
        if match is None:
            raise ScheduleError(
                f"schedule={text!r}: `{option}` is not a valid option; expected warmup=N (N >= 0 steps)"
            )
        warmup = int(match.group(1))
    return Schedule(kind, warmup)
