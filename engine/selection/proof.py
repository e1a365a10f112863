"""The freeze proof: digests of every frozen variable before and after training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.digests import digest
from engine.selection.selection import Selection
from engine.selection.variables import NamedVariable


def digests(entries: Sequence[NamedVariable]) -> dict[str, str]:
    """Returns the digest of each variable's value, by path."""
    return {entry.path: digest(entry.path, entry.variable.numpy()) for entry in entries}


@dataclass(frozen=True)
class FreezeProof:
    """Proves that training left every frozen variable, statistics included, bit-identical.

    ``begin`` takes SHA-256 digests of the frozen variables before training; ``changed`` compares them afterwards.

    Attributes:
        before: the digest of each frozen variable, by path.

    Example:
        >>> import tensorflow as tf
        >>> from engine import FreezeProof, select
        >>> model = {"stem/kernel": tf.Variable([1.0]), "head/kernel": tf.Variable([2.0])}
        >>> selection = select(model, "head/.*")
        >>> proof = FreezeProof.begin(selection)
        >>> _ = model["head/kernel"].assign([3.0])
        >>> proof.changed(selection)
        []
        >>> _ = model["stem/kernel"].assign([1.0000001])
        >>> proof.changed(selection)
        ['stem/kernel']
    """

    before: Mapping[str, str]

    @classmethod
    def begin(cls, selection: Selection) -> FreezeProof:
        """Takes the digests of all frozen variables."""
        return cls(digests(selection.frozen))

    def changed(self, selection: Selection) -> list[str]:
        """Returns the paths of frozen variables whose bytes have changed."""
        after = digests(selection.frozen)
        return [path for path in self.before if after.get(path) != self.before[path]]


def weights_sha256(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Returns one SHA-256 over the digests of all (path, array) pairs; it is equal only for bit-identical weights."""
    hasher = hashlib.sha256()
    for path, value in arrays:
        hasher.update(digest(path, np.asarray(value)).encode())
    return hasher.hexdigest()
