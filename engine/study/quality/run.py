"""Carries out a quality study: fills the caches that strategies share, searches, and judges what was chosen."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.data import Part
from engine.data.corruptions import Corruption
from engine.errors import InputError
from engine.feature_cache.policy import CachePolicy
from engine.recipes.config import FinetuneConfig
from engine.recipes.predictor import PredictionError
from engine.recipes.stages import requested_phases, resolve_stages
from engine.recipes.task import Task
from engine.study.job import StudyError
from engine.study.quality.bench import Bench, Stand
from engine.study.quality.group import Group, Stopped
from engine.study.quality.judging import Judge, Judgement, choose_ratio
from engine.study.quality.listener import QualityListener
from engine.study.quality.search import Found, Search, Searcher
from engine.study.quality.store import Store
from engine.study.quality.trial import Setup, Trial
from engine.study.strategies import Strategy
from engine.training.loop import Event, Stage, State
from engine.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """What a quality study does.

    Attributes:
        setup, search: what all trials share, and how rates are searched.
        strategies: in the order of the report.
        task, data: the task without adapters, with its first values, and the fingerprint of its source.
        part_name: "test", or "evaluation" where the data have no test part.
        caches: the folder of the feature caches.
    """

    setup: Setup
    search: Search
    strategies: Sequence[Strategy]
    task: Task
    data: str
    corrupt: tuple[Corruption, ...]
    caches: pathlib.Path

    @property
    def part_name(self) -> str:
        return "evaluation" if self.task.source.test is None else "test"

    @property
    def part(self) -> Part:
        """The examples that judge."""
        return self.task.source.eval if self.task.source.test is None else self.task.source.test

    def configure(self, strategy: Strategy, trial: Trial) -> FinetuneConfig:
        """The plain run that a trial is."""
        return self.setup.config(strategy, trial.learning_rate, trial.seed)

    @property
    def trained(self) -> dict[str, Strategy]:
        """The strategies that are trained, by name: one whose weights are averaged afterwards stands for the one that is."""
        found: dict[str, Strategy] = {}
        for strategy in sorted(self.strategies, key=lambda one: one.interpolated is not None):
            name = strategy.interpolated or strategy.name
            found.setdefault(name, dataclasses.replace(strategy, name=name, interpolated=None))
        return dict(sorted(found.items(), key=lambda item: item[1].adapt or ""))  # those with equal adapters together


@dataclass(kw_only=True)
class QualityResult:
    """What a quality study has come to.

    Attributes:
        found: what the search of each trained strategy has found.
        judged: what the judging part says of each strategy.
        ratios: the shares of the trained weights by strategy and seed, of those that are averaged.
        failed: the reason, for each strategy that could not be judged.
        seconds: of the search and of judging, in this invocation.
        stopped: whether it was stopped before its end.
    """

    found: dict[str, Found] = field(default_factory=dict)
    judged: dict[str, Judgement] = field(default_factory=dict)
    ratios: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"search": 0.0, "judging": 0.0})
    stopped: bool = False


def run_quality(plan: QualityPlan, out: pathlib.Path, listener: QualityListener) -> QualityResult:
    """Searches the best rate of each strategy, and judges each once at the end.

    A study that was stopped goes on where it was: trials that have ended, and strategies that have been judged, are kept in
    the folder. Raises StudyError if the folder holds trials that do not belong to this study.
    """
    store, result = Store(out), QualityResult()
    store.prepare()
    bench = Bench(plan.setup.shared, plan.task)
    try:
        _search_all(plan, bench, store, result, listener)
        _judge_all(plan, bench, store, result, listener)
    except (Stopped, KeyboardInterrupt):
        result.stopped = True
    return result


def _search_all(
    plan: QualityPlan, bench: Bench, store: Store, result: QualityResult, listener: QualityListener
) -> None:
    started = time.perf_counter()
    waiting = dict(plan.trained)
    filled = False

    def open_stand(strategy: Strategy) -> Stand:
        nonlocal filled
        stand = bench.stand(strategy.adapt)
        if strategy.adapt is None and not filled:
            filled = True
            fill_caches(plan, stand, [one for one in waiting.values() if one.adapt is None], listener)
        return stand

    try:
        for name, strategy in plan.trained.items():
            listener.searching(name)
            judged = [one.name for one in plan.strategies if (one.interpolated or one.name) == name]
            searcher = Searcher(
                plan.search,
                name,
                stand=functools.partial(open_stand, strategy),
                configure=functools.partial(plan.configure, strategy),
                configure_range=functools.partial(plan.setup.range_test, strategy),
                store=store,
                data=plan.data,
                caches=plan.caches,
                keep=not all(map(store.is_judged, judged)),
                listener=listener,
            )
            try:
                found = result.found[name] = searcher.run()
            except StudyError:
                raise
            except InputError as error:  # of this strategy alone, such as a layer that XLA cannot compile
                result.found[name], result.failed[name] = Found(records=searcher.known), str(error)
            else:
                store.drop_values(trial for trial in found.records if trial not in found.best)
            del waiting[name]
    finally:
        result.seconds["search"] = time.perf_counter() - started


def fill_caches(plan: QualityPlan, stand: Stand, strategies: Iterable[Strategy], listener: QualityListener) -> None:
    """Fills the feature caches that all trials of these strategies use, in one pass over the images where that can be.

    A cache pays for all of them together: how long its phase is counts once for each trial.
    """
    each = len(plan.search.seeds) * (len(plan.search.rates) or 3)
    together: dict[Any, Stage] = {}
    for strategy in strategies:
        config = plan.configure(strategy, Trial(strategy=strategy.name, learning_rate=1e-3, seed=stand.task.seed))
        if config.make_optimizer() != plan.setup.shared.make_optimizer():
            continue  # another step; its trials find the caches nevertheless
        trained: set[str] = set()
        for stage in resolve_stages(config, stand.task, requested_phases(config, stand.task)):
            if not trained & {entry.path for entry in stage.selection.frozen}:
                steps = each * stage.phase.step_count(stand.task.per_epoch)
                before = together.get(stage.selection)
                phase = Phase(
                    name=f"{strategy.name}/{stage.phase.name}" if before is None else before.phase.name,
                    train=stage.phase.train,
                    steps=steps + (0 if before is None else before.phase.steps or 0),
                )
                together[stage.selection] = dataclasses.replace(stage, phase=phase)
            trained |= {entry.path for entry in (*stage.selection.trained, *stage.selection.moving)}
    stages = sorted(together.values(), key=lambda stage: -len(stage.selection.frozen))  # the highest line first
    if not stages:
        return
    config = plan.setup.shared
    group = Group(config, stand, data=plan.data, caches=plan.caches)
    policy: CachePolicy = group.open_policy(stand.task, group.step, config, say=listener.say, stop=listener.should_stop)
    policy.decide(stages, per_epoch=stand.task.per_epoch, eval_every=plan.search.eval_every)
    for stage in stages:
        policy(Event("phase", State(), stage))
        if listener.should_stop():
            raise Stopped
    used = {row["name"] for row in policy.facts()["phases"] if row["used"]}
    stand.filled |= {stage.selection for stage in stages if stage.phase.name in used}
    policy.close()
    group.close()


def _judge_all(plan: QualityPlan, bench: Bench, store: Store, result: QualityResult, listener: QualityListener) -> None:
    started, judging = time.perf_counter(), ""
    judge = Judge(
        plan.part,
        plan.part_name,
        corrupt=plan.corrupt,
        progress=lambda done, passes: listener.judging(judging, done, passes),
    )
    try:
        for strategy in sorted(plan.strategies, key=lambda one: one.adapt or ""):
            found, judging = result.found[strategy.interpolated or strategy.name], strategy.name
            if found.chosen is None:
                continue
            if listener.should_stop():
                raise Stopped
            config = plan.configure(strategy, found.best[0])
            kept: Mapping[str, Any] | None = store.read("judged", strategy.name, config)
            if kept is None:
                listener.judging(strategy.name, 0, len(plan.search.seeds) * (1 + len(plan.corrupt)))
                try:
                    kept = _judge(config, bench, store, strategy, found, judge)
                except PredictionError as error:
                    kept = store.write("judged", strategy.name, config, {"failed": str(error)})
            if "failed" in kept:
                result.failed[strategy.name] = kept["failed"]
                continue
            result.judged[strategy.name] = Judgement.read(kept["facts"], store.read_arrays(strategy.name))
            if kept["ratios"]:
                result.ratios[strategy.name] = {int(seed): ratio for seed, ratio in kept["ratios"].items()}
        store.drop_values(trial for found in result.found.values() for trial in found.records)
    finally:
        result.seconds["judging"] = time.perf_counter() - started


def _judge(
    config: FinetuneConfig, bench: Bench, store: Store, strategy: Strategy, found: Found, judge: Judge
) -> Mapping[str, Any]:
    stand = bench.stand(strategy.adapt)
    values = {trial.seed: store.read_values(trial) for trial in found.best}
    ratios: dict[str, float] = {}
    if strategy.interpolated is not None:
        for seed, tuned in values.items():
            ratios[str(seed)], values[seed] = choose_ratio(stand, config, seed, tuned)
    judged = judge.judge(stand, config, values)
    store.write_arrays(strategy.name, judged.arrays())
    return store.write("judged", strategy.name, config, {"facts": judged.facts, "ratios": ratios})
