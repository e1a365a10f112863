"""From the configuration of a study to what its quality mode does."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from engine.data import Source
from engine.data.corruptions import Corruption
from engine.errors import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import requested_phases, resolve_stages
from engine.study.config import StudyConfig
from engine.study.job import Setting
from engine.study.quality.rates import parse_learning_rates
from engine.study.quality.run import QualityPlan
from engine.study.quality.search import Search
from engine.study.quality.settings import CORRUPT, parse_corrupt
from engine.study.quality.trial import Setup, Trial
from engine.study.strategies import OPTIMIZER, Strategy
from engine.text import join_words
from engine.training.phases import Monitor

SHARED = (
    "data",
    "model",
    "weights",
    "head",
    "loss",
    "precision",
    "seed",
    "eval_fraction",
    "batch_size",
)  # fields of the study that are fields of finetune


def choose_corruptions(config: StudyConfig, source: Source) -> tuple[Corruption, ...]:
    """The corruptions through which the test part is seen as well: of data that are not images, none.

    Raises InputError if the study names some for such data.
    """
    specs = source.train.input_specs
    if len(specs) == 1 and next(iter(specs.values())).is_image:
        return parse_corrupt(config.corrupt, quick=config.quick)
    if config.corrupt.strip() not in (CORRUPT, "none"):
        raise InputError(
            f"corrupt={config.corrupt}: corruptions are of an image, and an example of {source.name} has {join_words(specs)}; "
            "expected none, or leave it out"
        )
    return ()


def describe_quality(config: StudyConfig, source: Source) -> dict[str, Any]:
    """What decides a quality study of these data besides its strategies; raises as ``choose_corruptions``."""
    names = ("learning_rates", "seeds", "search", "schedule", "early_stop")
    chosen = [str(each) for each in choose_corruptions(config, source)]
    return {name: getattr(config, name) for name in names} | {"corrupt": chosen, "extend": not config.quick}


def plan_quality(
    config: StudyConfig, setting: Setting, strategies: Sequence[Strategy], *, out: pathlib.Path
) -> QualityPlan:
    """What is searched and judged; raises InputError where a plain run could not be configured so."""
    job, task = setting.job, setting.task
    size = config.image_size
    accuracy = task.kind != "mse"
    by: Monitor = "eval_accuracy" if accuracy else "eval_loss"
    shared = FinetuneConfig(
        **{name: getattr(config, name) for name in SHARED if name != "seed"},
        seed=config.seed,
        image_size=size if size is None or isinstance(size, str) else f"{size[0]}x{size[1]}",
        train_examples=config.train_examples or None,
        micro_batches=None if config.micro_batches == 1 else config.micro_batches,
        slots="fresh",
        optimizer=OPTIMIZER,
        schedule=config.schedule,
        early_stop=config.early_stop,
        monitor=by,
        eval_every=job.eval_every,
    )
    plan = QualityPlan(
        setup=Setup(shared=shared, steps=job.steps),
        search=Search(
            rates=parse_learning_rates(config.learning_rates),
            seeds=tuple(range(config.seed, config.seed + config.seeds)),
            kind=config.search,
            extend=not config.quick,
            by=by,
            steps=job.steps,
            eval_every=job.eval_every,
        ),
        strategies=strategies,
        task=task,
        data=task.source.fingerprint(),
        corrupt=choose_corruptions(config, task.source),
        caches=(out / "feature_cache").absolute(),
    )
    _check(plan, config)
    return plan


def _check(plan: QualityPlan, config: StudyConfig) -> None:
    """Finds, before anything is trained, what a plain run would refuse; raises InputError."""
    for strategy in plan.trained.values():
        for rate in plan.search.rates or (1e-3,):
            found = plan.configure(strategy, Trial(strategy=strategy.name, learning_rate=rate, seed=config.seed))
            if strategy.adapt is None:  # else its variables are not there yet
                try:
                    resolve_stages(found, plan.task, requested_phases(found, plan.task))
                except InputError as error:
                    raise type(error)(f"strategy {strategy.name}, learning rate {rate:g}: {error}") from None
    if plan.search.kind == "halving" and not plan.search.rungs:
        raise InputError(
            f"search=halving: with eval_every={plan.search.eval_every} of steps={plan.search.steps} there is no evaluation "
            "before the half of the steps, after which rates could be dropped; give a smaller eval_every, or search=grid"
        )
