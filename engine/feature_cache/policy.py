"""Which phases train from kept features: decided before the first step, in words, and done when a phase begins.

A phase is cut at its frost line (engine.frostline.line). Whether that pays is estimated from multiply-adds and bytes alone,
never from the clock, so that the same flags decide the same. What the frozen part gives is then kept on disk
(engine.feature_cache.store), and steps and evaluations of the phase read it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from engine.data.batches import EvalBatches, TrainBatches
from engine.errors import InputError
from engine.feature_cache import store
from engine.feature_cache.batches import EvalFeatureBatches, FeatureBatches
from engine.feature_cache.eviction import make_room, taken
from engine.feature_cache.store import Features
from engine.files import PathLike
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine, Refused
from engine.sizes import format_bytes
from engine.training.evaluation import WATCHED, Evaluator
from engine.training.loop import Event, LoopError, Stage
from engine.training.step import TrainStep

Mode = Literal["auto", "off", "require"]
MODES: tuple[Mode, ...] = ("auto", "off", "require")

# In multiply-adds, of which 2 cores do some 3e10 a second: what is not work on examples.
_PREPARING = 6e10  # tracing the parts above and below the line
_WRITTEN, _READ = 60, 15  # a byte: computed into a shard, hashed, written and verified; and read in a step
_PAYS = 0.9  # of the work uncached, at most


class CacheError(InputError):
    """A cache that is required and cannot be."""


class ShowsProgress(Protocol):
    """Shows how much of something long is done, as ``progress.reaching``."""

    def __call__(self, total: int, what: str) -> contextlib.AbstractContextManager[Callable[..., None]]: ...


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What is asked for.

    Attributes:
        mode: "off"; "auto" where it will pay; "require" in every phase, an error where it cannot be.
        root: folder of caches; those of earlier runs are used again when their key is equal.
        dtype: see ``Features``.
        views: augmented views that are kept of each example; None where nothing is augmented.
        budget: bytes that all caches in the folder may take together; None sets no limit.
    """

    mode: Mode
    root: PathLike
    dtype: str | None = None
    views: int | None = None
    budget: int | None = None


@dataclass(frozen=True)
class CacheDecision:
    """What was decided for a phase.

    Attributes:
        used: whether it trains from kept features.
        reason: why, or why not, in words.
        line: where it would be cut, whether used or not; None where it was not looked for.
        bytes: that its caches take on disk.
    """

    used: bool
    reason: str
    line: FrostLine | Refused | None = None
    bytes: int = 0


@dataclass
class _Open:
    """The caches of the phase that runs. ``evaluation`` is None where evaluations see images."""

    train: Features
    evaluation: Features | None
    held: contextlib.ExitStack


