"""The phases of a run. The current phase is a pure function of saved state: steps trained and evaluations made."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from engine.errors import InputError, check_range
from engine.selection import filters
from engine.text import nearest
from engine.training import schedules
from engine.training.rates import read_rates

Monitor = str  # eval_loss, eval_accuracy, or eval_NAME of a figure that evaluations have
MOST_REPEATS = MOST_PHASES = 1000


class PhaseError(InputError):
    """The text of a phase cannot be read, or its values are invalid."""


class Evaluation(NamedTuple):
    """A recorded evaluation after ``step`` steps; the accuracy is None if the loss has none.

    Attributes:
        figures: those of the metrics, by name; ``lower`` are the names of which a lower value is better.
    """

    step: int
    phase: str
    loss: float
    accuracy: float | None
    frozen_output_norm: float | None
    figures: Mapping[str, Any] = {}
    lower: Sequence[str] = ()

    def without_tables(self) -> Evaluation:
        """The same without figures that are tables, such as confusion matrices."""
        return self._replace(
            figures={name: value for name, value in self.figures.items() if not isinstance(value, list)}
        )

    def to_json(self) -> list[Any]:
        """The values in order, figures only where there are some."""
        return list(self if self.figures else self[:5])

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Evaluation:
        """What ``to_json`` wrote."""
        found = cls(*values)
        return found._replace(lower=tuple(found.lower))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one selection and its hyperparameters.

    Attributes:
        train: the filter, as text, of the variables to train.
        steps, epochs: the number of steps or of passes over the training part, which may be fractional.
        until: "plateau" ends the phase after ``patience`` consecutive evaluations that do not improve on the best one by
            more than ``min_delta``, or after ``max_steps`` steps.
        learning_rate, schedule, rates, weight_decay, decays, layer_decay, clip_norm: the values for this phase; None
            takes those of the run.
        losses: the outputs whose losses count, separated by commas, where a run has several; None means all.
        group, repeat: phases in a row with the same group take turns, ``repeat`` times (``expand_groups``).
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
    rates: str | None = None
    weight_decay: float | None = None
    decays: str | None = None
    layer_decay: float | None = None
    clip_norm: float | None = None
    losses: str | None = None
    group: str | None = None
    repeat: int | None = None

    def __post_init__(self) -> None:
        lengths = [key for key in ("steps", "epochs", "until") if getattr(self, key) is not None]
        if len(lengths) != 1:
            raise PhaseError(
                f"phase {self.name!r}: expected exactly one of steps=, epochs= and until=; got {lengths or 'none'}"
            )
        if self.until not in (None, "plateau"):
            raise PhaseError(f"phase {self.name!r}: until={self.until!r}: expected plateau")
        if self.until and self.max_steps is None:
            raise PhaseError(f"phase {self.name!r}: until=plateau needs max_steps=N, the largest number of steps")
        if self.max_steps is not None and not self.until:
            raise PhaseError(f"phase {self.name!r}: max_steps={self.max_steps} is valid only with until=plateau")
        try:
            for key in ("steps", "epochs", "patience", "max_steps", "learning_rate", "clip_norm"):
                check_range(key, getattr(self, key), above=0)
            for key in ("min_delta", "weight_decay"):
                check_range(key, getattr(self, key), 0)
            check_range("layer_decay", self.layer_decay, most=1, above=0)
            check_range("repeat", self.repeat, 1, MOST_REPEATS)
        except InputError as error:
            raise PhaseError(f"phase {self.name!r}: {error}") from None
        if self.schedule is not None:
            schedules.parse(self.schedule)
        try:
            for key in ("rates", "decays"):
                if (rules := getattr(self, key)) is not None:
                    read_rates(rules, name=key, trains={"train={}": self.train})
        except InputError as error:
            raise PhaseError(f"phase {self.name!r}: {error}") from None
        filters.parse_filter(self.train)

    def step_count(self, per_epoch: int) -> int:
        """Returns the number of steps of the phase, or their upper limit if evaluations end it."""
        if self.epochs is not None:
            return max(1, round(self.epochs * per_epoch))
        return self.steps or self.max_steps or 0

    def __str__(self) -> str:
        """The text that ``parse`` reads.

        Example:
            >>> str(Phase(name="head", train="@head", steps=20, learning_rate=0.01))
            'name=head train=@head steps=20 learning_rate=0.01'
        """
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        words = [
            (name, value) for name, value in given if value is not None and (name in _ALWAYS or value != _FIRST[name])
        ]
        return " ".join(f"{name}={shlex.quote(str(value))}" for name, value in words)


_ALWAYS = ("name", "train")
_FIRST = {field.name: field.default for field in fields(Phase)}
_KINDS = {field.name: str(field.type) for field in fields(Phase)}


def parse(text: str, *, train: str | None = None, steps: int | None = None, epochs: float | None = None) -> Phase:
    """Reads a phase from a text such as ``name=head steps=200 train="head/.*" learning_rate=1e-3``.

    It is split as a shell does. ``train``, ``steps`` and ``epochs`` are those of the run, for phases that give none.

    Raises:
        PhaseError: a key is unknown, missing or given twice, or a value is not a number.
        FilterError, ScheduleError: ``train`` or ``schedule`` is invalid.
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
                f"phase {text!r}: `{word}` is not a key=value of a phase; keys: {', '.join(known)}{nearest(key, known)}"
            )
        if key in values:
            raise PhaseError(f"phase {text!r}: `{key}` is given twice")
        values[key] = _value(text, key, value)
    values.setdefault("name", "train")
    if "train" not in values:
        if train is None:
            raise PhaseError(f"phase {text!r}: there is neither a train=FILTER nor a --train for all phases")
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


