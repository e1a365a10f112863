"""The runners of benchmark_freezing that the engine's loop drives, and the engine among them."""

from __future__ import annotations

import abc
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.feature_cache.policy import CacheOptions, CachePolicy
from engine.frostline.watch import frozen_output_norms
from engine.study.cost import Cost, of_step
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, LoopError, Stage, State
from engine.training.optimizer_state import Slots
from engine.training.phases import Evaluation
from engine.training.step import TrainStep
from scripts.benchmark_freezing_job import Setting, StudyError
from scripts.benchmark_freezing_record import LeftOut, NotFiniteError, Record

Watching = Callable[[Stage, int], None]


class _Enough(Exception):  # noqa: N818 - no error
    """A budget of steps ended as a phase did."""


class LoopRunner(abc.ABC):
    """A step that the engine's loop drives through a job's phases.

    Attributes:
        record: what was measured.
        phases: what each phase did: name, train, from_step, to_step, and the frozen variables that changed.
    """

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, budget: bool) -> None:
        self.setting, self.stages, self.budget = setting, list(stages), budget
        self.record = Record()
        self.phases: list[dict[str, Any]] = []
        self.step: Any = None
        self.watch: Watching | None = None
        self._last: Mapping[str, Any] = {}
        self._samples: dict[str, Mapping[str, Any]] = {}
        self._fresh, self._traced, self._from = False, 0, 0

    def run(self) -> None:
        """Trains to the end.

        Raises:
            NotFiniteError: a step that the step refused.
        """
        job, steps = self.setting.job, self.setting.job.steps
        state = State()
        loop = Loop(
            step=self.step,
            stages=self.stages,
            batches=self._watched,
            per_epoch=self.setting.batches.per_epoch,
            evaluate=self.evaluate,
            eval_every=job.eval_every,
            actions=(self._before, self._after),
            stop=lambda: self.budget and state.step >= steps,
        )
        self.record.begin()
        try:
            loop.run(state)
        except _Enough:
            state.proof = None  # of a phase without steps
        except LoopError as error:
            raise NotFiniteError(str(error), self._stage, self._last) from None
        if state.proof is not None:  # a budget ended within a phase
            if state.evaluations[-1].step != state.step:
                self.record.evaluation(self.evaluate(self._stage, state.step))
            self._end_phase(state.step, state.proof.changed(self._stage.selection))
        self.record.end()

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        return self.setting.batches.between(start, stop)

    @abc.abstractmethod
    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        """On the evaluation examples, after so many steps."""

    def begin_phase(self, stage: Stage) -> None:  # noqa: B027 - a step may need nothing
        """Called before a phase's first batch is made."""

    @abc.abstractmethod
    def slot_bytes(self) -> int:
        """Of the phase that runs."""

    @abc.abstractmethod
    def cost(self, stage: Stage) -> Cost:
        """What a step of a phase that was run costs."""

    def traces(self) -> int:
        """How often something was traced so far: a step that traced is not timed."""
        return 0

    def close(self) -> None:  # noqa: B027 - a step may hold nothing
        """Lets go of what the run held."""

    def _watched(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        inner = self.batches(stage, start, stop)
        try:
            for batch in inner:
                self._last = batch
                self._samples.setdefault(stage.phase.name, batch)
                yield batch
        finally:
            inner.close()  # type: ignore[attr-defined]

    def _before(self, event: Event) -> None:
        if event.kind == "phase":
            if self.budget and event.state.step >= self.setting.job.steps:
                raise _Enough
            self._stage, self._fresh = event.stage, True
            self._from = event.state.step
            self.begin_phase(event.stage)

    def _after(self, event: Event) -> None:
        if event.kind == "step" and event.result is not None:
            traced = self.traces()
            timed = not self._fresh and traced == self._traced
            if self._fresh:
                self.record.slot_bytes = max(self.record.slot_bytes, self.slot_bytes())
            self._fresh, self._traced = False, traced
            loss = float(event.result.loss)
            self.record.step(loss, seconds=event.seconds, examples=event.examples, timed=timed)
        elif event.kind == "evaluation":
            self.record.evaluation(event.state.evaluations[-1])
            if self.watch is not None:
                with self.record.pause():
                    self.watch(event.stage, event.state.step)
        elif event.kind == "phase_end":
            self._end_phase(event.state.step, event.state.proven[-1])

    def _end_phase(self, to_step: int, changed: Sequence[str]) -> None:
        phase = self._stage.phase
        row = {"name": phase.name, "train": phase.train, "from_step": self._from, "to_step": to_step}
        self.phases.append(row | {"changed": list(changed)})


class EngineRunner(LoopRunner):
    """TrainStep and Evaluator; with ``cache``, a folder, phases train from kept features where they can."""

    def __init__(
        self, setting: Setting, stages: Sequence[Stage], *, budget: bool, cache: pathlib.Path | None = None
    ) -> None:
        super().__init__(setting, stages, budget=budget)
        self.step: TrainStep = TrainStep(
            setting.loss_fn,
            setting.optimizer,
            seed=setting.job.seed,
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.loss_scale(),
        )
        self.evaluator = Evaluator(setting.loss_fn, watch=frozen_output_norms)
        self.caching: CachePolicy | None = None
        if cache is not None:
            self.caching = CachePolicy(
                self.step,
                self.evaluator,
                train=setting.batches,
                evaluation=setting.evaluation,
                data=setting.job.data_sha256,
                options=CacheOptions(mode="auto", root=cache),
                say=lambda _: None,
            )

    def begin_phase(self, stage: Stage) -> None:
        """Optimizer state begins anew, as it must in Keras and TF1; the phase's cache is filled.

        Raises:
            LeftOut: the run's only phase cannot be cached.
            StudyError: it can, and could not be kept.
        """
        self.step.slots, self.step.loss_scale = Slots(), self.setting.loss_scale()
        if self.caching is None:
            return
        # asked for one phase at a time: a plateau may never reach the later ones; where it can be, it is
        started = time.perf_counter()
        choice = self.caching.decide(
            [stage],
            per_epoch=self.setting.batches.per_epoch,
            eval_every=self.setting.job.eval_every,
            saved=[True],
        )[-1]
        self.record.preparing += time.perf_counter() - started
        if len(self.stages) == 1 and not choice.used:
            raise LeftOut(choice.reason)
        self.caching(Event("phase", State(), stage))
        kept = next(row for row in self.caching.facts()["phases"] if row["name"] == stage.phase.name)
        if choice.used and not kept["used"]:
            raise StudyError(kept["reason"])

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        if self.caching is None:
            return super().batches(stage, start, stop)
        return self.caching.batches(stage, start, stop)

    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        given, watched = (self.setting.evaluation, None) if self.caching is None else self.caching.evaluation()
        found = self.evaluator(stage.selection, given, watched=watched)
        return Evaluation(steps, stage.phase.name, found.loss, found.metrics.get("accuracy"), found.frozen_output_norm)

    def slot_bytes(self) -> int:
        return self.step.slots.bytes()

    def cost(self, stage: Stage) -> Cost:
        return of_step(self.step, stage.selection, self._samples[stage.phase.name])

    def traces(self) -> int:
        return self.step.traces
