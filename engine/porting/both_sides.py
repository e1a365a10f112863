"""Compares what a file holds with what a model expects, and reports both sides of every difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.text import listed


@dataclass(frozen=True)
class Differences:
    """The differences between a model and a file, as lines for the user, each a name with its shape."""

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unused) + len(self.wrong)

    def __str__(self) -> str:
        return (
            listed("in the model, not in the file", self.missing)
            + listed("in the file, not in the model", self.unused)
            + listed("of another shape or type", self.wrong)
        )


def compare_shapes(wanted: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> Differences:
    """Compares two mappings of names to shapes."""
    shapes = [(name, list(wanted[name]), list(given[name])) for name in wanted if name in given]
    return Differences(
        missing=tuple(f"{name} {list(shape)}" for name, shape in wanted.items() if name not in given),
        unused=tuple(f"{name} {list(shape)}" for name, shape in given.items() if name not in wanted),
        wrong=tuple(
            f"{name}: {ours} in the model, {theirs} in the file" for name, ours, theirs in shapes if ours != theirs
        ),
    )