class CachePolicy:
    """Decides for each phase and keeps its caches; an action of the loop, which fills them when a phase begins.

    Args:
        step: that trains.
        evaluator: of the same loss.
        train: steps of images.
        evaluation: batches of images.
        data: fingerprint of the source.
        options: what is asked for.
        say: told what happens, a line each.
        stop: asked while a cache is written; True ends that, and what is written stays.

    Attributes:
        shows: shows how far a cache is written; may be set until the loop runs.

    Raises:
        CacheError: the options contradicts itself.
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
        say: Callable[[str], None] = print,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if options.mode not in MODES:
            raise CacheError(f"cache={options.mode!r}: it is one of {', '.join(MODES)}")
        for name in ("dtype", "views"):
            if options.mode == "off" and getattr(options, name) is not None:
                raise CacheError(f"cache_{name}={getattr(options, name)}: with --cache=off nothing is kept")
        if options.dtype is not None and options.dtype not in store.DTYPES:
            raise CacheError(f"cache_dtype={options.dtype!r}: it is {' or '.join(store.DTYPES)}, or not given")
        self._step, self._evaluator, self._data, self._options = step, evaluator, data, options
        self._train, self._evaluation = train, evaluation
        self._say, self._stop = say, stop
        self.shows: ShowsProgress | None = None
        self._choices: dict[str, CacheDecision] = {}
        self._coming: set[str] = set()  # keys of caches that a phase will have filled
        self._open: _Open | None = None
        self._lower: dict[str, Features] = {}  # the last caches of this run: those at a higher line are made from them
        self._seconds: dict[str, float] = {}
        self._computed: dict[str, int] = {}
        self._watched: Mapping[str, Any] | None = None

    # ---- before the first step

    def decide(
        self,
        stages: Sequence[Stage],
        *,
        per_epoch: int,
        eval_every: int,
        saved: Sequence[bool] | None = None,
        look: bool = False,
    ) -> list[CacheDecision]:
        """One choice for each phase.

        Args:
            stages: the phases.
            per_epoch: steps in an epoch.
            eval_every: steps between evaluations.
            saved: what a resumed run had decided: done again.
            look: find the frost line also where no cache is wanted, to be shown.

        Raises:
            CacheError: a cache is required and a phase cannot have one; says which, and why.
        """
        trained: set[str] = set()
        for number, stage in enumerate(stages):
            # a cache that is there counts only where nothing that it was made from trains before
            known = not trained & {entry.path for entry in stage.selection.frozen}
            given = None if saved is None else saved[number]
            choice = self._choice(stage, per_epoch=per_epoch, eval_every=eval_every, known=known, saved=given)
            if look and choice.line is None:
                choice = dataclasses.replace(choice, line=cut_step(self._step, stage.selection, self._train.at(0)))
            if self._options.mode == "require" and not choice.used:
                raise CacheError(f"cache=require: phase {stage.phase.name!r} cannot have one: {choice.reason}")
            self._choices[stage.phase.name] = choice
            trained |= {entry.path for entry in (*stage.selection.trained, *stage.selection.moving)}
        return list(self._choices.values())

    def _choice(
        self, stage: Stage, *, per_epoch: int, eval_every: int, known: bool, saved: bool | None
    ) -> CacheDecision:
        if self._options.mode == "off":
            return CacheDecision(False, "--cache=off")
        if (reason := store.why_not(self._train.augment, self._options.views)) is not None:
            return CacheDecision(False, reason)
        steps = stage.phase.step_count(per_epoch)
        line = cut_step(self._step, stage.selection, self._train.at(0))
        if isinstance(line, Refused):
            return CacheDecision(False, line.describe(), line)
        needed = self._bytes(line)
        if self._options.budget is not None and needed > self._options.budget:
            cheaper = cut_step(self._step, stage.selection, self._train.at(0), most_bytes=self._most_bytes())
            if isinstance(cheaper, Refused) or self._bytes(cheaper) > self._options.budget:
                least = f"; {cheaper.describe()}" if isinstance(cheaper, Refused) else ""
                return CacheDecision(
                    False,
                    f"the cache would take {format_bytes(needed)}, --cache_budget is {format_bytes(self._options.budget)}"
                    f"{least} (--cache_dtype=bfloat16 halves float32)",
                    line,
                )
            line, needed = cheaper, self._bytes(cheaper)
        if saved is not None:
            return CacheDecision(saved, "as the run that is resumed had decided", line, needed)
        try:
            made = self._features(line) if known else ()
        except InputError as error:  # what the frozen part reads has no digest
            return CacheDecision(False, str(error), line)
        missing = sum(found.missing_rows for found in made if found.key not in self._coming) if known else self._rows()
        work = self._work(line, steps, 1 + steps // eval_every, missing)
        told = (
            f"an estimated {_times(work[1] / work[0])} the work uncached: the frozen part is computed for {missing:,} "
            f"rows once, instead of {steps * self._train.batch_size:,} times in {steps:,} steps"
        )
        if work[1] > _PAYS * work[0] and self._options.mode == "auto":
            return CacheDecision(False, f"it would not pay: {told}", line)
        self._coming |= {found.key for found in made}
        return CacheDecision(True, told, line, needed)

    def _rows(self) -> int:
        """Of both caches."""
        return (self._options.views or 1) * len(self._train.part) + len(self._evaluation.part)

    def _width(self, line: FrostLine) -> int:
        """Bytes of a row on disk."""
        size = 2 if self._options.dtype is not None else 8
        return sum(
            t.bytes * min(t.dtype.size, size) // t.dtype.size if t.dtype.is_floating else t.bytes for t in line.tensors
        )

    def _bytes(self, line: FrostLine) -> int:
        return self._rows() * self._width(line)

    def _most_bytes(self) -> int:
        """An example may take at the line: what is computed is wider than what is kept where --cache_dtype narrows it."""
        assert self._options.budget is not None
        wide = 2 if self._options.dtype is not None else 1
        return wide * self._options.budget // self._rows()

    def _work(self, line: FrostLine, steps: int, evaluations: int, missing: int) -> tuple[float, float]:
        """Multiply-adds of the phase uncached and cached; ``missing``: rows that are not there yet."""
        trained, evaluated = steps * self._train.batch_size, evaluations * len(self._evaluation.part)
        below = line.step_share * line.macs
        forward = below / line.forward_share if line.forward_share else 0.0
        uncached = trained * line.macs + evaluated * forward
        width = self._width(line)
        once = missing * (below + _WRITTEN * width) + _PREPARING
        every = (trained + evaluated) * _READ * width
        return uncached, trained * (line.macs - below) + evaluated * (forward - below) + once + every

    def _features(self, line: FrostLine) -> tuple[Features, Features]:
        return (
            Features(
                self._options.root,
                line,
                self._train,
                data=self._data,
                dtype=self._options.dtype,
                views=self._options.views,
            ),
            Features(self._options.root, line, self._evaluation, data=self._data, dtype=self._options.dtype),
        )

    # ---- while it runs

    def __call__(self, event: Event) -> None:
        """Makes a phase's caches when it begins, and lets those of the phase before go.

        Raises:
            LoopError: a cache is required and cannot be made.
        """
        if event.kind != "phase":
            return
        self._close()
        name = event.stage.phase.name
        choice = self._choices[name]
        if not choice.used or not isinstance(choice.line, FrostLine):
            return
        started = time.perf_counter()
        try:
            self._open = self._filled(event.stage, choice.line)
        except (InputError, OSError) as failed:  # the disk, or values that the stored type cannot hold
            where = (
                f"{self._options.root}: the cache cannot be kept there ({getattr(failed, 'strerror', None) or failed})"
            )
            error = where if isinstance(failed, OSError) else str(failed)
            if self._options.mode == "require":
                raise LoopError(f"cache=require: phase {name!r}: {error}") from None
            self._choices[name] = dataclasses.replace(choice, used=False, reason=error, bytes=0)
            self._say(f"cache  | {name}: it trains uncached: {error}")
        self._seconds[name] = time.perf_counter() - started

    def _filled(self, stage: Stage, line: FrostLine) -> _Open | None:
        """The caches, filled; None when that was stopped."""
        name = stage.phase.name
        train, evaluation = self._features(line)
        held = contextlib.ExitStack()
        uncut = cut_evaluation(self._evaluator, stage.selection, line, self._first())
        if uncut is not None:
            self._say(f"cache  | {name}: evaluations see images: {'; '.join(uncut.reasons)}")
        both = {"train": train} if uncut is not None else {"train": train, "evaluation": evaluation}
        try:
            for made in both.values():
                held.enter_context(taken(made.folder))
            for damaged in [text for made in both.values() for text in made.damaged]:
                self._say(f"cache  | damaged, computed again: {damaged}")
            needed = sum(made.bytes * made.missing_rows // made.rows for made in both.values())
            if self._options.budget is not None and needed:
                for gone in make_room(self._options.root, needed, self._options.budget):
                    self._say(f"cache  | {gone} was removed: --cache_budget is for all caches together")
            missing = sum(made.missing_rows for made in both.values())
            rows = sum(made.rows for made in both.values())
            self._say(
                f"cache  | {name}: {rows - missing:,} of {rows:,} rows are there, {missing:,} are computed "
                f"({format_bytes(sum(made.bytes for made in both.values()))} in {self._options.root})"
            )
            for part, made in both.items():
                if not self._fill(name, made, self._lower.get(part)):
                    held.close()
                    return None
        except BaseException:
            held.close()
            raise
        self._lower = both
        return _Open(train, None if uncut is not None else evaluation, held)

    def _fill(self, name: str, made: Features, lower: Features | None) -> bool:
        size, total = self._step.micro_batch_size or self._train.batch_size, made.missing_rows
        there = made.rows - total
        with contextlib.ExitStack() as stack:
            show = stack.enter_context(self.shows(total, f"cache {name}")) if self.shows and total else None
            whole = made.fill(
                batch_size=size,
                stop=self._stop,
                progress=lambda done, _: show(done - there) if show is not None else None,
                lower=lower,
            )
        self._computed[name] = self._computed.get(name, 0) + made.computed
        return whole

    def _close(self) -> None:
        if self._open is not None:
            self._open.held.close()
            self._open = None

    def batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        """The steps [start, stop) of a phase that has begun."""
        del stage  # the phase that runs
        if self._open is None:
            return self._train.between(start, stop)
        return FeatureBatches(self._train, self._open.train).between(start, stop)

    def evaluation(self) -> tuple[Iterable[Mapping[str, Any]], Mapping[str, Any] | None]:
        """The evaluation's batches in the phase that runs; and a batch of images to watch, where those have none."""
        if self._open is None or self._open.evaluation is None:
            return self._evaluation, None
        return EvalFeatureBatches(self._evaluation, self._open.evaluation), self._first()

    def _first(self) -> Mapping[str, Any]:
        """The evaluation part's first examples."""
        if self._watched is None:
            size = min(WATCHED, len(self._evaluation.part))
            first = EvalBatches(self._evaluation.part, batch_size=size, normalise=self._evaluation.normalise)
            self._watched = next(iter(first))
        return self._watched

    # ---- what is told

    def facts(self) -> dict[str, Any]:
        """run.json's ``cache``: what was used of all phases, and each phase's own."""
        rows: list[dict[str, Any]] = []
        for name, choice in self._choices.items():
            cut = [tensor.name for tensor in choice.line.tensors] if isinstance(choice.line, FrostLine) else []
            rows.append(
                {
                    "name": name,
                    "used": choice.used,
                    "cut": cut if choice.used else [],
                    "bytes": choice.bytes,
                    "reason": choice.reason,
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


def _times(share: float) -> str:
    return f"{share:.0%} of" if share < 1 else f"{share:.1f} times"
