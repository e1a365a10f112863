"""The runners v1_* of benchmark_freezing: TF1 graphs and sessions, driven through phases by the engine's loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compat_v1.training import models as v1_models
from compat_v1.training.freezing import Freezing
from compat_v1.training.session_loop import SessionLoop
from compat_v1.training.training_graph import TrainingGraph
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.study.cost import Cost, Pass, cost
from engine.training import losses
from engine.training.loop import Stage
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation
from engine.training.step import StepResult
from scripts.benchmark_freezing_job import Setting
from scripts.benchmark_freezing_runners import LoopRunner


class SessionStep:
    """TF1 steps as the loop calls them. Each selection has a graph of its own; values go from one to the next.

    Optimizer slots do not: TF1's Adam counts t for all variables together, so one that is unfrozen late would take
    steps of another size. Every runner begins a phase with fresh slots.
    """

    def __init__(self, setting: Setting, method: str) -> None:
        self.setting, self.method = setting, method
        self.steps = self.skipped = 0
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
    ) -> StepResult:
        session = self.fit(selection)
        step = session.step(batch, learning_rate=learning_rate)
        self.steps += 1
        self.skipped = session.skipped
        return step

    def fit(self, selection: Selection) -> SessionLoop:
        """The session whose graph trains a selection."""
        if self.session is None or selection != self.selection:
            values = {entry.path: entry.variable.numpy() for entry in selection.variables}
            if self.session is not None:
                values = self.values()
                self.session.close()
            network = v1_models.of(self.setting.network, selection)
            self.session = SessionLoop(
                losses.supervised_loss(network, self.setting.job.loss),
                Freezing(self.method, selection),
                self.setting.optimizer,
                {name: np.asarray(value) for name, value in self.setting.batches.at(0).items()},
                micro_batch_size=self.setting.job.micro_batch_size,
                loss_scale=self.setting.loss_scale(),
                seed=self.setting.job.seed,
            )
            self.session.assign(values)
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


class V1Runner(LoopRunner):
    """A SessionLoop with one of the three methods."""

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, budget: bool, method: str) -> None:
        super().__init__(setting, stages, budget=budget)
        self.step: Any = SessionStep(setting, method)

    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        started = time.perf_counter()
        session = self.step.fit(stage.selection)
        self.record.preparing += time.perf_counter() - started
        found = session.evaluate(self.setting.evaluation)
        with self.record.pause():
            self.step.read_back(stage.selection)
        return Evaluation(steps, stage.phase.name, found["loss"], found.get("accuracy"), None)

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
        loss = dataflow.ancestors([built.runs.report["loss"]])
        needed = dataflow.ancestors([gradient for gradient, _ in built.gradients.applied])
        found = cost(Pass(built.graph, list(built.inputs.values()), list(loss), list(needed - loss)))
        return found._replace(backward_ops=built.backward_ops)

    def traces(self) -> int:
        return len(self.step.built)

    def close(self) -> None:
        if self.step.session is not None:
            self.step.session.close()
