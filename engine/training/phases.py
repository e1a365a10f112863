"""Phases, and which one applies: a pure function of saved state (steps trained, evaluations made)."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from engine.errors import InputError
from engine.selection import filters
from engine.text import nearest
from engine.training import schedules

Monitor = Literal["eval_loss", "eval_accuracy"]


class PhaseError(InputError):
    """A phase that cannot be read or cannot be."""


class Evaluation(NamedTuple):
    """One recorded evaluation. ``step`` counts steps trained; accuracy is None where there is none."""

    step: int
    phase: str
    loss: float
    accuracy: float | None
    frozen_output_norm: float | None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one selection and its hyperparameters.

    Attributes:
        name: for logs and files.
        train: filter text: what trains.
        steps: steps; or None when ``epochs`` or ``until`` says how long.
        epochs: passes over the training part; may be a fraction.
        until: "plateau" ends the phase when ``patience`` evaluations in a row are not better than the
            best one before by more than ``min_delta``, or after ``max_steps`` steps.
        learning_rate, schedule, weight_decay, layer_decay, clip_norm: None takes the run's own.
    """

    name: str
    train: str
    steps: int | None = None
    epochs: float | None = None
    until: str | None = None
    patience: int = 2
    min_delta: float = 1e-3
    max_steps: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        lengths = [key for key in ("steps", "epochs", "until") if getattr(self, key) is not None]
        if len(lengths) != 1:
            raise PhaseError(
                f"phase {self.name!r}: exactly one of steps=, epochs= or until= says how long; got {lengths or 'none'}"
            )
        if self.until not in (None, "plateau"):
            raise PhaseError(
                f"phase {self.name!r}: until={self.until!r}: `plateau` is the only way to end by evaluation"
            )
        if self.until and self.max_steps is None:
            raise PhaseError(f"phase {self.name!r}: until=plateau needs max_steps=N, the most steps it may take")
        if self.max_steps is not None and not self.until:
            raise PhaseError(f"phase {self.name!r}: max_steps={self.max_steps} goes with until=plateau")
        for key in ("steps", "epochs", "patience", "max_steps", "learning_rate", "clip_norm"):
            value = getattr(self, key)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise PhaseError(f"phase {self.name!r}: {key}={value}: it must be above 0")
        for key in ("min_delta", "weight_decay"):
            value = getattr(self, key)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise PhaseError(f"phase {self.name!r}: {key}={value}: it must be at least 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise PhaseError(f"phase {self.name!r}: layer_decay={self.layer_decay}: it must be above 0 and at most 1")
        if self.schedule is not None:
            schedules.parse(self.schedule)
        filters.parse_filter(self.train)

    def step_count(self, per_epoch: int) -> int:
        """Steps of the phase; the most there can be when evaluations end it."""
        if self.epochs is not None:
            return max(1, round(self.epochs * per_epoch))
        return self.steps or self.max_steps or 0


_KINDS = {field.name: str(field.type) for field in fields(Phase)}


def parse(text: str, *, train: str | None = None, steps: int | None = None, epochs: float | None = None) -> Phase:
    """Reads ``name=head steps=200 train="head/.*" learning_rate=1e-3``.

    Args:
        text: keys and values as a shell splits them.
        train, steps, epochs: what the run says for phases that do not say it.

    Raises:
        PhaseError: an unknown key, a value that is no number, a missing or doubled key.
        FilterError, ScheduleError: from ``train`` and ``schedule``.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise PhaseError(f"phase {text!r}: {error}") from None
    values: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _KINDS or not equals:
            known = list(_KINDS)
            raise PhaseError(
                f"phase {text!r}: `{word}` is no key=value of a phase; keys: {', '.join(known)}{nearest(key, known)}"
            )
        if key in values:
            raise PhaseError(f"phase {text!r}: `{key}` is given twice")
        values[key] = _value(text, key, value)
    values.setdefault("name", "train")
    if "train" not in values:
        if train is None:
            raise PhaseError(f"phase {text!r}: it has no train=FILTER, and there is no --train for all phases")
        values["train"] = train
    if not {"steps", "epochs", "until"} & set(values):
        if steps is not None:
            values["steps"] = steps
        elif epochs is not None:
            values["epochs"] = epochs
    return Phase(**values)  # type: ignore[arg-type]


def _value(text: str, key: str, value: str) -> object:
    kind = _KINDS[key]
    if kind.startswith("str"):
        if not value:
            raise PhaseError(f"phase {text!r}: {key}= is empty")
        return value
    pattern, convert, what = (
        (r"[+-]?\d{1,18}", int, "a whole number") if kind.startswith("int") else (r"[^_]+", float, "a number")
    )
    try:
        if not re.fullmatch(pattern, value):
            raise ValueError
        return convert(value)
    except ValueError:
        raise PhaseError(f"phase {text!r}: {key}={value!r} is not {what}") from None


class Position(NamedTuple):
    """Where a run is: the phase, its first step, and why the phases before it ended."""

    phase: int
    from_step: int
    ended: tuple[tuple[int, str], ...]  # (to_step, reason) of each phase before


def locate(
    phases: Sequence[Phase], per_epoch: int, step: int, evaluations: Sequence[Evaluation], monitor: Monitor
) -> Position:
    """The phase that the next step belongs to, after ``step`` steps; ``len(phases)`` at the end."""
    from_step = 0
    ended: list[tuple[int, str]] = []
    for number, phase in enumerate(phases):
        to_step, reason = from_step + phase.step_count(per_epoch), "steps"
        if phase.until:
            reason = "max_steps"
            mine = [e for e in evaluations if from_step < e.step <= min(step, to_step)]
            at = plateau(mine, monitor, patience=phase.patience, min_delta=phase.min_delta)
            if at is not None and at < to_step:
                to_step, reason = at, "plateau"
        if step < to_step:
            return Position(number, from_step, tuple(ended))
        ended.append((to_step, reason))
        from_step = to_step
    return Position(len(phases), from_step, tuple(ended))


def plateau(
    evaluations: Sequence[Evaluation], monitor: Monitor, *, patience: int, min_delta: float = 0.0
) -> int | None:
    """The step at which ``patience`` evaluations in a row were no better than the best, or None."""
    best, since = -math.inf, 0
    for evaluation in evaluations:
        now = score(evaluation, monitor)
        if now > best + min_delta:
            best, since = now, 0
        else:
            since += 1
            if since >= patience:
                return evaluation.step
    return None


def score(evaluation: Evaluation, monitor: Monitor) -> float:
    """How good an evaluation is; more is better, and NaN is worst."""
    value = evaluation.accuracy if monitor == "eval_accuracy" else -evaluation.loss
    return -math.inf if value is None or math.isnan(value) else value


def best(evaluations: Sequence[Evaluation], monitor: Monitor) -> Evaluation | None:
    """The first of the best evaluations."""
    return max(evaluations, key=lambda e: score(e, monitor), default=None)
