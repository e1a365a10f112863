"""Keeps the feature caches of a run: an action of the loop that fills a phase's caches when the phase begins.

Each phase is cut at its frost line (engine.frostline.line). If engine.feature_cache.decision decides to cache it, the
tensors at the line are stored on disk (engine.feature_cache.store), and the phase's steps and evaluations read them there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine import part_times
from engine.data.batches import EvalBatches, TrainBatches
from engine.data.part import DataError
from engine.distribution.distribution import ALONE, DisagreementError, Distribution
from engine.distribution.shares import Share
from engine.distribution.together import PeerFailedError, is_of_kind, work_together
from engine.errors import InputError
from engine.feature_cache.ahead import Ahead, Caches, find_ahead, join_passes
from engine.feature_cache.batches import EvalFeatureBatches, FeatureBatches
from engine.feature_cache.decision import CacheDecision, Cuts, Decider
from engine.feature_cache.eviction import evict_caches, hold_cache
from engine.feature_cache.filling import Compute
from engine.feature_cache.options import CacheOptions
from engine.feature_cache.store import Features
from engine.feature_cache.workers import PATIENCE, agree_on_missing, check_shared
from engine.frostline.cuts import cut_evaluation
from engine.frostline.line import FrostLine, Refused
from engine.sizes import format_bytes
from engine.training.evaluation import WATCHED, Evaluator
from engine.training.loop import Event, LoopError, Stage
from engine.training.step import TrainStep


class ShowsProgress(Protocol):
    """Shows how much of a long task is done, as ``progress.show_progress`` does."""

    def __call__(self, total: int, what: str) -> contextlib.AbstractContextManager[Callable[..., None]]: ...


@dataclass
class _Open:
    """The caches of the current phase."""

    caches: Caches
    held: contextlib.ExitStack


class CachePolicy:
    """Decides which phases train from caches, and keeps those caches while the loop runs.

    Args:
        step, evaluator: the step that trains, and the evaluation of the same loss.
        train, evaluation: training steps and evaluation batches of images.
        data: the fingerprint of the source.
        distribution: the workers, each of which computes a share of what the caches lack, and which decide alike.
        rows_at_once: the number of examples whose features are computed at once; None takes that of a micro-batch.
        cuts: what other runs with siblings of this step and the same evaluator have cut already.
        say: called with one line of text per event.
        stop: called while a cache is filled; True stops that, and finished shards stay on disk.

    Attributes:
        shows: shows how much of a cache is filled; may be set until the loop runs.
    """

    def __init__(
        self,
        step: TrainStep,
        evaluator: Evaluator,
        *,
        train: TrainBatches,
        evaluation: EvalBatches,
        data: str,
        options: CacheOptions,
        distribution: Distribution = ALONE,
        rows_at_once: int | None = None,
        cuts: Cuts | None = None,
        say: Callable[[str], None] = print,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._workers = distribution
        self._rows_at_once = rows_at_once or step.micro_batch_size or train.batch_size
        self._step, self._evaluator, self._options = step, evaluator, options
        self._cuts = cuts or Cuts()
        given: dict[str, Any] = {"train": train, "evaluation": evaluation, "data": data, "options": options}
        self._decider = Decider(step, **given, cuts=self._cuts)
        self._train, self._evaluation = train, evaluation
        self._say, self._stop = say, stop
        self.shows: ShowsProgress | None = None
        self._decisions: dict[str, CacheDecision] = {}
        self._open: _Open | None = None
        self._stages: list[Stage] = []
        self._held: dict[str, contextlib.ExitStack] = {}  # by later phase: its caches that are filled ahead
        self._uncut: dict[str, Refused | None] = {}
        self._lower: Caches = {}  # this run's last caches: those at a higher line are computed from them
        self._seconds: dict[str, float] = {}
        self._computed: dict[str, int] = {}
        self._watched: Mapping[str, Any] | None = None

    def decide(
        self,
        stages: Sequence[Stage],
        *,
        per_epoch: int,
        eval_every: int,
        saved: Sequence[bool] | None = None,
        look: bool = False,
        existing: bool = True,
    ) -> list[CacheDecision]:
        """Decides for every phase, before the first step; or for more phases, which follow those before.

        Args:
            per_epoch, eval_every: steps in an epoch, and between evaluations.
            saved: the decisions of the run that is resumed; they are repeated.
            look: whether to find the frost line even without a cache, in order to show it.
            existing: whether caches that are on the disk already count; without them, every process decides alike.

        Raises:
            CacheError: a cache is required, but a phase cannot have one, which names the phase and the reason; or there
                are caches, but the workers do not share their folder.
        """

        def decide(saved: Sequence[bool] | None) -> list[CacheDecision]:
            return self._decider.decide(
                stages, per_epoch=per_epoch, eval_every=eval_every, saved=saved, look=look, existing=existing
            )

        found, told = work_together(self._workers, lambda: decide(saved), tell=lambda made: [one.used for one in made])
        if any(used != told[0] for used in told):  # the chief may see other rows: it decides
            found, _ = work_together(
                self._workers, lambda: found if told[self._workers.worker] == told[0] else decide(told[0])
            )
        if self._workers.workers > 1 and any(told[0]) and not look:
            check_shared(self._workers, self._options.root)
        self._decisions |= {stage.phase.name: decision for stage, decision in zip(stages, found, strict=True)}
        self._stages += stages
        return list(self._decisions.values())

    def __call__(self, event: Event) -> None:
        """Fills a phase's caches when it begins, and closes those before; LoopError if one is required but cannot be."""
        if event.kind != "phase":
            return
        if self._open is not None:
            self._open.held.close()
            self._open = None
        name = event.stage.phase.name
        decision = self._decisions[name]
        if not decision.used or not isinstance(decision.line, FrostLine):
            return
        started = time.perf_counter()
        try:
            self._open = self._fill_all(event.stage, decision.line)
        # the disk, or values that the stored type cannot represent, here or on another worker
        except (InputError, OSError, PeerFailedError) as failed:
            if is_of_kind(failed, DataError, DisagreementError) or not is_of_kind(failed, InputError, OSError):
                raise  # such as a damaged image, without which the phase cannot train either
            error = str(failed)
            if isinstance(failed, OSError):
                error = f"{self._options.root}: cannot keep the cache there ({failed.strerror or failed})"
            if self._options.mode == "require":
                raise LoopError(f"cache=require: phase {name!r}: {error}") from None
            self._decisions[name] = dataclasses.replace(decision, used=False, reason=error, bytes=0)
            self._say(f"cache  | {name}: training without a cache: {error}")
        self._seconds[name] = time.perf_counter() - started

    @part_times.part("features")
    def _fill_all(self, stage: Stage, line: FrostLine) -> _Open | None:
        """The phase's caches, filled; None if that was stopped."""
        name, workers = stage.phase.name, self._workers
        both, _ = work_together(workers, lambda: self._open_caches(stage, line))
        if (uncut := self._uncut[name]) is not None:
            self._say(f"cache  | {name}: evaluations see images: {'; '.join(uncut.reasons)}")
        with contextlib.ExitStack() as held:
            work_together(workers, lambda: [held.enter_context(hold_cache(cache.folder)) for cache in both.values()])
            if name in self._held:  # now held twice
                self._held.pop(name).close()
            for damaged in [text for cache in both.values() for text in cache.damaged]:
                self._say(f"cache  | damaged, will be recomputed: {damaged}")
            agree_on_missing(workers, list(both.values()))
            ahead = self._agree_ahead(stage, line, both)
            every = [*both.values(), *(cache for one in ahead for cache in one.caches.values())]
            work_together(workers, lambda: self._evict(every) if workers.is_chief else None)
            missing = sum(cache.missing_rows for cache in both.values())
            rows = sum(cache.rows for cache in both.values())
            shared = f" by {workers.workers} workers" if workers.workers > 1 else ""
            self._say(
                f"cache  | {name}: {rows - missing:,} of {rows:,} rows exist, {missing:,} will be computed{shared} "
                f"({format_bytes(sum(cache.bytes for cache in both.values()))} in {self._options.root})"
            )
            if not self._fill_parts(name, line, both, ahead):
                return None
            self._lower = both
            return _Open(both, held.pop_all())

    def _evict(self, every: Sequence[Features]) -> None:
        """Makes room for what the caches lack."""
        needed = sum(cache.bytes * cache.missing_rows // cache.rows for cache in every)
        if self._options.budget is not None and needed:
            for removed in evict_caches(self._options.root, needed, self._options.budget):
                self._say(f"cache  | removed {removed}: --cache_budget covers all caches together")

    def _open_caches(self, stage: Stage, line: FrostLine) -> Caches:
        """The caches of a phase: of the training part, and of the evaluation part unless evaluations see images."""
        train, evaluation = self._decider.open_features(line)
        return {"train": train} if self.evaluates_images(stage, line) else {"train": train, "evaluation": evaluation}

    def evaluates_images(self, stage: Stage, line: FrostLine) -> bool:
        """Whether evaluations of a phase that is cut at this line see images, because they cannot be cut there."""
        name = stage.phase.name
        if name not in self._uncut:
            known, key = self._cuts.evaluations, (stage.selection, line)
            if key not in known:
                known[key] = cut_evaluation(self._evaluator, stage.selection, line, self._first_examples())
            self._uncut[name] = known[key]
        return self._uncut[name] is not None

    def _agree_ahead(self, stage: Stage, line: FrostLine, both: Caches) -> list[Ahead]:
        """The later phases whose caches all workers can fill in the same pass."""
        found, told = work_together(
            self._workers,
            lambda: self._find_ahead(stage, line, both),
            tell=lambda ahead: [one.phase for one in ahead],
        )
        found = [one for one in found if all(one.phase in phases for phases in told)]
        agree_on_missing(self._workers, [cache for one in found for cache in one.caches.values()])
        return found

    def _find_ahead(self, stage: Stage, line: FrostLine, both: Caches) -> list[Ahead]:
        """The later phases whose caches are filled in the same pass; their caches are held until they begin."""
        train, lower = both["train"], self._lower.get("train")
        if not train.missing_rows or (lower is not None and train.find_bridge(lower) is not None):
            return []  # no pass over the images
        later = self._stages[self._stages.index(stage) + 1 :]
        name = stage.phase.name
        found = find_ahead(
            stage,
            line,
            both,
            [(after, self._decisions[after.phase.name]) for after in later],
            open_caches=self._open_caches,
            budget=self._options.budget,
            say=lambda reason: self._say(f"cache  | {name}: {reason}"),
        )
        for one in found:
            self._held[one.phase] = contextlib.ExitStack()
            for cache in one.caches.values():
                self._held[one.phase].enter_context(hold_cache(cache.folder))
        return found

    def _fill_parts(self, name: str, line: FrostLine, both: Caches, ahead: Sequence[Ahead]) -> bool:
        """Fills the caches of a phase, and those of later phases with them; False if that was stopped."""

        def say(text: str) -> None:
            self._say(f"cache  | {name}: {text}")

        compute = join_passes(line, ahead, say) if ahead else None
        if compute is not None:
            rows = ", ".join(
                f"{one.phase} ({sum(c.missing_rows for c in one.caches.values()):,} rows)" for one in ahead
            )
            say(f"one pass over the images also computes the features of phase {rows}")
        for part, cache in both.items():
            others = [one.caches[part] for one in ahead if part in one.caches] if compute is not None else []
            if len(others) < len(ahead):  # one of them evaluates images
                others = []
            lower = self._lower.get(part)
            try:
                joint = {one.phase: other for one, other in zip(ahead, others, strict=False)}
                whole = self._fill({name: cache} | joint, lower, compute if others else None)
            except (InputError, OSError, PeerFailedError) as error:
                if not others or is_of_kind(error, DataError) or not is_of_kind(error, InputError, OSError):
                    raise
                say(f"later phases compute their features when they begin: {error}")
                agree_on_missing(self._workers, [cache])
                whole = self._fill({name: cache}, lower, None)
            if not whole:
                return False
        return True

    def _fill(self, caches: Mapping[str, Features], lower: Features | None, compute: Compute | None) -> bool:
        """Fills the cache of this phase, the first, and with it those of later ones; False if that was stopped."""
        workers, (cache, *ahead) = self._workers, caches.values()
        share = Share(workers.worker, workers.worker + 1, workers.workers)
        total, before = cache.own_rows(share), cache.rows - cache.missing_rows
        computed = [each.computed for each in caches.values()]
        waits = workers.workers > 1 and any(each.missing_rows for each in caches.values())

        def fill() -> tuple[bool, list[int]]:
            with contextlib.ExitStack() as stack:
                what = f"cache {next(iter(caches))}"
                show = stack.enter_context(self.shows(total, what)) if self.shows and total else None
                whole = cache.fill(
                    batch_size=self._rows_at_once,
                    stop=self._stop,
                    progress=lambda done, _: show(done - before) if show is not None else None,
                    lower=lower,
                    ahead=ahead,
                    compute=compute,
                    share=share,
                )
            return whole, [each.computed - own for each, own in zip(caches.values(), computed, strict=True)]

        _, told = work_together(workers, fill, tell=list)
        for place, phase in enumerate(caches):
            self._computed[phase] = self._computed.get(phase, 0) + sum(rows[place] for _, rows in told)
        if not all(whole for whole, _ in told):
            return False
        if waits:

            def take_over() -> None:
                for each in caches.values():
                    each.take_over(patience=PATIENCE, writes=workers.is_chief)

            work_together(workers, take_over)
        return True

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        """The steps [start, stop) of the current phase, which is ``stage``."""
        if self._open is None:
            return self._train.between(start, stop)
        return FeatureBatches(self._train, self._open.caches["train"]).between(start, stop)

    def evaluation(self) -> tuple[Iterable[Mapping[str, Any]], Mapping[str, Any] | None]:
        """The evaluation batches in the current phase; and, if those have no images, a batch of images to watch."""
        if self._open is None or "evaluation" not in self._open.caches:
            return self._evaluation, None
        return EvalFeatureBatches(self._evaluation, self._open.caches["evaluation"]), self._first_examples()

    def close(self) -> None:
        """Lets go of the caches, which stay on disk."""
        for held in [*self._held.values(), *([] if self._open is None else [self._open.held])]:
            held.close()
        self._held, self._open, self._lower = {}, None, {}

    def _first_examples(self) -> Mapping[str, Any]:
        """The first examples of the evaluation part."""
        if self._watched is None:
            size = min(WATCHED, len(self._evaluation.part))
            first = EvalBatches(self._evaluation.part, batch_size=size, normalise=self._evaluation.normalise)
            self._watched = next(iter(first))
        return self._watched

    def facts(self) -> dict[str, Any]:
        """The "cache" of run.json: what all phases used together, and each phase's own."""
        rows: list[dict[str, Any]] = []
        for name, decision in self._decisions.items():
            cut = [tensor.name for tensor in decision.line.tensors] if isinstance(decision.line, FrostLine) else []
            rows.append(
                {
                    "name": name,
                    "used": decision.used,
                    "cut": cut if decision.used else [],
                    "bytes": decision.bytes,
                    "reason": decision.reason,
                    "computed_rows": self._computed.get(name, 0),
                    "seconds": self._seconds.get(name, 0.0),
                }
            )
        used = [row for row in rows if row["used"]]
        return {
            "used": bool(used),
            "cut": list(dict.fromkeys(tensor for row in used for tensor in row["cut"])),
            "bytes": sum(row["bytes"] for row in used),
            "reason": "; ".join(f"phase {row['name']}: {row['reason']}" for row in rows),
            "phases": rows,
        }
