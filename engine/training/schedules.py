"""Learning-rate schedules: pure functions of the step within a phase, so a resume needs no state."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError, check_range
from engine.outside_names import is_outside
from engine.text import nearest, parse_number
from engine.training import outside_schedules
from engine.training.outside_schedules import ScheduleError as ScheduleError

# The options of each kind, besides warmup=.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("end",),
    "linear": ("end",),
    "exponential": ("rate", "steps", "staircase"),
    "step": ("at", "factor"),
    "polynomial": ("power", "end"),
}
KINDS = tuple(_OPTIONS)
_FORMS = {
    "end": "end=R (R >= 0, a learning rate)",
    "rate": "rate=R (R above 0 and below 1)",
    "steps": "steps=N (N >= 1)",
    "staircase": "staircase",
    "at": "at=N:N:... (steps)",
    "factor": "factor=R (R above 0 and below 1)",
    "power": "power=R (R above 0)",
    "warmup": "warmup=N (N >= 0 steps)",
}


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate, by step.

    Attributes:
        kind: "constant"; "cosine", "linear" or "polynomial", which decay from 1 to the end, reached one step after the
            last; "exponential"; or "step".
        warmup: the number of steps in which the factor first rises linearly to 1. The decay of all kinds but "step"
            begins after it.
        rate, steps, staircase: "exponential" multiplies the learning rate by ``rate`` every ``steps`` steps, gradually
            or, with ``staircase``, all at once. Without both it decays from 1 to 0.01 over the phase.
        at, factor: "step" multiplies the learning rate by ``factor`` after each of these numbers of steps of the phase.
        power: "polynomial" is (1 - the share of the phase that is done) ** power.
        end: the learning rate at which "cosine", "linear" and "polynomial" end.
    """

    kind: str = "constant"
    warmup: int = 0
    rate: float | None = None
    steps: int | None = None
    staircase: bool = False
    at: tuple[int, ...] = ()
    factor: float = 0.1
    power: float | None = None
    end: float = 0.0

    def __post_init__(self) -> None:
        try:
            check_range("warmup", self.warmup, 0)
            check_range("steps", self.steps, 1)
            check_range("power", self.power, above=0)
            check_range("end", self.end, 0)
            for name in ("rate", "factor"):
                check_range(name, getattr(self, name), above=0, below=1)
        except InputError as error:
            raise ScheduleError(str(error)) from None
        both = self.rate is not None and self.steps is not None
        if not both and (self.rate is not None or self.steps is not None or self.staircase):
            raise ScheduleError("exponential needs rate= and steps= together, such as rate=0.96,steps=100")
        if self.kind == "step" and not self.at:
            raise ScheduleError("step needs at=N:N:..., the numbers of steps after which the rate drops")
        if any(later <= earlier for earlier, later in zip((self.warmup, *self.at), self.at, strict=False)):
            raise ScheduleError(
                f"at={_text(self.at)}: expected numbers that rise, each above warmup={self.warmup} and counted from the "
                "start of the phase"
            )
        if self.kind == "polynomial" and self.power is None:
            raise ScheduleError("polynomial needs power=R, such as power=2")

    def factor_at(self, step: int, total: int, *, learning_rate: float = 1.0) -> float:
        """Returns the factor at ``step``, counted from 0, of ``total`` steps in a phase with this learning rate."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "step":
            return float(self.factor ** sum(step >= number for number in self.at))
        if self.kind == "exponential" and self.rate is not None and self.steps is not None:
            times = (step - self.warmup) / self.steps
            return float(self.rate ** (math.floor(times) if self.staircase else times))
        done = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        if self.kind == "exponential":
            return float(0.01**done)
        floor = self.end / learning_rate
        return floor + (1.0 - floor) * self._fall(done)

    def _fall(self, done: float) -> float:
        """From 1 to 0 as ``done`` goes from 0 to 1; constantly 1 for "constant"."""
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.kind == "polynomial":
            return float((1.0 - done) ** (self.power or 1.0))
        return 1.0 - done if self.kind == "linear" else 1.0

    def check(self, *, learning_rate: float, steps: int) -> None:
        """Raises ScheduleError unless a phase of this learning rate and number of steps can follow the schedule."""
        if self.end and self.end >= learning_rate:
            raise ScheduleError(
                f"schedule='{self}': end={self.end:g}: expected a learning rate below the phase's, {learning_rate:g}"
            )
        if self.at and self.at[-1] >= steps:
            raise ScheduleError(
                f"schedule='{self}': at={_text(self.at)}: the rate would drop after {self.at[-1]} steps, but the phase has "
                f"{steps}; leave that number out, or give each --phase a schedule= of its own"
            )

    def __str__(self) -> str:
        words = [self.kind]
        for name in (*_OPTIONS[self.kind], "warmup"):
            if value := getattr(self, name):
                words.append(name if value is True else f"{name}={_text(value)}")
        return ",".join(words)


@dataclass(frozen=True)
class UserSchedule(Schedule):
    """A schedule ``py:module:name``: a function of (step, number of steps of the phase) that returns the factor.

    It is imported when it is first asked for a factor. ``text`` is what names it.
    """

    kind: str = "py"
    text: str = ""

    def factor_at(self, step: int, total: int, *, learning_rate: float = 1.0) -> float:
        """The factor at ``step``, from 0; ScheduleError unless it is a finite number of at least 0."""
        return outside_schedules.read_factor(self.text, outside_schedules.import_schedule(self.text), step, total)

    def check(self, *, learning_rate: float, steps: int) -> None:
        """Raises ScheduleError if the function raises, returns anything but factors, or others the second time."""
        outside_schedules.check_pure(self.text, outside_schedules.import_schedule(self.text), steps)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Schedule:
    """Reads ``kind[,option=value]...``, or ``py:module:name``; raises ScheduleError if it is anything else.

    Example:
        >>> parse("exponential,rate=0.5,steps=10").factor_at(20, 100)
        0.25
        >>> parse("step,at=30:60,factor=0.1").at
        (30, 60)
    """
    if is_outside(text):
        outside_schedules.check_schedule_name(text)
        return UserSchedule(text=text)
    kind, *options = [part.strip() for part in text.split(",")]
    if kind not in KINDS:
        raise ScheduleError(f"schedule={text!r}: expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    known = (*_OPTIONS[kind], "warmup")
    values: dict[str, Any] = {}
    for option in options:
        name, equals, word = option.partition("=")
        value = _value(name, word if equals else None) if name in known else None
        if value is None:
            raise ScheduleError(
                f"schedule={text!r}: `{option}` is not a valid option of {kind}; expected "
                f"{', '.join(_FORMS[each] for each in known)}{'' if name in known else nearest(name, known)}"
            )
        if name in values:
            raise ScheduleError(f"schedule={text!r}: `{name}` is given twice")
        values[name] = value
    try:
        return Schedule(kind, **values)
    except ScheduleError as error:
        raise ScheduleError(f"schedule={text!r}: {error}") from None


def _value(name: str, word: str | None) -> Any:
    """The value of an option; None if the word does not give one."""
    if name == "staircase":
        return True if word is None else None
    if word is None:
        return None
    if name == "at":
        return tuple(map(int, word.split(":"))) if re.fullmatch(r"\d{1,9}(:\d{1,9})*", word) else None
    if name in ("warmup", "steps"):
        return int(word) if re.fullmatch(r"\d{1,9}", word) else None
    return parse_number(word)


def _text(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else repr(value).removesuffix(".0")
