"""The runners that the engine's loop drives, the engine's own among them."""

from __future__ import annotations

import abc
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from engine.feature_cache.options import CacheOptions
from engine.feature_cache.policy import CachePolicy
from engine.frostline.watch import frozen_output_norms
from engine.study.cost import Cost, step_cost
from engine.study.job import Setting, StudyError
from engine.study.measurements import LeftOut, Measurements, NotFiniteError
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, LoopError, Stage, State
from engine.training.optimizer_state import Slots
from engine.training.phases import Evaluation
from engine.training.step import TrainStep

Watch = Callable[[Stage, int], None]


class Runner(Protocol):
    """A way to train a job's phases; constructed as ``Runner(setting, stages, scratch=folder)``.

    ``scratch`` is a folder that does not exist yet; a runner may create it, and it is removed after the run. ``run`` trains
    to the end, unless it raises LeftOut or NotFiniteError.

    Attributes:
        phases: for each phase its name, train, from_step, to_step, and the frozen variables that changed.
        skipped_steps: the number of steps that were skipped because they were not finite.
        cache: ``used``, ``bytes`` and ``seconds`` of the feature cache; None without one.
    """

    measurements: Measurements
    phases: list[dict[str, Any]]

    @classmethod
    def why_not(cls, setting: Setting) -> str | None: ...

    def run(self) -> None: ...

    def cost(self, stage: Stage) -> Cost: ...

    def close(self) -> None: ...


class _BudgetUsedUp(Exception):  # noqa: N818 - not an error
    """The steps of a run ended as a phase did."""


class LoopRunner(abc.ABC):
    """A runner with a step that ``engine.training.loop.Loop`` drives through the phases."""

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, scratch: pathlib.Path) -> None:
        self.setting, self.stages, self.scratch = setting, list(stages), scratch
        self.budget = any(stage.phase.until for stage in stages)  # phases end by evaluation: steps are counted over all
        self.measurements = Measurements()
        self.phases: list[dict[str, Any]] = []
        self.step: Any = None
        self.watch: Watch | None = None
        self._last: Mapping[str, Any] = {}
        self._samples: dict[str, Mapping[str, Any]] = {}
        self._fresh, self._traced, self._from = False, 0, 0

    @classmethod
    def why_not(cls, setting: Setting) -> str | None:
        """Why this runner cannot run a job, whatever the strategy; None when it can."""
        del setting
        return None

    @property
    def skipped_steps(self) -> int:
        return int(self.step.skipped)

    @property
    def cache(self) -> dict[str, Any] | None:
        return None

    def run(self) -> None:
        """Trains to the end; raises NotFiniteError if the step refused a batch."""
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
        self.measurements.begin()
        try:
            loop.run(state)
        except _BudgetUsedUp:
            state.proof = None  # of a phase without steps
        except LoopError as error:
            raise NotFiniteError(str(error), self._stage, self._last) from None
        if state.proof is not None:  # a budget ended within a phase
            if state.evaluations[-1].step != state.step:
                self.measurements.add_evaluation(self.evaluate(self._stage, state.step))
            self._end_phase(state.step, state.proof.changed(self._stage.selection))
        self.measurements.end()

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        return self.setting.batches.between(start, stop)

    @abc.abstractmethod
    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        """Evaluates, after ``steps`` steps."""

    def begin_phase(self, stage: Stage) -> None:  # noqa: B027 - a step may need nothing
        """Prepares a phase, before its first batch is made."""

    @abc.abstractmethod
    def slot_bytes(self) -> int:
        """The size of the optimizer's slots in the current phase."""

    @abc.abstractmethod
    def cost(self, stage: Stage) -> Cost:
        """The arithmetic of a step of a phase that has been run."""

    def read_back(self, stage: Stage) -> None:  # noqa: B027 - a step may train the variables themselves
        """Gives the setting's variables the values that training has reached."""

    def traces(self) -> int:
        """How many times something has been traced; a step that traced is not timed."""
        return 0

    def close(self) -> None:  # noqa: B027 - a step may hold nothing
        """Releases what the run held."""

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
                raise _BudgetUsedUp
            self._stage, self._fresh, self._from = event.stage, True, event.state.step
            self.begin_phase(event.stage)

    def _after(self, event: Event) -> None:
        found = self.measurements
        if event.kind == "step" and event.result is not None:
            traced = self.traces()
            timed = not self._fresh and traced == self._traced
            if self._fresh:
                found.slot_bytes = max(found.slot_bytes, self.slot_bytes())
            self._fresh, self._traced = False, traced
            found.add_step(float(event.result.loss), seconds=event.seconds, examples=event.examples, timed=timed)
        elif event.kind == "evaluation":
            found.add_evaluation(event.state.evaluations[-1])
            if self.watch is not None:
                with found.pause():
                    self.watch(event.stage, event.state.step)
        elif event.kind == "phase_end":
            self._end_phase(event.state.step, event.state.proven[-1])

    def _end_phase(self, to_step: int, changed: Sequence[str]) -> None:
        phase = self._stage.phase
        row = {"name": phase.name, "train": phase.train, "from_step": self._from, "to_step": to_step}
        self.phases.append(row | {"changed": list(changed)})


