"""The search for the best learning rate of a strategy: which trials are run, how long, and which rate is chosen."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.recipes.config import FinetuneConfig
from engine.study.quality import rates as learning_rates
from engine.study.quality.bench import Stand
from engine.study.quality.group import Course, Group
from engine.study.quality.listener import QualityListener
from engine.study.quality.store import Store
from engine.study.quality.trial import Trial, name_trials
from engine.training.step_result import NonFiniteError

Record = Mapping[str, Any]
_DIVERGED = 10  # times the evaluation loss before training: worse than knowing nothing by far
_RUNGS = (4, 2)  # halving drops the worse half after a fourth and after a half of the steps


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the rates of a strategy are searched.

    Attributes:
        rates: those to be tried; none finds them by a range test.
        kind: "grid" trains each to the end; "halving" drops the worse half of the rates twice.
        extend: whether a search goes on beyond the end of its grid where the best rate lies there.
        by: the figure of the evaluation part that decides, "eval_accuracy" or "eval_loss".
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    kind: str
    extend: bool
    by: str
    steps: int
    eval_every: int

    @property
    def rungs(self) -> list[int]:
        """The numbers of steps after which halving drops rates; each is one after which trials are evaluated."""
        if self.kind != "halving":
            return []
        found = {self.steps // part // self.eval_every * self.eval_every for part in _RUNGS}
        return sorted(rung for rung in found if 0 < rung < self.steps)


@dataclass(kw_only=True)
class Found:
    """What a search has found.

    Attributes:
        records: what is kept of each trial.
        chosen: the best rate; None if none is usable.
        range_test: as ``rates.run_range_test`` returns it; None if there was none.
    """

    records: dict[Trial, Record] = field(default_factory=dict)
    chosen: float | None = None
    range_test: Record | None = None

    @property
    def best(self) -> list[Trial]:
        """The trials with the best rate, a seed each."""
        return [trial for trial in self.records if trial.learning_rate == self.chosen]


class Searcher:
    """Searches the best rate of one strategy.

    Args:
        configure, configure_range: the configuration of a trial, and that of the range test with a seed.
        caches: the folder of the feature caches.
        keep: whether the values of the best trials are needed, to be judged.

    Attributes:
        known: what is kept of the trials that have ended.
    """

    def __init__(
        self,
        search: Search,
        strategy: str,
        *,
        stand: Callable[[], Stand],
        configure: Callable[[Trial], FinetuneConfig],
        configure_range: Callable[[int], FinetuneConfig],
        store: Store,
        data: str,
        caches: pathlib.Path,
        keep: bool,
        listener: QualityListener,
    ) -> None:
        self.search, self.strategy, self._configure = search, strategy, configure
        self._configure_range = configure_range
        self._open_stand, self._store, self._data, self._caches = stand, store, data, caches
        self._keep_values, self._listener = keep, listener
        self._group: Group | None = None
        self.known: dict[Trial, Record] = {}

    def run(self) -> Found:
        """Runs the trials that are missing, and chooses. ``group.Stopped`` ends it early; what has ended is kept."""
        found = Found(records=self.known)
        try:
            rates, origin = self.search.rates, "given"
            if not rates:
                found.range_test = self._test_range()
                rates, origin = learning_rates.build_grid(found.range_test["suggested"]), "range test"
            self._run_trials(rates, origin)
            for _ in range(learning_rates.EXTENSIONS if self.search.extend and not self.search.rates else 0):
                best = self._choose()
                tried = {trial.learning_rate for trial in self.known}
                more = None if best is None else learning_rates.extend_grid(sorted(tried), best)
                if best is None:  # all of them diverge
                    more = learning_rates.next_rate(min(tried), up=False)
                if more is None:
                    break
                self._run_trials((more,), "extension")
            found.chosen = self._choose()
            lost = [trial for trial in found.best if self._keep_values and not self._store.has_values(trial)]
            for _ in self._advance(lost, self.search.steps + 1):  # removed by someone, or by a choice among fewer rates
                pass
            return found
        finally:
            if self._group is not None:
                self._group.close()

    def _run_trials(self, rates: Sequence[float], origin: str) -> None:
        """Brings the trials of some rates to their ends."""
        trials = name_trials(self.strategy, rates, self.search.seeds, origin)
        missing = []
        for trial in trials:
            kept = self._store.read_trial(trial, self._configure(trial))
            if kept is None:
                missing.append(trial)
            else:
                self._end(trial, kept)
        for rung in self.search.rungs if origin != "extension" else ():
            for course in self._advance(list(missing), rung):
                missing.remove(course.trial)
            for trial in self._find_worse(trials, rung):
                if trial in missing:
                    missing.remove(trial)
                    self._keep(trial, "dropped")
        for _ in self._advance(list(missing), self.search.steps + 1):
            pass

    def _advance(self, trials: Sequence[Trial], until: int) -> Iterator[Course]:
        """Trains until these have taken so many steps; yields, and keeps, those that have ended."""
        if not trials:
            return
        group = self._open_group(trials[0])
        for trial in trials:
            if trial not in group.courses:
                self._listener.trial_started(trial)
                group.add(trial, self._configure(trial))
        uncached = not all(all(decision.used for decision in group.courses[trial].decisions) for trial in trials)
        for some in (
            [[trial] for trial in trials] if uncached else [list(trials)]
        ):  # the sooner one ends, the more is kept
            group.advance(some, until, self._tell)
            for trial in some:
                if (course := group.courses[trial]).ended is not None:
                    self._keep(trial, course.ended)
                    yield course

    def _tell(self, course: Course) -> None:
        self._listener.trial_step(course.trial, course.steps, self.search.steps)

    def _keep(self, trial: Trial, ended: str) -> None:
        """Keeps a trial that has ended, or that is dropped."""
        assert self._group is not None
        course, config = self._group.courses.pop(trial), self._configure(trial)
        whole = ended in ("done", "early_stop")
        last: Mapping[str, Any] = course.points[-1] if course.points else {}
        reason = course.reason or (_find_divergence(course.points) if whole else "")
        if whole and reason:
            ended, whole = "diverged", False
        facts = {"ended": ended, "reason": reason, **course.describe()}
        facts |= {name: last.get(name) for name in ("eval_accuracy", "eval_loss")}
        self._end(trial, self._store.write_trial(trial, config, facts, course.values() if whole else None))
        course.close()

    def _end(self, trial: Trial, record: Record) -> None:
        self.known[trial] = record
        self._listener.trial_ended(trial, record)

    def _open_group(self, trial: Trial) -> Group:
        if self._group is None:
            given: dict[str, Any] = {"data": self._data, "caches": self._caches, "stop": self._listener.should_stop}
            self._group = Group(self._configure(trial), self._open_stand(), **given)
        return self._group

    def _test_range(self) -> Record:
        """The range test of the first phase, with the first seed."""
        trial = Trial(strategy=self.strategy, learning_rate=learning_rates.LOWEST, seed=self.search.seeds[0])
        config = self._configure_range(trial.seed)
        kept = self._store.read("ranges", self.strategy, config)
        if kept is not None:
            return kept
        group = self._open_group(trial)
        course = group.add(trial, config)
        course.begin()

        def train(rate: float) -> float | None:
            if course.request is None:
                return None
            request = course.request._replace(learning_rate=rate)
            result = group.members.train({course.member: request})[course.member]
            if isinstance(result, NonFiniteError):
                return None
            course.send(result)
            return float(result.loss)

        found = learning_rates.run_range_test(train)
        group.courses.pop(trial).close()
        return self._store.write("ranges", self.strategy, config, found)

    # ---- which is best

    def _find_worse(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """The trials of the worse half of the rates that were still trained before this rung."""
        scores = {}
        for rate in dict.fromkeys(trial.learning_rate for trial in trials):
            mine = [trial for trial in trials if trial.learning_rate == rate]
            if all(self._is_trained(trial, rung) for trial in mine):
                scores[rate] = np.mean([self._score(self._points(trial), rung) for trial in mine])
        kept = sorted(scores, key=lambda rate: (-scores[rate], rate))[: -(-len(scores) // 2)]
        return [trial for trial in trials if trial.learning_rate in scores and trial.learning_rate not in kept]

    def _is_trained(self, trial: Trial, rung: int) -> bool:
        """Whether a trial went on to this rung."""
        record = self.known.get(trial)
        return record is None or (
            record["ended"] != "diverged" and (record["ended"] != "dropped" or record["steps"] >= rung)
        )

    def _points(self, trial: Trial) -> Sequence[Mapping[str, Any]]:
        if trial in self.known:
            points: Sequence[Mapping[str, Any]] = self.known[trial]["points"]
            return points
        assert self._group is not None
        return self._group.courses[trial].points

    def _score(self, points: Sequence[Mapping[str, Any]], rung: int) -> float:
        """The figure of the last evaluation up to a rung; higher is better."""
        last = [point for point in points if point["step"] <= rung][-1]
        return _rank(last, self.search.by)[0]

    def _choose(self) -> float | None:
        """The rate with the best mean over the seeds; of equal ones that with the lower loss, then the lower rate."""
        ranks: dict[float, tuple[float, ...]] = {}
        for rate in dict.fromkeys(trial.learning_rate for trial in self.known):
            mine = [record for trial, record in self.known.items() if trial.learning_rate == rate]
            if all(record["ended"] in ("done", "early_stop") for record in mine):
                ranks[rate] = (*np.mean([_rank(record, self.search.by) for record in mine], axis=0), -rate)
        return max(ranks, key=lambda rate: ranks[rate]) if ranks else None


def _find_divergence(points: Sequence[Mapping[str, Any]]) -> str:
    """Why training that came to its end has diverged nevertheless; "" if it has not."""
    before, after = (
        math.nan if point["eval_loss"] is None else point["eval_loss"] for point in (points[0], points[-1])
    )
    if not math.isfinite(after):
        return "the evaluation loss is not finite after the last step"
    if after > _DIVERGED * before:
        return f"the evaluation loss is {after:.3g} after the last step, more than {_DIVERGED} times the {before:.3g} before"
    return ""


def _rank(point: Mapping[str, Any], by: str) -> tuple[float, float]:
    """Higher is better."""
    known = point["eval_loss"] is not None and math.isfinite(point["eval_loss"])
    loss = -point["eval_loss"] if known else -math.inf
    return (loss if by == "eval_loss" or not known else float(point["eval_accuracy"])), loss
