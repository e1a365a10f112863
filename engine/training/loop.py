"""The training loop, which runs phases step by step.

The loop owns neither the step nor the loss nor the optimizer. Its state is small and explicit (``State``), and the
current phase is computed from it (engine.training.phases), so a run that is killed and resumed takes the same course.
Anything else that should happen (logging, checkpoints) is an action: a function that is called with each event.

A run is a generator that asks for its steps (``Loop.course``), so several runs can go on in turn or train together
(engine.training.members); ``Loop.run`` takes the steps of one run itself.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine import part_times
from engine.distribution.distribution import ALONE, Distribution
from engine.selection.proof import FreezeProof
from engine.selection.selection import Selection
from engine.training import phases as phase_rules
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation, Monitor, Phase
from engine.training.rates import Rates
from engine.training.schedules import Schedule
from engine.training.step import TrainStep
from engine.training.step_batch import COUNT
from engine.training.step_result import NonFiniteError, StepResult


class Course(NamedTuple):
    """A schedule that runs over several phases: the steps before this one, and those of all."""

    before: int
    total: int


@dataclass(frozen=True)
class Stage:
    """A phase with its selection, optimizer, schedule and learning rates resolved.

    The schedule scales ``learning_rate`` and ``rates`` alike: the latter hold for the variables that their rules match.
    With a ``course`` it runs over several phases. ``ended_by`` says what has ended the phase, if not its number of steps.
    """

    phase: Phase
    selection: Selection
    optimizer: Optimizer
    schedule: Schedule
    learning_rate: float
    rates: Rates | None = None
    course: Course | None = None
    ended_by: str | None = None

    def factor_at(self, step: int, length: int) -> float:
        """The factor of the schedule at a step of the phase, counted from 0, if the phase has ``length`` steps."""
        before, total = self.course or (0, length)
        return self.schedule.factor_at(before + step, total, learning_rate=self.learning_rate)


@dataclass
class State:
    """The state that a resume needs besides variables and slots.

    Attributes:
        step: the number of steps trained, including skipped ones.
        proof: the freeze proof begun at the start of the current phase; None between phases.
        proven: for each phase that has ended, the paths of frozen variables that changed; empty if the proof holds.
    """

    step: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    proof: FreezeProof | None = None
    proven: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "evaluations": [e.without_tables().to_json() for e in self.evaluations[:-1]]
            + [e.to_json() for e in self.evaluations[-1:]],  # tables of classes are in metrics.jsonl, and may be large
            "proof": dict(self.proof.before) if self.proof else None,
            "proven": self.proven,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        return cls(
            step=int(value["step"]),
            evaluations=[Evaluation.from_json(e) for e in value["evaluations"]],
            proof=FreezeProof(value["proof"]) if value["proof"] is not None else None,
            proven=[list(changed) for changed in value["proven"]],
        )


class StepRequest(NamedTuple):
    """A step that a run asks for: what ``TrainStep`` is called with.

    Attributes:
        learning_rate, rates: those of this step; the schedule is part of them.
        stopping: whether this worker wants to stop after the step.
    """

    stage: Stage
    batch: Mapping[str, Any]
    learning_rate: float
    rates: Rates | None = None
    stopping: bool = False

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the call, besides the selection and the batch."""
        more: dict[str, Any] = {} if self.rates is None else {"rates": self.rates}
        if self.stopping:
            more["stopping"] = True
        return {"learning_rate": self.learning_rate, "optimizer": self.stage.optimizer, **more}


Steps = Generator[StepRequest, StepResult, "Outcome"]


class LoopError(RuntimeError):
    """Training cannot continue."""


class Event(NamedTuple):
    """Something that happened in the loop.

    Attributes:
        kind: "phase" (a phase begins), "step", "evaluation", "phase_end" or "checkpoint" (the state is consistent and
            can be saved now).
        state, stage: the state after the event, and the current stage.
        result, learning_rate, examples: for a "step", its result, learning rate and number of examples.
        rates: for a "step", the learning rates by filter; None where the stage has none.
        seconds: for a "step", the time it took, including its batch; and, in a run that is paused, the pause before its
            result arrived.
        skipped: for a "step", the number of steps skipped so far, including this one.
        force: for a "checkpoint", whether to save even if none is due.
    """

    kind: str
    state: State
    stage: Stage
    result: StepResult | None = None
    learning_rate: float = 0.0
    seconds: float = 0.0
    examples: int = 0
    skipped: int = 0
    force: bool = False
    rates: Rates | None = None


Action = Callable[[Event], None]


class Outcome(NamedTuple):
    """How a run ended. ``reason`` is "done", "early_stop" or "stopped" (by ``Loop.stop``)."""

    reason: str
    state: State