class EngineRunner(LoopRunner):
    """The engine: TrainStep and Evaluator."""

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, scratch: pathlib.Path) -> None:
        super().__init__(setting, stages, scratch=scratch)
        self.step: TrainStep = TrainStep(
            setting.task.loss_fn,
            self.stages[0].optimizer,
            seed=setting.job.seed,
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.task.loss_scale(),
        )
        self.evaluator = Evaluator(setting.task.loss_fn, watch=frozen_output_norms)

    def begin_phase(self, stage: Stage) -> None:
        """Starts with new optimizer state, as Keras and TF1 must."""
        self.step.slots, self.step.loss_scale = Slots(), self.setting.task.loss_scale()

    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        return self._evaluated(stage, steps, self.setting.evaluation, None)

    def slot_bytes(self) -> int:
        return self.step.slots.bytes()

    def cost(self, stage: Stage) -> Cost:
        return step_cost(self.step, stage.selection, self._samples[stage.phase.name])

    def traces(self) -> int:
        return self.step.traces

    def _evaluated(self, stage: Stage, steps: int, batches: Any, watched: Any) -> Evaluation:
        found = self.evaluator(stage.selection, batches, watched=watched)
        return Evaluation(steps, stage.phase.name, found.loss, found.metrics.get("accuracy"), found.frozen_output_norm)


class CachedRunner(EngineRunner):
    """The engine, training from cached features in the phases in which it can."""

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, scratch: pathlib.Path) -> None:
        super().__init__(setting, stages, scratch=scratch)
        self.policy = CachePolicy(
            self.step,
            self.evaluator,
            train=setting.batches,
            evaluation=setting.evaluation,
            data=setting.job.data_sha256,
            options=CacheOptions(mode="auto", root=scratch),
            say=lambda _: None,
        )

    @property
    def cache(self) -> dict[str, Any] | None:
        facts = self.policy.facts()
        seconds = sum(row["seconds"] for row in facts["phases"])
        return {"used": facts["used"], "bytes": facts["bytes"], "seconds": seconds}

    def begin_phase(self, stage: Stage) -> None:
        """Starts with new optimizer state, and fills the cache of the phase.

        Raises LeftOut if the only phase cannot be cached, StudyError if it could be but its features cannot be stored.
        """
        super().begin_phase(stage)
        # decided for one phase at a time: a plateau may never reach the later ones
        started = time.perf_counter()
        choice = self.policy.decide(
            [stage], per_epoch=self.setting.batches.per_epoch, eval_every=self.setting.job.eval_every, saved=[True]
        )[-1]
        self.measurements.preparing += time.perf_counter() - started
        if len(self.stages) == 1 and not choice.used:
            raise LeftOut(choice.reason)
        self.policy(Event("phase", State(), stage))
        kept = next(row for row in self.policy.facts()["phases"] if row["name"] == stage.phase.name)
        if choice.used and not kept["used"]:
            raise StudyError(kept["reason"])

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        return self.policy.batches(stage, start, stop)

    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        return self._evaluated(stage, steps, *self.policy.evaluation())
