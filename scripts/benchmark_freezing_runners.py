"""The runners of benchmark_freezing that the engine's loop drives: the engine itself, and TF1's three ways to freeze."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from compat_v1 import models as v1_models
from compat_v1.freezing import Freezing
from compat_v1.session_loop import SessionLoop
from compat_v1.training_graph import TrainingGraph
from engine import graph, losses
from engine.caching import Caching, Wish
from engine.evaluate import Evaluator
from engine.loop import Event, Loop, LoopError, Stage, State
from engine.optimizers import Optimizer, Slots
from engine.phases import Evaluation
from engine.selection import Selection
from engine.step import TrainStep, Window
from engine.study.cost import Cost, Traced, cost, of_step
from scripts.benchmark_freezing_job import Setting

Watching = Callable[[Stage, int], None]


class LeftOut(Exception):  # noqa: N818 - no error: a runner that would only repeat another's run
    """A runner has nothing of its own to show for a strategy; says why."""


class _Enough(Exception):  # noqa: N818 - no error
    """A budget of windows ended as a phase did."""


class NotFiniteError(LoopError):
    """A window whose loss or gradient is not finite, and the batch of it. ``batch`` trains the selection's step."""

    def __init__(self, message: str, stage: Stage, batch: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.stage, self.batch = stage, batch


class Record:
    """What is measured of a run while it goes.

    Attributes:
        step_ms: of each window that is timed: not the first of a phase, which traces, nor one that traced again.
        examples: of those windows.
        first_step_seconds: of the first window.
        first_loss, last_loss: of the first and the last window.
        points: one for each evaluation; ``seconds`` since the start, that evaluation included.
        slot_bytes: the most of any phase.
        norm: of the frozen part's output, at the last evaluation.
        preparing: seconds of making graphs before the first window; counted to it.
        job_seconds: from the first trace to the last evaluation.
    """

    def __init__(self) -> None:
        self.step_ms: list[float] = []
        self.examples = 0
        self.first_step_seconds: float | None = None
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.points: list[dict[str, Any]] = []
        self.slot_bytes = 0
        self.norm: float | None = None
        self.preparing = 0.0
        self.job_seconds = 0.0
        self._began = time.perf_counter()
        self._paused = 0.0

    def begin(self) -> None:
        """The first trace comes now."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start, pauses apart."""
        return time.perf_counter() - self._began - self._paused

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Surrounds what is no part of the job, such as drawing histograms."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - started

    def window(self, loss: float, *, seconds: float, examples: int, timed: bool) -> None:
        if timed:
            self.step_ms.append(1e3 * seconds)
            self.examples += examples
        if self.first_step_seconds is None:
            self.first_step_seconds, self.first_loss = self.preparing + seconds, loss
        self.last_loss = loss

    def evaluation(self, found: Evaluation) -> None:
        point = {"step": found.step, "seconds": self.seconds, "eval_loss": found.loss, "eval_accuracy": found.accuracy}
        self.points.append(point | {"train_loss": self.last_loss})
        self.norm = found.frozen_output_norm


class Driven:
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
            NotFiniteError: a window that the step refused.
        """
        job, windows = self.setting.job, self.setting.job.windows
        state = State()
        loop = Loop(
            step=self.step,
            stages=self.stages,
            batches=self._watched,
            per_epoch=self.setting.batches.per_epoch,
            evaluate=self.evaluate,
            eval_every=job.eval_every,
            actions=(self._before, self._after),
            stop=lambda: self.budget and state.step >= windows,
        )
        self.record.begin()
        try:
            loop.run(state)
        except _Enough:
            state.proof = None  # of a phase without windows
        except LoopError as error:
            raise NotFiniteError(str(error), self._stage, self._last) from None
        if state.proof is not None:  # a budget ended within a phase
            if state.evaluations[-1].step != state.step:
                self.record.evaluation(self.evaluate(self._stage, state.step))
            self._end_phase(state.step, state.proof.changed(self._stage.selection))
        self.record.job_seconds = self.record.seconds

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        return self.setting.batches.between(start, stop)

    def evaluate(self, stage: Stage, windows: int) -> Evaluation:
        raise NotImplementedError

    def begin_phase(self, stage: Stage) -> None:
        """Called before a phase's first batch is made."""

    def slot_bytes(self) -> int:
        """Of the phase that runs."""
        raise NotImplementedError

    def cost(self, stage: Stage) -> Cost:
        """What a window of a phase that was run costs."""
        raise NotImplementedError

    def traces(self) -> int:
        """How often something was traced so far: a window that traced is not timed."""
        return 0

    def close(self) -> None:
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
            if self.budget and event.state.step >= self.setting.job.windows:
                raise _Enough
            self._stage, self._fresh = event.stage, True
            self._from = event.state.step
            self.begin_phase(event.stage)

    def _after(self, event: Event) -> None:
        if event.kind == "window" and event.window is not None:
            traced = self.traces()
            timed = not self._fresh and traced == self._traced
            if self._fresh:
                self.record.slot_bytes = max(self.record.slot_bytes, self.slot_bytes())
            self._fresh, self._traced = False, traced
            loss = float(event.window.loss)
            self.record.window(loss, seconds=event.seconds, examples=event.examples, timed=timed)
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


class EngineRunner(Driven):
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
        self.evaluator = Evaluator(setting.loss_fn)
        self.caching: Caching | None = None
        if cache is not None:
            self.caching = Caching(
                self.step,
                self.evaluator,
                train=setting.batches,
                evaluation=setting.evaluation,
                data=setting.job.data_sha256,
                wish=Wish(mode="auto", root=cache),
                say=lambda _: None,
            )

    def begin_phase(self, stage: Stage) -> None:
        """Optimizer state begins anew, as it must in Keras and TF1; the phase's cache is filled.

        Raises:
            LeftOut: the run's only phase cannot be cached.
        """
        self.step.slots = Slots()
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

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        if self.caching is None:
            return super().batches(stage, start, stop)
        return self.caching.batches(stage, start, stop)

    def evaluate(self, stage: Stage, windows: int) -> Evaluation:
        given, watched = (self.setting.evaluation, None) if self.caching is None else self.caching.evaluation()
        found = self.evaluator(stage.selection, given, watched=watched)
        return Evaluation(
            windows, stage.phase.name, found.loss, found.metrics.get("accuracy"), found.frozen_output_norm
        )

    def slot_bytes(self) -> int:
        return self.step.slots.bytes()

    def cost(self, stage: Stage) -> Cost:
        return of_step(self.step, stage.selection, self._samples[stage.phase.name])

    def traces(self) -> int:
        return self.step.traces


class SessionStep:
    """TF1 windows as the loop calls them. Each selection has a graph of its own; values go from one to the next.

    Optimizer slots do not: TF1's Adam counts t for all variables together, so one that is unfrozen late would take
    steps of another size. Every runner begins a phase with fresh slots.
    """

    def __init__(self, setting: Setting, method: str) -> None:
        self.setting, self.method = setting, method
        self.windows = self.skipped = 0
        self.session: SessionLoop | None = None
        self.selection: Selection | None = None
        self.built: dict[Selection, TrainingGraph] = {}

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        optimizer: Optimizer | None = None,
    ) -> Window:
        session = self.fit(selection)
        window = session.step(batch, learning_rate=learning_rate)
        self.windows += 1
        self.skipped = session.skipped
        return window

    def fit(self, selection: Selection) -> SessionLoop:
        """The session whose graph trains a selection."""
        if self.session is None or selection != self.selection:
            values = {entry.path: entry.variable.numpy() for entry in selection.variables}
            if self.session is not None:
                values = self.values()
                self.session.close()
            network = v1_models.of(self.setting.network, selection)
            self.session = SessionLoop(
                losses.supervised(network, self.setting.job.loss),
                Freezing(self.method, selection),
                self.setting.optimizer,
                {name: np.asarray(value) for name, value in self.setting.batches.at(0).items()},
                micro_batch_size=self.setting.job.micro_batch_size,
                loss_scale=self.setting.loss_scale(),
                seed=self.setting.job.seed,
            )
            # all in one run: for each set of fetches TF1 prepares the graph anew
            setters = [self.session.built.setters[path] for path in values]
            feeds = {placeholder: values[path] for path, (placeholder, _) in zip(values, setters, strict=True)}
            self.session.session.run([operation for _, operation in setters], feeds)
            self.selection = selection
            self.built[selection] = self.session.built
        return self.session

    def values(self) -> dict[str, np.ndarray]:
        """Every variable of the model as the session has it now."""
        assert self.session is not None
        found: dict[str, np.ndarray] = self.session.session.run(self.session.built.variables)
        return found

    def read_back(self, selection: Selection) -> None:
        """Gives the engine's variables the session's values: what the freeze proof and digests look at."""
        by_path = selection.variables.by_path()
        for path, value in self.values().items():
            by_path[path].variable.assign(value)


