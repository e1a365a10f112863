"""A fine-tuning job with everything resolved: what ``finetune`` knows before the first step."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

from engine.data import TrainBatches
from engine.data.features import name_columns, name_moments
from engine.distribution.distribution import Distribution
from engine.memory.forecast import Forecast, Forecaster
from engine.memory.planner import Plan
from engine.memory.run_forecast import evaluation_size
from engine.recipes.computing import Computing
from engine.recipes.config import FinetuneConfig
from engine.recipes.outputs import find_outputs_of, list_class_weights
from engine.recipes.plan import least_evaluated
from engine.recipes.task import Task, other_inputs
from engine.runs.run_directory import Keeping
from engine.runs.saved_flags import FINGERPRINT, DataFacts, TaskFacts
from engine.sizes import format_bytes
from engine.training.checkpoint import RunState
from engine.training.loop import Stage, State
from engine.training.step import TrainStep

REPLICAS = "replicas"  # in the state of a run, where there are several


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What a run does.

    Attributes:
        distribution: the workers and replicas.
        computing: the device, and how it computes.
        out: the run directory.
        settings: what a resume must not contradict.
        plan: how steps are computed, with a memory forecast for each phase.
        forecasters: for each phase, what forecasts its whole steps.
        saved: the state that is resumed, or None for a new run.
    """

    config: FinetuneConfig
    distribution: Distribution
    computing: Computing
    task: Task
    out: pathlib.Path
    settings: dict[str, Any]
    stages: list[Stage]
    plan: Plan
    forecasters: list[Forecaster]
    step: TrainStep
    saved: RunState | None

    @property
    def total_steps(self) -> int:
        """The number of steps in all phases, or the most there can be where evaluations end a phase."""
        return sum(stage.phase.step_count(self.task.per_epoch) for stage in self.stages)

    @property
    def eval_every(self) -> int:
        """The number of steps between evaluations."""
        return self.config.eval_every or self.task.per_epoch

    @property
    def replica_examples(self) -> int:
        """The most examples of a step that any replica takes."""
        return self.distribution.share.largest(self.config.batch_size)

    @property
    def rows_at_once(self) -> int:
        """The number of examples whose features are computed at once: it does not depend on the number of workers."""
        batch_size = self.config.batch_size
        if self.config.micro_batches is not None:
            return -(-batch_size // self.config.micro_batches)
        return self.plan.micro_batch_size or batch_size

    def train_batches(self) -> TrainBatches:
        """The steps of the training part, with the examples of this worker."""
        return self.task.train_batches(share=self.distribution.share)

    @property
    def eval_size(self) -> int:
        """The number of examples that are evaluated at once: it does not depend on the number of workers either."""
        parts = None if self.plan.micro_batch_size is None else self.rows_at_once
        return evaluation_size(self.config.batch_size, parts, at_least=least_evaluated(self.config))

    def keeping(self) -> Keeping:
        """What the run directory gets, and how often."""
        config = self.config
        return Keeping(
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every or self.task.per_epoch,
            keep=config.keep,
            keep_best=config.keep_best,
            histograms=config.histograms,
        )

    def data_facts(self) -> DataFacts:
        """What the data decided about the model, for those who use it without them."""
        task, outputs = self.task, self.task.outputs
        several = [
            TaskFacts(name=o.name, kind=o.kind, outputs=o.count, class_names=o.class_names, columns=o.columns)
            for o in (outputs if task.several else ())
        ]
        return DataFacts(
            image_shape=task.source.image_shape,
            outputs=task.model.outputs,
            class_names=task.class_names,
            columns=None if several else outputs[0].columns,
            images=task.images,
            eval_size=self.eval_size,
            fingerprint=self.settings[FINGERPRINT],
            image_dtype=self.task.source.train.image_dtype.name,
            kind=None if several else task.kind,
            outputs_of=find_outputs_of(task.source, outputs),
            tasks=tuple(several),
            class_weights=list_class_weights(outputs),
            inputs={name: (spec.shape, spec.dtype.name) for name, spec in (other_inputs(task.source) or {}).items()},
            features=name_columns(task.source),
            moments=name_moments(task.source),
            texts=None if task.source.texts is None else task.source.texts.facts,
        )

    def repeating_flags(self) -> dict[str, Any]:
        """The flags that give the same bits again: what a memory budget, or another device, would decide otherwise stands
        in place of what was to be decided."""
        flags, plan = self.config.to_json() | {"precision": self.computing.precision.used}, self.plan
        if self.config.memory_budget is None:
            return flags
        size, blocks = plan.micro_batch_size, plan.blocks
        decided: dict[str, Any] = {"memory_budget": None, "plan": "micro_batches", "remat": plan.remat}
        decided["micro_batches"] = None if size is None else -(-self.replica_examples // size)
        if blocks is not None:
            decided["phase"] = [f'name=top_{blocks} train="@blocks[-{blocks}:] @head"']
        return flags | decided

    def caveats(self) -> list[str]:
        """What the user should know about how steps are computed, a sentence each."""
        chosen = [stage.selection for stage in self.stages]
        return list(dict.fromkeys(text for s in chosen for text in (*self.step.notes(s), *self.step.caveats(s))))

    def describe_device_memory(self, forecast: Forecast) -> str | None:
        """The forecast of a GPU's memory, with a warning where it has less; None on a CPU."""
        device = self.computing.device
        if device.kind != "gpu":
            return None
        text = f"{device.name}: about {format_bytes(forecast.device)}"
        if device.memory_bytes is None:
            return text
        text += f" of {format_bytes(device.memory_bytes)}"
        if forecast.device > device.memory_bytes:
            text += f", which is too much; --memory_budget={device.memory_bytes} finds a plan that fits"
        return text

    def start_state(self, cache: list[bool]) -> RunState:
        """The state in which the run starts; ``cache`` says which phases train from kept features."""
        replicas = self.distribution.share.of
        return RunState(
            settings=self.settings,
            loop=State() if self.saved is None else self.saved.loop,
            step=self.step.state(),
            plan=self.plan.to_json(),
            computing=self.computing.to_state() | ({} if replicas == 1 else {REPLICAS: replicas}),
            images=self.task.images,
            cache=cache,
            since_line={} if self.saved is None else self.saved.since_line,
        )
