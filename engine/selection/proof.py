"""The freeze proof: digests of every frozen variable, before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.digests import digest
from engine.selection.selection import Selection
from engine.selection.variables import NamedVariable


def digests(entries: Sequence[NamedVariable]) -> dict[str, str]:
    return {entry.path: digest(entry.path, entry.variable.numpy()) for entry in entries}


@dataclass(frozen=True)
class FreezeProof:
    """Digests of every frozen variable, to be compared later."""

    before: Mapping[str, str]

    @classmethod
    def begin(cls, selection: Selection) -> FreezeProof:
        return cls(digests(selection.frozen))

    def changed(self, selection: Selection) -> list[str]:
        """Paths of frozen variables whose bytes are not what they were."""
        after = digests(selection.frozen)
        return [path for path in self.before if after.get(path) != self.before[path]]


def weights_sha256(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over the digests of arrays in the order given: equal for equal weights, to the bit.

    Args:
        arrays: (path, value) of each variable, in model order.
    """
    hasher = hashlib.sha256()
    for path, value in arrays:
        hasher.update(digest(path, np.asarray(value)).encode())
    return hasher.hexdigest()
