"""The loop: runs phases step by step. It owns neither the step, the loss nor the optimizer.

State is small and explicit (``State``); which phase applies is computed from it (engine.training.phases), so
a run that is killed and resumed takes the same course. Actions are callables given each event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.selection.proof import FreezeProof
from engine.selection.selection import Selection
from engine.training import phases as phase_rules
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation, Monitor, Phase
from engine.training.schedules import Schedule
from engine.training.step import NonFiniteError, StepResult, TrainStep


@dataclass(frozen=True)
class Stage:
    """A phase with all that it needs resolved."""

    phase: Phase
    selection: Selection
    optimizer: Optimizer
    schedule: Schedule
    learning_rate: float


@dataclass
class State:
    """What a resume needs beside variables and slots.

    Attributes:
        step: steps trained, skipped ones included.
        evaluations: all evaluations so far.
        proof: digests of the current phase's frozen variables at its start; None between phases.
        proven: for each ended phase, the frozen variables that changed (none, if all is well).
    """

    step: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    proof: FreezeProof | None = None
    proven: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "evaluations": [list(e) for e in self.evaluations],
            "proof": dict(self.proof.before) if self.proof else None,
            "proven": self.proven,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        proof = value["proof"]
        return cls(
            step=int(value["step"]),
            evaluations=[Evaluation(*e) for e in value["evaluations"]],
            proof=FreezeProof(proof) if proof is not None else None,
            proven=[list(changed) for changed in value["proven"]],
        )


class LoopError(RuntimeError):
    """Training cannot go on."""


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        kind: "phase" (one begins), "step", "evaluation", "phase_end", "checkpoint" (state is whole
            and may be saved now).
        state: the state after it.
        stage: the stage it belongs to.
        step: of a "step": what it gave.
        learning_rate: of a "step".
        seconds: of a "step": its time, the batch included.
        examples: of a "step": how many examples it had.
        skipped: of a "step": steps skipped so far, this one included.
        force: of a "checkpoint": save whether or not one is due.
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


Action = Callable[[Event], None]


class Outcome(NamedTuple):
    """How a run ended. ``reason`` is "done", "early_stop" or "stopped" (asked from outside)."""

    reason: str
    state: State


@dataclass(frozen=True)
class Loop:
    """Everything a run is made of.

    Attributes:
        step: the compiled step.
        stages: the phases in order.
        batches: a phase and steps [start, stop) -> their batches, a pure function of these. Asked after the
            "phase" event.
        per_epoch: steps in an epoch.
        evaluate: a stage and the number of steps trained -> what to record.
        eval_every: steps between evaluations; one is made at the start and at each phase's end too.
        actions: called with each event, in order.
        early_stop: evaluations in a row that may be no better than the best before the run ends.
        monitor: what "better" means.
        stop: asked after each step; True ends the run.
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

    def run(self, state: State) -> Outcome:
        """Trains from ``state`` to the end, or until it is stopped."""
        while True:
            where = self._locate(state)
            if where.phase == len(self.stages):
                return Outcome("done", state)
            stage = self.stages[where.phase]
            if state.proof is None:
                state.proof = FreezeProof.begin(stage.selection)
            self._tell(Event("phase", state, stage))
            if self.stop():  # what a phase prepares may take long
                self._tell(Event("checkpoint", state, stage, force=True))
                return Outcome("stopped", state)
            if not state.evaluations:
                self._evaluate(state, stage)
            reason = self._run_phase(state, stage, where)
            if reason is not None:
                return Outcome(reason, state)

    def _run_phase(self, state: State, stage: Stage, where: phase_rules.Position) -> str | None:
        """Trains until the phase ends (None), or the run does (the reason)."""
        length = stage.phase.step_count(self.per_epoch)
        last = where.from_step + length
        if self._stopped_early(state):  # a run that ended before is not trained on
            return "early_stop"
        batches = self.batches(stage, state.step, last)
        try:
            while True:
                if self.stop():
                    self._tell(Event("checkpoint", state, stage, force=True))
                    return "stopped"
                self._step(state, stage, batches, state.step - where.from_step, length)
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

    def _step(self, state: State, stage: Stage, batches: Iterator[Mapping[str, Any]], number: int, length: int) -> None:
        started = time.perf_counter()
        batch = next(batches)
        rate = stage.learning_rate * stage.schedule.factor(number, length)
        before = self.step.steps
        try:
            result = self.step(stage.selection, batch, learning_rate=rate, optimizer=stage.optimizer)
        except NonFiniteError as error:
            state.step += self.step.steps - before  # the last of too many skipped steps is counted
            raise LoopError(
                f"{error} (phase {stage.phase.name!r}): lower the learning rate (now {rate:g}), warm up, or clip the gradient"
            ) from None
        state.step += 1
        seconds = time.perf_counter() - started
        examples = len(batch["index"]) if "index" in batch else len(next(iter(batch.values())))
        self._tell(Event("step", state, stage, result, rate, seconds, examples, self.step.skipped))

    def _evaluate(self, state: State, stage: Stage) -> None:
        state.evaluations.append(self.evaluate(stage, state.step))
        self._tell(Event("evaluation", state, stage))

    def _end_phase(self, state: State, stage: Stage) -> None:
        if state.proof is not None:
            state.proven.append(state.proof.changed(stage.selection))
        state.proof = None
        self._tell(Event("phase_end", state, stage))
        self._tell(Event("checkpoint", state, stage, force=True))

    def _locate(self, state: State) -> phase_rules.Position:
        phases = [stage.phase for stage in self.stages]
        return phase_rules.locate(phases, self.per_epoch, state.step, state.evaluations, self.monitor)

    def _stopped_early(self, state: State) -> bool:
        if self.early_stop is None:
            return False
        return phase_rules.plateau(state.evaluations, self.monitor, patience=self.early_stop) is not None

    def _tell(self, event: Event) -> None:
        for action in self.actions:
            action(event)
