"""The networks that the trials of a study train, each with the values from which a run with some seed starts."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine.data import EvalBatches, Part
from engine.feature_cache.decision import Cuts
from engine.frostline.watch import frozen_output_norms
from engine.memory.run_forecast import evaluation_size
from engine.recipes.config import FinetuneConfig
from engine.recipes.plan import LEAST_EVALUATED, divide_step
from engine.recipes.predictor import Predictor
from engine.recipes.task import Task
from engine.seeds import seed_global_generators
from engine.selection.selection import Selection
from engine.training.evaluation import Evaluator
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep


class Stand:
    """A network with one set of adapters, or none.

    Attributes:
        task: with its variables; its seed is the first one of the study.
        first: the values from which a run with the first seed starts: of all variables, by path, and of random generators.
    """

    def __init__(self, task: Task, open_task: Callable[[int], Task]) -> None:
        self.task, self._open_task = task, open_task
        self.first = _read(task)
        self._starts: dict[int, Mapping[str, np.ndarray]] = {task.seed: {}}
        self.evaluator = Evaluator(task.loss_fn, watch=frozen_output_norms)
        self.filled: set[Selection] = set()  # whose features the caches have
        self._tools: dict[Optimizer, tuple[TrainStep, Cuts]] = {}
        self.predictor: Predictor | None = None  # what judges with it

    def task_of(self, seed: int) -> Task:
        """The task of a run with this seed; its network is the same, and holds whatever values it holds now."""
        return dataclasses.replace(self.task, seed=seed)

    def start_of(self, seed: int) -> Mapping[str, np.ndarray]:
        """The values from which a run with this seed starts, of the variables in which it differs from the first one.

        They are those of a model of its own, built and loaded as a plain run does it.
        """
        if seed not in self._starts:
            found = _read(self._open_task(seed))
            self._starts[seed] = {path: value for path, value in found.items() if _differs(value, self.first[path])}
            gc.collect()
        return self._starts[seed]

    def tools(self, config: FinetuneConfig) -> tuple[TrainStep, Cuts]:
        """The step of all trials with the optimizer of this one, and what has been cut of it."""
        optimizer = config.make_optimizer()
        if optimizer not in self._tools:
            self._tools[optimizer] = _make_step(config, self.task), Cuts()
        return self._tools[optimizer]

    def eval_batches(self, config: FinetuneConfig, part: Part) -> EvalBatches:
        """The batches in which a plain run evaluates a part."""
        size = divide_step(config.batch_size, config.micro_batches)
        size = evaluation_size(config.batch_size, size, at_least=LEAST_EVALUATED)
        return self.task.eval_batches(batch_size=size, part=part)

    def put(self, seed: int, values: Mapping[str, np.ndarray]) -> None:
        """Gives the network the values of a run with this seed, which has changed those of ``values``."""
        own = _name_values(self.task)
        for name, value in {**self.first, **self.start_of(seed), **values}.items():
            own[name].assign(value)
        self.task.variables.refresh()


class Bench:
    """The stands of a study. Of those with adapters, the last one is kept.

    Args:
        config: the fields that all trials share.
        task: the task without adapters, with its first values, as ``open_first`` opens it.
    """

    def __init__(self, config: FinetuneConfig, task: Task) -> None:
        self._config, self._source = config, task.source
        self._stands: dict[str | None, Stand] = {}
        self._stands[None] = Stand(task, lambda seed: self._open(None, seed))

    def stand(self, adapt: str | None) -> Stand:
        """The network with these adapters."""
        if adapt not in self._stands:
            for other in [text for text in self._stands if text is not None]:
                del self._stands[other]
            gc.collect()
            first = self._open(adapt, self._stands[None].task.seed)
            self._stands[adapt] = Stand(first, lambda seed: self._open(adapt, seed))
        return self._stands[adapt]

    def _open(self, adapt: str | None, seed: int) -> Task:
        config = self._config
        seed_global_generators(seed)
        return Task.open(
            data=self._source,
            model=config.model,
            head=config.head,
            loss=config.loss,
            precision=config.precision,
            seed=seed,
            batch_size=config.batch_size,
            weights=config.weights,
            adapt=adapt,
        )


def _name_values(task: Task) -> dict[str, Any]:
    """All variables by path, and the states of random generators by name."""
    return {entry.path: entry.variable for entry in task.variables} | task.variables.bookkeeping


def _read(task: Task) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in _name_values(task).items()}


def _differs(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() != other.tobytes()


def _make_step(config: FinetuneConfig, task: Task) -> TrainStep:
    """The step of a trial, as that of the plain run."""
    return TrainStep(
        task.loss_fn,
        config.make_optimizer(),
        seed=config.seed,
        micro_batch_size=divide_step(config.batch_size, config.micro_batches),
        loss_scale=task.loss_scale(),
        nonfinite=config.nonfinite,
        jit_compile=config.jit_compile,
    )
