"""A trial of a quality study: one strategy, one learning rate, one seed. It is what one plain run of finetune does."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.recipes.config import FinetuneConfig
from engine.runs.flag_file import as_lines
from engine.study.quality.rates import LOWEST, RANGE_STEPS
from engine.study.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a study share: the fields of ``FinetuneConfig`` that no strategy, rate or seed decides."""

    shared: FinetuneConfig
    steps: int

    def config(self, strategy: Strategy, learning_rate: float, seed: int, *, cache: str = "auto") -> FinetuneConfig:
        """The configuration of the plain run that a trial is."""
        given = _optimizer_fields(strategy) | {"learning_rate": learning_rate, "seed": seed, "cache": cache}
        phases = strategy.phases_of_run(self.steps, learning_rate=learning_rate)
        if strategy.auto_freeze is not None or any(phase.until for phase in phases):  # evaluations decide more there
            every = self.shared.eval_every or 1
            given["eval_every"] = next(every // parts for parts in (4, 3, 2, 1) if every % parts == 0)
        if len(phases) == 1 and str(phases[0]) == str(dataclasses.replace(phases[0], layer_decay=None)):
            given |= {"train": phases[0].train, "steps": self.steps}
        else:
            given["phase"] = tuple(map(str, phases))
        return dataclasses.replace(self.shared, adapt=strategy.adapt, auto_freeze=strategy.auto_freeze, **given)

    def range_test(self, strategy: Strategy, seed: int) -> FinetuneConfig:
        """The run whose rate a range test lets grow: the first phase of a strategy, without evaluations."""
        phase = strategy.phases_of_run(self.steps, learning_rate=LOWEST)[0]
        steps = RANGE_STEPS + 1  # the last one is not taken, and its evaluation not made
        return dataclasses.replace(
            self.shared,
            adapt=strategy.adapt,
            train=phase.train,
            layer_decay=phase.layer_decay,
            steps=steps,
            eval_every=steps,
            early_stop=None,
            schedule="constant",
            learning_rate=LOWEST,
            seed=seed,
            **_optimizer_fields(strategy),
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One strategy with one learning rate and one seed.

    Attributes:
        strategy: the name of the strategy that is trained.
        origin: why this rate is tried: "given", "range test" or "extension".
    """

    strategy: str
    learning_rate: float
    seed: int
    origin: str = "given"

    @property
    def name(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.strategy}-{self.learning_rate!r}-{self.seed}"

    def describe(self) -> str:
        return f"{self.strategy}, learning rate {self.learning_rate:g}, seed {self.seed}"


def write_command(config: FinetuneConfig, *, cache_dir: pathlib.Path | None) -> str:
    """The command that does a trial as a run of its own; ``cache_dir`` is where its features are kept, if they are."""
    if cache_dir is not None:
        config = dataclasses.replace(config, cache_dir=os.fspath(cache_dir))
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words += as_lines(field.name, value)
    return shlex.join(["frostline", "finetune", *words])


def name_trials(strategy: str, rates: Sequence[float], seeds: Sequence[int], origin: str) -> list[Trial]:
    """The trials of some rates, each with every seed."""
    return [Trial(strategy=strategy, learning_rate=rate, seed=seed, origin=origin) for rate in rates for seed in seeds]


def _optimizer_fields(strategy: Strategy) -> dict[str, Any]:
    """The optimizer of a strategy with its options, as fields of ``FinetuneConfig``."""
    name, *options = strategy.optimizer.split(",")
    return {"optimizer": name} | {key: _number(text) for key, _, text in (each.partition("=") for each in options)}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