class V1Runner(Driven):
    """A SessionLoop with one of the three methods."""

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, budget: bool, method: str) -> None:
        super().__init__(setting, stages, budget=budget)
        self.step: Any = cast(Any, SessionStep(setting, method))

    def evaluate(self, stage: Stage, windows: int) -> Evaluation:
        started = time.perf_counter()
        session = self.step.fit(stage.selection)
        self.record.preparing += time.perf_counter() - started
        found = session.evaluate(self.setting.evaluation)
        with self.record.pause():
            self.step.read_back(stage.selection)
        return Evaluation(windows, stage.phase.name, found["loss"], found.get("accuracy"), None)

    def slot_bytes(self) -> int:
        built = self.step.session.built
        with built.graph.as_default():
            slots = [
                built.optimizer.get_slot(variable, name)
                for name in built.optimizer.get_slot_names()
                for variable in built.variables.values()
            ]
        return sum(s.shape.num_elements() * s.dtype.base_dtype.size for s in slots if s is not None)

    def cost(self, stage: Stage) -> Cost:
        built = self.step.built[stage.selection]
        loss = graph.ancestors([built.report["loss"]])
        needed = graph.ancestors([gradient for gradient, _ in built.gradients.applied])
        found = cost(Traced(built.graph, list(built.inputs.values()), list(loss), list(needed - loss)))
        return found._replace(backward_ops=built.backward_ops)

    def traces(self) -> int:
        return len(self.step.built)

    def close(self) -> None:
        if self.step.session is not None:
            self.step.session.close()