def expand_groups(phases: Sequence[Phase]) -> list[Phase]:
    """The phases in the order in which they train: those of a group in turns, ``repeat`` times.

    In turn 2 of the group ``turns``, the phase ``age`` is called ``turns.2.age``. A phase that repeats without a group is one
    by itself: ``NAME.1``, ``NAME.2``, and so on. Each turn is a phase like any other, with its own schedule.

    Raises:
        PhaseError: a group has no ``repeat``, or two; or its phases do not follow each other.

    Example:
        >>> texts = "name=a group=turns repeat=2 train=@head steps=3", "name=b group=turns train=@all steps=1"
        >>> [phase.name for phase in expand_groups([parse(text) for text in texts])]
        ['turns.1.a', 'turns.1.b', 'turns.2.a', 'turns.2.b']
    """
    found: list[Phase] = []
    seen: set[str] = set()
    runs = itertools.groupby(enumerate(phases), key=lambda pair: (pair[1].group, pair[1].group or pair[0]))
    for (group, _), members in runs:
        turn = [phase for _, phase in members]
        if group is not None:
            if group in seen:
                raise PhaseError(
                    f"phase {turn[0].name!r}: group={group}: its phases must follow each other; give the later ones another group"
                )
            seen.add(group)
        given = {phase.repeat: phase.name for phase in turn if phase.repeat is not None}
        if len(given) > 1:
            (one, first), (other, second) = list(given.items())[:2]
            raise PhaseError(
                f"phase {second!r}: repeat={other}, but phase {first!r} of group={group} has repeat={one}; a group repeats as a whole"
            )
        if group is not None and not given:
            raise PhaseError(
                f"phase {turn[0].name!r}: group={group} has no repeat=N, the number of turns of its phases"
            )
        if not given:
            found += turn
            continue
        for number in range(1, next(iter(given)) + 1):
            for phase in turn:
                name = f"{phase.name}.{number}" if group is None else f"{group}.{number}.{phase.name}"
                found.append(replace(phase, name=name, group=None, repeat=None))
    if len(found) > MOST_PHASES:
        raise PhaseError(f"phase: with all repeats there are {len(found):,} phases; expected at most {MOST_PHASES:,}")
    return found


class Position(NamedTuple):
    """The current phase of a run, its first step, and when and why the earlier phases ended."""

    phase: int
    from_step: int
    ended: tuple[tuple[int, str], ...]  # (to_step, reason) of each earlier phase


def locate(
    phases: Sequence[Phase], per_epoch: int, step: int, evaluations: Sequence[Evaluation], monitor: Monitor
) -> Position:
    """Finds the phase of the next step after ``step`` steps; ``len(phases)`` at the end of the run."""
    from_step = 0
    ended: list[tuple[int, str]] = []
    for number, phase in enumerate(phases):
        to_step, reason = from_step + phase.step_count(per_epoch), "steps"
        if phase.until:
            reason = "max_steps"
            mine = [e for e in evaluations if from_step < e.step <= min(step, to_step)]
            at = find_plateau(mine, monitor, patience=phase.patience, min_delta=phase.min_delta)
            if at is not None and at < to_step:
                to_step, reason = at, "plateau"
        if step < to_step:
            return Position(number, from_step, tuple(ended))
        ended.append((to_step, reason))
        from_step = to_step
    return Position(len(phases), from_step, tuple(ended))


def find_plateau(
    evaluations: Sequence[Evaluation], monitor: Monitor, *, patience: int, min_delta: float = 0.0
) -> int | None:
    """Returns the step at which ``patience`` consecutive evaluations had not improved on the best one, or None."""
    best, since = -math.inf, 0
    for evaluation in evaluations:
        now = score(evaluation, monitor)
        best, since = (now, 0) if now > best + min_delta else (best, since + 1)
        if since and since >= patience:
            return evaluation.step
    return None


def score(evaluation: Evaluation, monitor: Monitor) -> float:
    """Returns a number for comparing evaluations: higher is better, and NaN is worst."""
    name = monitor.removeprefix("eval_")
    value = evaluation.accuracy if name == "accuracy" else evaluation.figures.get(name)
    if name == "loss":
        value = evaluation.loss
    if value is None or math.isnan(value):
        return -math.inf
    return -value if name == "loss" or name in evaluation.lower else value


def best_evaluation(evaluations: Sequence[Evaluation], monitor: Monitor) -> Evaluation | None:
    """Returns the best evaluation, the first of several equal ones."""
    return max(evaluations, key=lambda e: score(e, monitor), default=None)
