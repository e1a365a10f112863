"""Which caches of later phases are filled in the same pass over the images as those of the phase that begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.feature_cache.decision import CacheDecision
from engine.feature_cache.filling import JointPass
from engine.feature_cache.store import Features
from engine.frostline.line import FrostLine, Refused
from engine.sizes import format_bytes
from engine.training.loop import Stage

Caches = dict[str, Features]  # "train", and "evaluation" unless evaluations see images


@dataclass(frozen=True)
class Ahead:
    """The caches of a later phase that can be filled now."""

    phase: str
    line: FrostLine
    caches: Caches


def find_ahead(
    stage: Stage,
    line: FrostLine,
    caches: Caches,
    later: Sequence[tuple[Stage, CacheDecision]],
    *,
    open_caches: Callable[[Stage, FrostLine], Caches],
    budget: int | None,
    say: Callable[[str], None],
) -> list[Ahead]:
    """Finds the later phases whose caches one pass over the images can fill with those of ``stage``.

    These are phases that train from a cache whose features are the same now as when the phase begins (nothing below its
    line is trained before), and whose line does not lie above the one before it: its features will be computed from
    that line's. All caches together must fit ``budget`` (bytes) and the disk.

    Args:
        stage, line, caches: the phase that begins, where it is cut, and its caches.
        later: the phases after it, with their decisions.
        open_caches: opens the caches of a phase.
        say: is called with a line where a pass could serve several phases but must not.
    """
    found: list[Ahead] = []
    before, trained = caches, _moves(stage)
    for after, decision in later:
        if decision.used and isinstance(decision.line, FrostLine):
            if trained & {entry.path for entry in after.selection.frozen}:
                break
            opened = open_caches(after, decision.line)
            if opened["train"].key != before["train"].key:
                if opened["train"].find_bridge(before["train"]) is not None:
                    break
                both = [*caches.values(), *(cache for one in found for cache in one.caches.values()), *opened.values()]
                if (reason := _explain_excess(both, budget)) is not None:
                    say(f"the features of phase {after.phase.name} are computed when it begins: {reason}")
                    break
                if opened["train"].missing_rows:
                    found.append(Ahead(after.phase.name, decision.line, opened))
                before = opened
        trained |= _moves(after)
    return found


def join_passes(
    line: FrostLine, found: Sequence[Ahead], say: Callable[[str], None]
) -> Callable[[Sequence[int], Any], Any] | None:
    """Computes the tensors at a line and at those of later phases together; None, and ``say`` is told, where it cannot."""
    joint = line.build_joint([one.line for one in found])
    if isinstance(joint, Refused):
        say(f"later phases compute their features when they begin: {'; '.join(joint.reasons)}")
        return None
    return JointPass([line, *(one.line for one in found)], joint, say)


def _moves(stage: Stage) -> set[str]:
    return {entry.path for entry in (*stage.selection.trained, *stage.selection.moving)}


def _explain_excess(caches: Sequence[Features], budget: int | None) -> str | None:
    """Why caches do not fit together; None if they do."""
    whole, missing = sum(cache.bytes for cache in caches), sum(cache.missing_bytes for cache in caches)
    if budget is not None and whole > budget:
        return f"together the caches would take {format_bytes(whole)}, but --cache_budget is {format_bytes(budget)}"
    folder = next(path for path in caches[0].folder.parents if path.exists())
    if missing > (free := shutil.disk_usage(folder).free):
        return f"together the caches need {format_bytes(missing)}, but only {format_bytes(free)} are free"
    return None
