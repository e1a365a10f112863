"""The TF1 runners of a study: graphs and sessions, driven through the phases by the engine's loop."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compat_v1.errors import SessionError
from compat_v1.training import models as v1_models
from compat_v1.training.freezing import Freezing
from compat_v1.training.session_loop import SessionLoop
from compat_v1.training.train_op import check_form
from compat_v1.training.training_graph import TrainingGraph
from engine.graphs import dataflow
from engine.selection.selection import Selection
from engine.study.cost import Cost, TracedPass, count_cost
from engine.study.job import Setting
from engine.study.measurements import LeftOut
from engine.study.runners import LoopRunner
from engine.training import losses
from engine.training.loop import Stage
from engine.training.optimizers import Optimizer
from engine.training.phases import Evaluation
from engine.training.step_result import StepResult


class SessionStep:
    """TF1 steps with the interface that the loop calls.

    Each selection has a graph of its own. The values of variables are carried from one to the next; the optimizer's
    slots are not, because TF1's Adam counts t for all variables together, and a variable that is unfrozen late would take
    steps of another size. Every runner starts a phase with new slots.
    """

    def __init__(self, setting: Setting, method: str) -> None:
        self.setting, self.method = setting, method
        self.steps = self.skipped = 0
        self.session: SessionLoop | None = None
        self.trains: tuple[Selection, Optimizer] | None = None
        self.built: dict[Selection, TrainingGraph] = {}

    def __call__(
        self,
        selection: Selection,
        batch: Mapping[str, Any],
        *,
        learning_rate: float,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        session = self.session_for(selection, optimizer or self.setting.optimizer)
        step = session.step(batch, learning_rate=learning_rate)
        self.steps += 1
        self.skipped = session.skipped
        return step

    def session_for(self, selection: Selection, optimizer: Optimizer) -> SessionLoop:
        """The session whose graph trains a selection by an optimizer; built when either changes."""
        if self.session is None or self.trains != (selection, optimizer):
            values = {entry.path: entry.variable.numpy() for entry in selection.variables}
            if self.session is not None:
                values = self.values()
                self.session.close()
            network = v1_models.translate_network(self.setting.task.model.network, selection)
            self.session = SessionLoop(
                losses.supervised_loss(network, self.setting.job.loss),
                Freezing(self.method, selection),
                optimizer,
                {name: np.asarray(value) for name, value in self.setting.batches.at(0).items()},
                micro_batch_size=self.setting.job.micro_batch_size,
                loss_scale=self.setting.task.loss_scale(),
                seed=self.setting.job.seed,
            )
            self.session.assign(values)
            self.trains = selection, optimizer
            self.built[selection] = self.session.built
        return self.session

    def values(self) -> dict[str, np.ndarray]:
        """The current values of all variables in the session, by path."""
        assert self.session is not None
        found: dict[str, np.ndarray] = self.session.session.run(self.session.built.variables)
        return found

    def read_back(self, selection: Selection) -> None:
        """Gives the engine's variables, which the freeze proof and the digests read, the values of the session."""
        by_path = selection.variables.by_path()
        for path, value in self.values().items():
            by_path[path].variable.assign(value)


class SessionRunner(LoopRunner):
    """A SessionLoop that freezes by one of the three methods of TF1."""

    method: str

    def __init__(self, setting: Setting, stages: Sequence[Stage], *, scratch: pathlib.Path) -> None:
        super().__init__(setting, stages, scratch=scratch)
        self.step: Any = SessionStep(setting, self.method)

    @classmethod
    def why_not(cls, setting: Setting) -> str | None:
        """Why TF1 cannot run a job: it has no form of the model."""
        try:
            v1_models.check_name(setting.job.model)
        except v1_models.ModelError as error:
            return str(error)
        return None

    def run(self) -> None:
        """Trains to the end, as ``LoopRunner.run``; raises LeftOut if TF1 has no form of the strategy's optimizer."""
        try:
            for stage in self.stages:
                check_form(stage.optimizer)
        except SessionError as error:
            raise LeftOut(str(error)) from None
        super().run()

    def evaluate(self, stage: Stage, steps: int) -> Evaluation:
        started = time.perf_counter()
        session = self.step.session_for(stage.selection, stage.optimizer)
        self.measurements.preparing += time.perf_counter() - started
        found = session.evaluate(self.setting.evaluation)
        with self.measurements.pause():
            self.read_back(stage)
        return Evaluation(steps, stage.phase.name, found["loss"], found.get("accuracy"), None)

    def slot_bytes(self) -> int:
        return int(self.step.session.built.slot_bytes)

    def cost(self, stage: Stage) -> Cost:
        built = self.step.built[stage.selection]
        loss = dataflow.ancestors([built.runs.report["loss"]])
        needed = dataflow.ancestors([gradient for gradient, _ in built.gradients.applied])
        found = count_cost(TracedPass(built.graph, list(built.inputs.values()), list(loss), list(needed - loss)))
        return found._replace(backward_ops=built.backward_ops)

    def read_back(self, stage: Stage) -> None:
        self.step.read_back(stage.selection)

    def traces(self) -> int:
        return len(self.step.built)

    def close(self) -> None:
        if self.step.session is not None:
            self.step.session.close()


class TrainableRunner(SessionRunner):
    method = "trainable"


class StopGradientRunner(SessionRunner):
    method = "stop_gradient"


class VarListRunner(SessionRunner):
    method = "var_list"
