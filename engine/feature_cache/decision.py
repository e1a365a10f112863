"""Decides, before the first step, which phases train from cached features.

Whether a cache pays is estimated from multiply-adds and bytes alone, never from the clock, so the same flags always lead to
the same decision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.data.batches import EvalBatches, TrainBatches
from engine.errors import InputError
from engine.feature_cache import store
from engine.feature_cache.options import CacheError, CacheOptions
from engine.feature_cache.store import Features
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine, Refused
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training.loop import Stage
from engine.training.step import TrainStep

# Costs other than computing on examples, in multiply-adds, of which 2 cores do some 3e10 per second.
_PREPARING = 6e10  # tracing the prefix and the suffix
_WRITTEN, _READ = 60, 15  # per byte: packed into a shard, hashed, written and verified; read in a step
_PAYS = 0.9  # a cache pays if the estimated work is at most this share of the work without it


@dataclass(frozen=True)
class CacheDecision:
    """Whether a phase trains from cached features, and why or why not.

    Attributes:
        line: where it would be cut, whether cached or not; None if no line was looked for.
        bytes: the size of its caches on disk.
        reads_images: whether it trains from images, or has to compute rows of its caches from them. A phase of a resumed
            run that trains from caches does so only if rows are missing, which is seen when it begins.
    """

    used: bool
    reason: str
    line: FrostLine | Refused | None = None
    bytes: int = 0
    reads_images: bool = True


@dataclass(eq=False)
class Cuts:
    """What has been cut already, for several runs that share the traces of their step and the evaluator."""

    steps: dict[Selection, FrostLine | Refused] = field(default_factory=dict)
    evaluations: dict[tuple[Selection, FrostLine], Refused | None] = field(default_factory=dict)


class Decider:
    """Decides for each phase whether it trains from a cache; the arguments are those of ``CachePolicy``."""

    def __init__(
        self,
        step: TrainStep,
        *,
        train: TrainBatches,
        evaluation: EvalBatches,
        data: str,
        options: CacheOptions,
        cuts: Cuts,
    ) -> None:
        self._step, self._data, self._options, self._cuts = step, data, options, cuts.steps
        self._train, self._evaluation = train, evaluation
        self._planned: set[str] = set()  # keys of the caches that an earlier phase will have filled

    def decide(
        self,
        stages: Sequence[Stage],
        *,
        per_epoch: int,
        eval_every: int,
        saved: Sequence[bool] | None,
        look: bool,
        existing: bool = True,
    ) -> list[CacheDecision]:
        """One decision per phase; see ``CachePolicy.decide``."""
        decisions: list[CacheDecision] = []
        trained: set[str] = set()
        for number, stage in enumerate(stages):
            # an existing cache counts only if no earlier phase trains a variable that it was computed from
            known = existing and not trained & {entry.path for entry in stage.selection.frozen}
            given = None if saved is None else saved[number]
            decision = self._decide(stage, per_epoch=per_epoch, eval_every=eval_every, known=known, saved=given)
            if look and decision.line is None:
                line = self._cut(stage.selection)
                decision = dataclasses.replace(decision, line=line)
            if self._options.mode == "require" and not decision.used:
                raise CacheError(
                    f"cache=require: phase {stage.phase.name!r} cannot train from a cache: {decision.reason}"
                )
            decisions.append(decision)
            trained |= {entry.path for entry in (*stage.selection.trained, *stage.selection.moving)}
        return decisions

    def _decide(
        self, stage: Stage, *, per_epoch: int, eval_every: int, known: bool, saved: bool | None
    ) -> CacheDecision:
        if self._options.mode == "off":
            return CacheDecision(False, "--cache=off")
        if (reason := store.explain_refusal(self._train.augment, self._options.views)) is not None:
            return CacheDecision(False, reason)
        steps = stage.phase.step_count(per_epoch)
        line = self._cut(stage.selection)
        if isinstance(line, Refused):
            return CacheDecision(False, line.describe(), line)
        needed = self._bytes(line)
        if self._options.budget is not None and needed > self._options.budget:
            wide = 2 if self._options.dtype is not None else 1  # --cache_dtype stores what crosses in fewer bytes
            most = wide * self._options.budget // self._rows()
            cheaper = cut_step(self._step, stage.selection, self._train.at(0), most_bytes=most)
            if isinstance(cheaper, Refused) or self._bytes(cheaper) > self._options.budget:
                least = f"; {cheaper.describe()}" if isinstance(cheaper, Refused) else ""
                return CacheDecision(
                    False,
                    f"the cache would take {format_bytes(needed)}, but --cache_budget is "
                    f"{format_bytes(self._options.budget)}{least} (--cache_dtype=bfloat16 halves float32)",
                    line,
                )
            line, needed = cheaper, self._bytes(cheaper)
        if saved is not None:
            return CacheDecision(saved, "as decided by the run that is resumed", line, needed, not saved)
        try:
            caches = self.open_features(line) if known else ()
        except InputError as error:  # the frozen part reads something that has no digest
            return CacheDecision(False, str(error), line)
        missing = sum(c.missing_rows for c in caches if c.key not in self._planned) if known else self._rows()
        uncached, cached = self._work(line, steps, 1 + steps // eval_every, missing)
        share = cached / uncached
        times = f"{share:.0%} of" if share < 1 else f"{share:.1f} times"
        estimate = (
            f"an estimated {times} the work without a cache: the frozen part is computed once for "
            f"{missing:,} rows instead of {steps * self._train.batch_size:,} times in {steps:,} steps"
        )
        if cached > _PAYS * uncached and self._options.mode == "auto":
            return CacheDecision(False, f"a cache would not pay: {estimate}", line)
        self._planned |= {found.key for found in caches}
        return CacheDecision(True, estimate, line, needed, missing > 0)

    def _cut(self, selection: Selection) -> FrostLine | Refused:
        """Where a step with this selection is cut."""
        if selection not in self._cuts:
            self._cuts[selection] = cut_step(self._step, selection, self._train.at(0))
        return self._cuts[selection]

    def open_features(self, line: FrostLine) -> tuple[Features, Features]:
        """Opens the caches of a line: those of the training part and of the evaluation part."""
        options = self._options
        train = Features(options.root, line, self._train, data=self._data, dtype=options.dtype, views=options.views)
        return train, Features(options.root, line, self._evaluation, data=self._data, dtype=options.dtype)

    def _rows(self) -> int:
        """The rows of both caches."""
        return (self._options.views or 1) * len(self._train.part) + len(self._evaluation.part)

    def _width(self, line: FrostLine) -> int:
        """The bytes of one row on disk."""
        size = 2 if self._options.dtype is not None else 8
        return sum(
            t.bytes * min(t.dtype.size, size) // t.dtype.size if t.dtype.is_floating else t.bytes for t in line.tensors
        )

    def _bytes(self, line: FrostLine) -> int:
        return self._rows() * self._width(line)

    def _work(self, line: FrostLine, steps: int, evaluations: int, missing: int) -> tuple[float, float]:
        """The multiply-adds of a phase without and with a cache that lacks ``missing`` rows."""
        trained, evaluated = steps * self._train.batch_size, evaluations * len(self._evaluation.part)
        below = line.step_share * line.macs
        forward = below / line.forward_share if line.forward_share else 0.0
        uncached = trained * line.macs + evaluated * forward
        width = self._width(line)
        once = missing * (below + _WRITTEN * width) + _PREPARING
        every = (trained + evaluated) * _READ * width
        return uncached, trained * (line.macs - below) + evaluated * (forward - below) + once + every
