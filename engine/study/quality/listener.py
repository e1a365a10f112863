"""What a quality study tells while it works, and how it is asked to stop. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.study.quality.trial import Trial


class QualityListener:
    """Hears of a quality study; subclass it and override what you need."""

    def searching(self, strategy: str) -> None:
        """The search of a strategy begins."""

    def trial_started(self, trial: Trial) -> None:
        """A trial begins; several may train together."""

    def trial_step(self, trial: Trial, step: int, steps: int) -> None:
        """A trial has trained so many of its steps."""

    def trial_ended(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """A trial has ended, or had been done before; ``record`` is what is kept of it."""

    def judging(self, strategy: str, done: int, passes: int) -> None:
        """A strategy is being judged; so many passes over the examples are done."""

    def should_stop(self) -> bool:
        """Whether the study is to stop."""
        return False

    def say(self, line: str) -> None:
        """A line for people."""