@dataclass(frozen=True)
class Loop:
    """Runs the stages of a training run.

    Attributes:
        batches: returns the batches of a stage's steps [start, stop), as a pure function of these. It is called after
            the "phase" event.
        per_epoch: the number of steps in an epoch.
        evaluate: returns the evaluation of a stage after a number of steps.
        eval_every: the number of steps between evaluations. The model is also evaluated at the start and at the end of
            each phase.
        early_stop: the number of consecutive evaluations without improvement after which the run ends; None never ends
            it early.
        stop: is called before each step; True ends the run.
        distribution: the workers that run the same loop. They stop after the same step, when any of them wants to, and a
            phase's proof holds if it does on all of them.
        before_reading: is called before the loop, or what it calls, reads or writes values of the network outside of a
            step: before a freeze proof, an evaluation, the "phase" and "phase_end" events, and a "checkpoint" with
            ``force``. It is not called for the "step" and the "checkpoint" that follow every step; an action that reads
            values there must see to it itself.
    """

    step: TrainStep
    stages: Sequence[Stage]
    batches: Callable[[Stage, int, int], Iterator[Mapping[str, Any]]]
    per_epoch: int
    evaluate: Callable[[Stage, int], Evaluation]
    eval_every: int
    actions: Sequence[Action] = ()
    early_stop: int | None = None
    monitor: Monitor = "eval_loss"
    stop: Callable[[], bool] = lambda: False
    distribution: Distribution = ALONE
    before_reading: Callable[[], None] = lambda: None

    def run(self, state: State) -> Outcome:
        """Trains from ``state`` until the last stage has ended or the run is stopped."""
        with contextlib.closing(self.course(state)) as course:
            advance = functools.partial(next, course)
            while True:
                try:
                    request = advance()
                except StopIteration as end:
                    outcome: Outcome = end.value
                    return outcome
                try:
                    with part_times.part("first run"):
                        result = self.step(request.stage.selection, request.batch, **request.arguments())
                    advance = functools.partial(course.send, result)
                except NonFiniteError as error:
                    advance = functools.partial(course.throw, error)

    def course(self, state: State) -> Steps:
        """A run from ``state`` as a generator: it yields each step that it asks for, and returns how the run ended.

        The sender takes the step with ``step``, and sends its result; or throws its NonFiniteError, which raises LoopError
        as ``run`` does. A run that is not advanced is paused. To close the generator ends the run between two steps.
        """
        while True:
            where = self._locate(state)
            if where.phase == len(self.stages):
                return Outcome("done", state)
            stage = self.stages[where.phase]
            self.before_reading()
            if state.proof is None:
                state.proof = FreezeProof.begin(stage.selection)
            self._tell(Event("phase", state, stage))
            if any(self.distribution.exchange(bool(self.stop()))):  # preparing a phase may take long
                self._tell(Event("checkpoint", state, stage, force=True))
                return Outcome("stopped", state)
            if not state.evaluations:
                self._evaluate(state, stage)
            reason = yield from self._run_phase(state, stage, where)
            if reason is not None:
                return Outcome(reason, state)

    def _run_phase(
        self, state: State, stage: Stage, where: phase_rules.Position
    ) -> Generator[StepRequest, StepResult, str | None]:
        """Trains until the phase ends (and returns None) or the run ends (and returns the reason)."""
        length = stage.phase.step_count(self.per_epoch)
        last = where.from_step + length
        if self._stopped_early(state):  # a resumed run that had ended is not continued
            return "early_stop"
        batches = self.batches(stage, state.step, last)
        several, stopping = self.distribution.workers > 1, False
        try:
            while True:
                if stopping or (not several and self.stop()):
                    self.before_reading()
                    self._tell(Event("checkpoint", state, stage, force=True))
                    return "stopped"
                result = yield from self._step(state, stage, batches, state.step - where.from_step, length)
                stopping = several and result.stopping
                if state.step % self.eval_every == 0 or state.step == last:
                    self._evaluate(state, stage)
                ended = self._locate(state).phase != where.phase
                stopped = self._stopped_early(state)
                if ended or stopped:
                    self._end_phase(state, stage)
                    return "early_stop" if stopped else None
                self._tell(Event("checkpoint", state, stage))
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _step(
        self, state: State, stage: Stage, batches: Iterator[Mapping[str, Any]], number: int, length: int
    ) -> Generator[StepRequest, StepResult, StepResult]:
        started = time.perf_counter()
        batch = next(batches)
        factor = stage.factor_at(number, length)
        rate = stage.learning_rate * factor
        rates = None if stage.rates is None else stage.rates.scaled(factor)
        stopping = self.distribution.workers > 1 and self.stop()
        before = self.step.steps
        try:
            result = yield StepRequest(stage, batch, rate, rates, stopping)
        except NonFiniteError as error:
            state.step += self.step.steps - before  # the last of too many skipped steps counts
            now = f"{rate:g}" + ("" if rates is None else f"; by filter {rates}")
            raise LoopError(
                f"{error} (phase {stage.phase.name!r}): lower the learning rate (now {now}), warm it up, or clip the "
                "gradient"
            ) from None
        state.step += 1
        seconds = time.perf_counter() - started
        examples = len(batch["index"]) if "index" in batch else len(next(iter(batch.values())))
        examples = batch.get(COUNT, examples)
        self._tell(Event("step", state, stage, result, rate, seconds, examples, self.step.skipped, rates=rates))
        return result

    def _evaluate(self, state: State, stage: Stage) -> None:
        self.before_reading()
        state.evaluations.append(self.evaluate(stage, state.step))
        self._tell(Event("evaluation", state, stage))

    def _end_phase(self, state: State, stage: Stage) -> None:
        self.before_reading()
        if state.proof is not None:
            found = self.distribution.exchange(state.proof.changed(stage.selection))
            state.proven.append([path for path in state.proof.before if any(path in changed for changed in found)])
        state.proof = None
        self._tell(Event("phase_end", state, stage))
        self._tell(Event("checkpoint", state, stage, force=True))

    def _locate(self, state: State) -> phase_rules.Position:
        phases = [stage.phase for stage in self.stages]
        return phase_rules.locate(phases, self.per_epoch, state.step, state.evaluations, self.monitor)

    def _stopped_early(self, state: State) -> bool:
        patience, past = self.early_stop, state.evaluations
        return patience is not None and phase_rules.find_plateau(past, self.monitor, patience=patience) is not None

    def _tell(self, event: Event) -> None:
        for action in self.actions:
            action(event)
