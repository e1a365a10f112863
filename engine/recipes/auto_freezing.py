"""Moves the frost line of a run up while it trains (``--auto_freeze``): an action of the loop.

All its phases share one budget of steps. The first trains what ``--train`` says, by default everything. When the lowest
part has stalled at an evaluation (engine.training.auto_freeze), the phase ends there, and one that trains less follows.
Slots, averages and the schedule of the learning rate go on in what still trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.distribution.distribution import ALONE, Distribution
from engine.feature_cache.decision import CacheDecision
from engine.feature_cache.policy import CachePolicy
from engine.frostline.line import FrostLine
from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import resolve_stage
from engine.recipes.task import Task
from engine.selection.levels import FreezablePart, find_freezable
from engine.selection.variables import NamedVariable
from engine.sizes import format_bytes
from engine.text import join_words
from engine.training.auto_freeze import AutoFreezeState, Move, measure_plasticity, parse_auto_freeze
from engine.training.checkpoint import CheckpointError
from engine.training.loop import Course, Event, Stage, State
from engine.training.phases import Phase, find_plateau

ENDED_BY = "auto_freeze"  # the reason why a phase ended, in run.json


class AutoFreezing:
    """Freezes parts of a model, from the input on, once they have stalled.

    Give it to the loop as its first action. It adds phases to ``stages``, the list that the loop runs, and what ``cache``
    decides about each of them to ``decisions``.

    Args:
        config, task, stages, decisions: what is trained; the lists are about the first phase only, also if a run is
            resumed.
        cache: decides whether the phases that are added train from cached features.
        eval_every: the number of steps between evaluations.
        state: what the run that is resumed has measured and decided; ``resume`` follows it.
        distribution: the workers, all of which do what the chief has measured.
        say: called with a line for each decision.

    Attributes:
        parts: the parts that may be frozen, the lowest first.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        task: Task,
        stages: list[Stage],
        cache: CachePolicy,
        *,
        decisions: list[CacheDecision],
        eval_every: int,
        state: AutoFreezeState | None = None,
        distribution: Distribution = ALONE,
        say: Callable[[str], None] = print,
    ) -> None:
        assert config.auto_freeze is not None
        self.rule = parse_auto_freeze(config.auto_freeze)
        self.state = AutoFreezeState() if state is None else state
        self._decisions = decisions
        self._config, self._task, self._stages, self._cache = config, task, stages, cache
        self._eval_every, self._distribution, self._say = eval_every, distribution, say
        self._steps = stages[0].phase.step_count(task.per_epoch)
        self.parts = find_freezable(task.variables, stages[0].phase.train, task.model.statistics)

    def describe(self) -> list[str]:
        """What will be decided when, as lines for people."""
        if not self.parts:
            return ["freeze:  there is no part below the last one that trains, so --auto_freeze will freeze nothing"]
        names, needed = [part.name for part in self.parts], self.rule.patience + 1
        lines = [
            f"freeze:  {join_words(names)}, in this order, each once its weights move at most {self.rule.threshold:g} times "
            f"as far between evaluations as they once did, at {self.rule.patience} evaluation{'s'[: self.rule.patience - 1]} in a row"
        ]
        if self._steps <= self._eval_every * needed:
            lines.append(
                f"         {self._steps} steps with an evaluation every {self._eval_every} are too few for that; a smaller "
                "--eval_every looks more often"
            )
        return lines

    def resume(self) -> None:
        """Repeats the moves of the run that is resumed; raises CheckpointError if they are not those of this model."""
        if self.state == AutoFreezeState():  # stopped before the first step
            return
        names = [part.name for part in self.parts]
        if self.state.frozen != names[: len(self.state.frozen)]:
            raise CheckpointError(
                f"auto_freeze: the checkpoint has frozen {join_words(self.state.frozen)}, which does not fit the model"
            )
        for entry in self._active():
            found = self.state.reference.get(entry.path)
            if found is None or found.shape != tuple(entry.variable.shape):
                raise CheckpointError(f"auto_freeze/{entry.path}: the checkpoint does not hold it for this model")
        done = 0
        for move in self.state.moves:
            done += len(move.parts)
            self._begin(move.phase, move.step, self.parts[done - 1], saved=[move.cached])
        if done:
            self._say(f"freeze | resumed with {join_words(self.state.frozen)} frozen")

    def __call__(self, event: Event) -> None:
        """Measures at each evaluation, and moves the frost line if the lowest part has stalled."""
        if event.kind != "evaluation" or not self._left():
            return
        now = {entry.path: entry.variable.numpy() for entry in self._active()}
        if self.state.reference:
            self._measure(event.state.step, now)
        self.state.reference = now
        if not self._ends(event.state):
            self._decide(event.state.step)
            self.state.reference = {entry.path: now[entry.path] for entry in self._active()}

    def _ends(self, state: State) -> bool:
        """Whether the run ends with this evaluation, so that there is nothing left to decide."""
        patience, monitor = self._config.early_stop, self._config.monitor
        early = patience is not None and find_plateau(state.evaluations, monitor, patience=patience) is not None
        return early or state.step >= self._steps

    def _left(self) -> list[FreezablePart]:
        """The parts that may be frozen and still train."""
        return self.parts[len(self.state.frozen) :]

    def _active(self) -> list[NamedVariable]:
        return [entry for part in self._left() for entry in part.freezes]

    def _measure(self, step: int, now: dict[str, np.ndarray]) -> None:
        before, found = self.state.reference, {}
        for part in self._left():
            paths = [entry.path for entry in part.freezes]
            found[part.name] = measure_plasticity([before[path] for path in paths], [now[path] for path in paths])
        self.state.measured.append((step, self._distribution.exchange(found)[0]))

    def _decide(self, step: int) -> None:
        left = self._left()
        values = [self.state.values(part.name) for part in left]
        count = self.rule.count_stalled(values)
        if not count:
            return
        frozen, values = left[:count], values[:count]
        phase = f"above_{frozen[-1].name}"
        decision = self._begin(phase, step, frozen[-1])
        move = Move(
            step=step,
            phase=phase,
            parts=tuple(part.name for part in frozen),
            plasticity=tuple(each[-1] for each in values),
            largest=tuple(max(each) for each in values),
            cached=decision.used,
        )
        self.state.moves.append(move)
        for line in _describe_move(move, decision):
            self._say(line)

    def _begin(
        self, name: str, step: int, last: FreezablePart, *, saved: Sequence[bool] | None = None
    ) -> CacheDecision:
        """Ends the current phase after ``step`` steps, and lets one follow in which ``last`` and all below it are frozen."""
        before, total = sum(stage.phase.steps or 0 for stage in self._stages[:-1]), self._steps
        ended = self._stages[-1]
        self._stages[-1] = dataclasses.replace(
            ended,
            phase=dataclasses.replace(ended.phase, steps=step - before, epochs=None),
            course=Course(before, total),
            ended_by=ENDED_BY,
        )
        stage = resolve_stage(self._config, self._task, Phase(name=name, train=last.train, steps=total - step))
        self._stages.append(dataclasses.replace(stage, course=Course(step, total)))
        given: dict[str, Any] = {"per_epoch": self._task.per_epoch, "eval_every": self._eval_every}
        self._decisions.append(self._cache.decide(self._stages[-1:], **given, saved=saved, existing=False)[-1])
        return self._decisions[-1]

    def to_json(self) -> dict[str, object]:
        """The entry ``auto_freeze`` of run.json."""
        return {"threshold": self.rule.threshold, "patience": self.rule.patience, **self.state.to_json()}


def _describe_move(move: Move, decision: CacheDecision) -> list[str]:
    """What was decided and why, as lines for people."""
    parts = zip(move.parts, move.plasticity, move.largest, strict=True)
    why = [f"{part} moved {now:.2%} ({now / most:.2f} of {most:.2%})" for part, now, most in parts]
    lines = [
        f"freeze | step {move.step}: {join_words(list(move.parts))} frozen: since the last evaluation {'; '.join(why)}"
    ]
    if isinstance(decision.line, FrostLine):
        lines.append(f"freeze | {move.phase}: {decision.line.describe()}")
    size = f" ({format_bytes(decision.bytes)} on disk)" if decision.used else ""
    return [*lines, f"cache  | {move.phase}: {'used' if decision.used else 'not used'}{size}; {decision.reason}"]
