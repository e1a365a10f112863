"""The ledger: what a port did with every source tensor and every target variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """One variable that got its value.

    Attributes:
        source: names of the tensors it was made of.
        target: the variable's path.
        transforms: as the rule says them; ``resize_grid 16x16 to 8x8`` where a grid was resized, nothing where not.
        shape, dtype: of the variable.
        confidence: 1.0 where a rule names the source.
    """

    source: tuple[str, ...]
    target: str
    transforms: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    confidence: float = 1.0


@dataclass(frozen=True)
class Skipped:
    """One source tensor that was left out on purpose, and by which rule (``FILE:LINE``)."""

    name: str
    rule: str


@dataclass(frozen=True)
class Ledger:
    """What a load did.

    Attributes:
        source, rules: names of the file and of the rules.
        loaded: the variables that got their values.
        skipped: source tensors that were left out on purpose.
        unused, missing: source tensors and variables without an explanation: none after a load that
            raised no error.
        fresh: variables that keep their initial values, with the reason: of the head, or by rule.
        images: what images the weights were trained on, where the rules say so (engine.porting.rules.language).
    """

    source: str
    rules: str
    loaded: tuple[Loaded, ...]
    skipped: tuple[Skipped, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    fresh: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{len(self.loaded)} variables loaded by {self.rules}"]
        parts += [
            f"{entry.target} resized {text.removeprefix('resize_grid ')}"
            for entry in self.loaded
            for text in entry.transforms
            if text.startswith("resize_grid ")
        ]
        if self.skipped:
            parts.append(f"{len(self.skipped)} tensors skipped")
        line = ", ".join(parts)
        return line + (f"; fresh: {', '.join(self.fresh)}" if self.fresh else "")

    def to_json(self, *, target: str = "") -> dict[str, Any]:
        """The content of ledger.json; ``target`` is the model's name."""
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
            "slots": [],
            "parity": None,
        }
