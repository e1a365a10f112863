"""What a fine-tuning run tells while it works, and how it is asked to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.feature_cache.decision import CacheDecision
    from engine.recipes.job import Job
    from engine.training.loop import Event


class Listener:
    """Hears about a run; subclass it and override what you need. This one shows nothing and never stops a run."""

    stopped_by: str | None = "the listener"  # who asked the run to stop, for run.json

    def say(self, line: str) -> None:
        """Called with a line for people: what was loaded, left out, repaired or looks wrong."""

    def show_job(self, job: Job) -> None:
        """Called once everything is resolved: data, model, phases, and how steps are computed."""

    def show_caching(self, job: Job, decisions: Sequence[CacheDecision]) -> None:
        """Called with the frost line of each phase, and whether the phase trains from kept features.

        ``job.plan`` now has the memory forecasts for the phases as they train.
        """

    def begin(self, total: int, start: int) -> None:
        """Called before the first step, with the number of steps in all phases and of those trained already."""

    def handle(self, event: Event) -> None:
        """Called with each event of the loop, before anything is written for it."""

    def show_progress(self, total: int, what: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        """Surrounds long work, such as filling a cache; yields a function to be called with how much is done."""
        del total, what
        return contextlib.nullcontext(lambda done, name="": None)

    def end(self) -> None:
        """Called after the last step, also when the run fails."""

    def should_stop(self) -> bool:
        """Asked after each step, and while a worker waits for others; True ends the run, with a checkpoint that can be resumed
        if it has begun."""
        return False


class SilentListener(Listener):
    """That of a worker beside the chief: the one given hears nothing, but may stop the run."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def should_stop(self) -> bool:
        """As the one given says."""
        stop = self._listener.should_stop()
        self.stopped_by = self._listener.stopped_by
        return stop
