"""Schedules of the user's own: ``py:module:name``, imported when a run needs them, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from engine import outside_names
from engine.errors import InputError
from engine.text import cut

_MOST_TRIED = 1000  # steps of a phase at which a schedule is tried before the run begins


class ScheduleError(InputError):
    """The text of a schedule cannot be read, or a phase cannot follow the schedule."""


def check_schedule_name(text: str) -> None:
    """Raises ScheduleError unless a text is ``py:module:name``; nothing is imported."""
    module, _, name = text.removeprefix(outside_names.PREFIX).partition(":")
    if not module or not name or "," in text:
        raise ScheduleError(f"schedule={cut(text)!r} is not a valid schedule; expected py:module:name, without options")


def read_factor(text: str, function: Callable[[int, int], Any], step: int, total: int) -> float:
    """What a function returns for a step; ScheduleError unless it is a finite number of at least 0."""
    try:
        given = outside_names.call_named("schedule", text, function, step, total)
    except InputError as error:
        raise ScheduleError(f"{error} (step {step} of {total})") from None
    value = np.asarray(given)
    number = float(value) if value.ndim == 0 and value.dtype.kind in "iuf" else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ScheduleError(
            f"schedule={text!r}: at step {step} of {total} it returned {cut(repr(given))}; expected a finite factor of at least 0"
        )
    return number


def check_pure(text: str, function: Callable[[int, int], Any], steps: int) -> None:
    """Raises ScheduleError unless a function returns a factor for each step, and the same ones in any order."""
    tried = sorted({round(step) for step in np.linspace(0, max(0, steps - 1), _MOST_TRIED)})
    first = {step: read_factor(text, function, step, steps) for step in tried}
    for step in reversed(tried):
        if (again := read_factor(text, function, step, steps)) != first[step]:
            raise ScheduleError(
                f"schedule={text!r}: at step {step} of {steps} it returned {first[step]:g}, and {again:g} when it was asked "
                "again; expected a function of its arguments alone, or a run that is resumed would go another way"
            )


def import_schedule(text: str) -> Callable[[int, int], Any]:
    try:
        found: Callable[[int, int], Any] = outside_names.import_function("schedule", text, what="schedule")
    except InputError as error:
        raise ScheduleError(str(error)) from None
    return found
