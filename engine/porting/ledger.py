"""The ledger of a port: what happened to every source tensor and every target variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """One variable that was loaded, at the path ``target``, from the tensors ``source``.

    ``transforms`` are as written in the rule; a resized grid is ``resize_grid 16x16 to 8x8``, and one that already fits
    is left out. ``confidence`` is 1.0 where a rule names the source.
    """

    source: tuple[str, ...]
    target: str
    transforms: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    confidence: float = 1.0


@dataclass(frozen=True)
class Skipped:
    """One source tensor that was left out on purpose, and the rule that says so (``FILE:LINE``)."""

    name: str
    rule: str


@dataclass(frozen=True)
class Ledger:
    """What a load did. ``unused`` and ``missing``, which nothing explains, are empty after a load without an error.

    ``source`` and ``rules`` are the names of the file and of the rules. ``fresh`` has the variables that keep their
    initial values, each with the reason, and ``images`` the kind of images that the weights were trained on, where the
    rules say so (engine.porting.rules.language). ``fact`` says what was checked of the graph (engine.porting.rules.facts),
    and ``notes`` what the rules say about the network.
    """

    source: str
    rules: str
    loaded: tuple[Loaded, ...]
    skipped: tuple[Skipped, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    fresh: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None
    fact: str = ""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """A one-line summary for the user."""
        parts = [f"{len(self.loaded)} variables loaded by {self.rules}"]
        parts += [
            f"{entry.target} resized {text.removeprefix('resize_grid ')}"
            for entry in self.loaded
            for text in entry.transforms
            if text.startswith("resize_grid ")
        ]
        if self.skipped:
            parts.append(f"{len(self.skipped)} tensors skipped")
        parts += [self.fact] if self.fact else []
        line = ", ".join(parts) + "".join(f"; note: {note}" for note in self.notes)
        return line + (f"; fresh: {', '.join(self.fresh)}" if self.fresh else "")

    def to_json(self, *, target: str = "") -> dict[str, Any]:
        """Returns the content of ledger.json; ``target`` is the name of the model."""
        return {
            "source": self.source,
            "target": target,
            "rules": self.rules,
            "loaded": [asdict(entry) for entry in self.loaded],
            "skipped": [asdict(entry) for entry in self.skipped],
            "unused": list(self.unused),
            "missing": list(self.missing),
            "fresh": dict(self.fresh),
            "images": self.images,
            "notes": list(self.notes),
            "slots": [],
            "parity": None,
        }
