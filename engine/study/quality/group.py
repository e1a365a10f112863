"""Trials of one strategy in one process: they share a network, its traces, the cuts and the feature caches.

Where a phase trains from cached features, the steps of all trials are computed together (engine.training.members). Other
phases are as fast one trial after the other, and need less memory so.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.data.batch_names import list_inputs
from engine.feature_cache.policy import CachePolicy
from engine.recipes.auto_freezing import AutoFreezing
from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import requested_phases, resolve_stages
from engine.recipes.task import Task
from engine.selection.proof import weights_sha256
from engine.study.quality.bench import Stand
from engine.study.quality.trial import Trial
from engine.training.loop import Loop, LoopError, Outcome, Stage, State, StepRequest
from engine.training.members import Member, Members
from engine.training.phases import Evaluation
from engine.training.step import TrainStep
from engine.training.step_result import NonFiniteError, StepResult

Stop = Callable[[], bool]


class Stopped(Exception):  # noqa: N818 - not an error
    """The study is to stop."""


class Course:
    """A trial that is being trained.

    Attributes:
        steps, points: the number of steps trained, and the evaluations so far.
        ended: how it ended: "done", "early_stop" or "diverged"; None while it can go on.
        reason: why it diverged; "" if it did not.
        seconds: the time that it took; of steps that were computed together, its share.
    """

    def __init__(self, trial: Trial, config: FinetuneConfig, stand: Stand, group: Group) -> None:
        self.trial, self.config, self._stand, self._first = trial, config, stand, group.first
        self.task = stand.task_of(trial.seed)
        self.stages = resolve_stages(config, self.task, requested_phases(config, self.task))
        if len(self.stages) == 1 and self.stages[0].selection in stand.filled:
            config = dataclasses.replace(config, cache="require")  # whatever it would decide alone: they are there
        self.member = group.members.add(stand.start_of(trial.seed))
        self.policy = group.open_policy(self.task, self.member.step, config)
        self.member.activate()
        self._given: dict[str, Any] = {
            "per_epoch": self.task.per_epoch,
            "eval_every": config.eval_every or self.task.per_epoch,
        }
        self.decisions = self.policy.decide(self.stages, **self._given)
        self._freezing = self._prepare_freezing()
        self.state, self.reason, self.seconds = State(), "", 0.0
        self.ended: str | None = None
        self._course: Generator[StepRequest, StepResult, Outcome] | None = None
        self.request: StepRequest | None = None

    def begin(self) -> None:
        """Prepares its first step."""
        loop = Loop(
            step=self.member.step,
            stages=self.stages,
            batches=self.policy.batches,
            evaluate=self._evaluate,
            actions=(*self._freezing, self.policy),
            early_stop=self.config.early_stop,
            monitor=self.config.monitor,
            before_reading=self.member.activate,
            **self._given,
        )
        self._course = loop.course(self.state)
        self._take(lambda course: next(course))

    def send(self, result: StepResult | NonFiniteError) -> None:
        """Takes the result of its step, and prepares the next one."""
        if isinstance(result, NonFiniteError):
            self._take(lambda course: course.throw(result))
        else:
            self._take(lambda course: course.send(result))

    @property
    def steps(self) -> int:
        return self.state.step

    @property
    def points(self) -> list[dict[str, Any]]:
        return [{"step": e.step, "eval_accuracy": e.accuracy, "eval_loss": e.loss} for e in self.state.evaluations]

    @property
    def is_cached(self) -> bool:
        """Whether its next step trains from cached features."""
        return self.request is not None and not list_inputs(self.request.batch)

    def describe(self) -> dict[str, Any]:
        """What its file says of it."""
        stages = self.stages[: len(self.state.proven)]
        trained = {entry.path for stage in self.stages for entry in stage.selection.trained}
        moved = self.moved()
        entries = [entry for entry in self.task.variables if entry.path in moved]
        return {
            "steps": self.steps,
            "points": self.points,
            "seconds": self.seconds,
            "phases": [
                {"name": s.phase.name, "train": s.phase.train, "steps": s.phase.step_count(self.task.per_epoch)}
                for s in self.stages
            ],
            "auto_freeze": next(each.to_json() for each in self._freezing) if self._freezing else None,
            "cached": [row["used"] for row in self.policy.facts()["phases"]],
            "trained": sorted(moved),
            "trained_parameters": sum(entry.size for entry in entries if entry.path in trained),
            "frozen_parameters": sum(e.size for e in self.task.variables if e.path not in moved),
            "parameters": self.task.variables.parameters,
            "freeze_verified": not any(self.state.proven) if stages else None,
            "weights_sha256": weights_sha256(self.values().items()),
        }

    def moved(self) -> set[str]:
        """The paths of the variables that it may change."""
        return {e.path for stage in self.stages for e in (*stage.selection.trained, *stage.selection.moving)}

    def values(self) -> dict[str, np.ndarray]:
        """The present values of the variables that it may change."""
        moved = self.moved()
        return self.member.values([entry.path for entry in self.task.variables if entry.path in moved])

    def close(self) -> None:
        """Frees what it holds."""
        if self._course is not None:
            self._course.close()
        self.policy.close()
        self.member.close()

    def _take(self, advance: Callable[[Generator[StepRequest, StepResult, Outcome]], StepRequest]) -> None:
        assert self._course is not None
        self.request = None
        try:
            self.request = advance(self._course)
        except StopIteration as end:
            self.ended = end.value.reason
        except LoopError as error:
            self.ended, self.reason = "diverged", str(error)

    def _prepare_freezing(self) -> list[AutoFreezing]:
        """What moves the frost line while the trial trains, if anything does."""
        if self.config.auto_freeze is None:
            return []
        given: dict[str, Any] = {"decisions": self.decisions, "eval_every": self._given["eval_every"]}
        return [AutoFreezing(self.config, self.task, self.stages, self.policy, **given, say=lambda line: None)]

    def _evaluate(self, stage: Stage, steps: int) -> Evaluation:
        if steps == 0 and self.trial.seed in self._first:
            return self._first[self.trial.seed]
        batches, watched = self.policy.evaluation()
        found = self._stand.evaluator(stage.selection, batches, watched=watched)
        accuracy = found.metrics.get("accuracy")
        evaluation = Evaluation(steps, stage.phase.name, found.loss, accuracy, found.frozen_output_norm)
        if steps == 0:
            self._first[self.trial.seed] = evaluation
        return evaluation


class Group:
    """The trials of one strategy.

    Args:
        config: that of any of them.
        data: the fingerprint of the source.
        caches: the folder of the feature caches.
        stop: asked between steps; True raises ``Stopped``.
    """

    def __init__(
        self, config: FinetuneConfig, stand: Stand, *, data: str, caches: pathlib.Path, stop: Stop = lambda: False
    ) -> None:
        self.stand, self._data, self._caches, self._stop = stand, data, caches, stop
        self.step, self._cuts = stand.tools(config)
        stand.put(stand.task.seed, {})
        self.members = Members(stand.task.variables, self.step)
        self.courses: dict[Trial, Course] = {}
        self._done: set[Hashable] = set()
        self.first: dict[int, Evaluation] = {}  # by seed, that before the first step, which no rate changes

    def add(self, trial: Trial, config: FinetuneConfig) -> Course:
        """Adds a trial."""
        self.courses[trial] = Course(trial, config, self.stand, self)
        return self.courses[trial]

    def advance(
        self, trials: Sequence[Trial], until: int, tell: Callable[[Course], None] = lambda course: None
    ) -> None:
        """Trains each of these until it has been evaluated after ``until`` steps, or has ended; ``tell`` hears of steps."""
        waiting = [self.courses[trial] for trial in trials]
        for course in waiting:
            if course.request is None and course.ended is None:
                self._timed([course], course.begin, "begin")
        while waiting := [course for course in waiting if course.ended is None and course.steps < until]:
            now = [course for course in waiting if course.is_cached] if waiting[0].is_cached else waiting[:1]
            requests = {course.member: course.request for course in now if course.request is not None}
            kind = len(now), now[0].request and now[0].request.stage.selection
            self._timed(now, lambda: self._train(now, requests), kind)  # noqa: B023 - called at once
            for course in now:
                tell(course)
            if self._stop():
                raise Stopped

    def _train(self, courses: Sequence[Course], requests: Mapping[Member, StepRequest]) -> None:
        results = self.members.train(requests)
        for course in courses:
            course.send(results[course.member])

    def open_policy(self, task: Task, step: TrainStep, config: FinetuneConfig, **more: Any) -> CachePolicy:
        """What keeps the features of a trial."""
        return CachePolicy(
            step,
            self.stand.evaluator,
            train=task.train_batches(),
            evaluation=self.stand.eval_batches(config, task.source.eval),
            data=self._data,
            options=config.cache_options(self._caches),
            rows_at_once=step.micro_batch_size or config.batch_size,
            cuts=self._cuts,
            **{"say": lambda line: None, **more},
        )

    def close(self) -> None:
        for course in self.courses.values():
            course.close()
        self.courses.clear()

    def _timed(self, courses: Sequence[Course], work: Callable[[], None], kind: Hashable) -> None:
        """Does something that counts toward the time of trials, but not the first of its kind: that is traced for all."""
        started = time.perf_counter()
        work()
        each = (time.perf_counter() - started) / len(courses)
        if kind not in self._done:
            self._done.add(kind)
            return
        for course in courses:
            course.seconds += each
