"""The memory forecast of a job whose caches are decided."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from engine.feature_cache.decision import CacheDecision
from engine.feature_cache.policy import CachePolicy
from engine.feature_cache.store import SHARD_BYTES
from engine.frostline.line import FrostLine
from engine.host import resident_bytes
from engine.memory.forecast import Forecast, Forecaster
from engine.memory.run_forecast import Cached, forecast_phases
from engine.recipes.job import Job
from engine.recipes.plan import surroundings
from engine.training.evaluation import WATCHED
from engine.training.loop import Stage
from engine.training.step_batch import COUNT


def forecast_job(job: Job, decisions: Sequence[CacheDecision], cache: CachePolicy) -> tuple[Forecast, ...]:
    """The forecast of each phase, as it trains: from images, or from caches that have to be filled.

    Under a memory budget the plan's own forecasts stay: they were made before anything was decided, and cover both.
    """
    if job.config.memory_budget is not None:
        return job.plan.forecasts
    around = surroundings(job.config, job.task, decided=True)
    phases = []
    for number, (stage, whole, decision) in enumerate(zip(job.stages, job.forecasters, decisions, strict=True)):
        cached = None
        if decision.used and isinstance(decision.line, FrostLine):
            sees = cache.evaluates_images(stage, decision.line)
            filled = [
                min(SHARD_BYTES, other.bytes) for other in decisions[number:] if other.used and other.reads_images
            ]
            cached = Cached(
                above=_forecast_above(job, stage, decision.line),
                evaluated=min(around.examples, job.eval_size if sees else WATCHED),
                shard=sum(filled) if decision.reads_images else None,
            )
        phases.append((whole, cached))
    sizes = job.replica_examples, job.plan.micro_batch_size
    return forecast_phases(phases, *sizes, process=resident_bytes(), around=around)


def _forecast_above(job: Job, stage: Stage, line: FrostLine) -> Forecaster:
    """The forecaster of the step above a frost line."""
    given = job.step.tensors(job.train_batches().at(0))
    first, stop = job.distribution.share.bounds(1)  # of a step of one example: only shapes matter
    features = {tensor.key: tf.zeros([stop - first, *tensor.shape], tensor.dtype) for tensor in line.tensors}
    batch = {name: value[: stop - first] for name, value in given.items() if name not in line.inputs} | features
    return Forecaster(job.step, stage.selection, stage.optimizer, batch | {COUNT: 1})
