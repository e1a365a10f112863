"""Fills feature caches: batch by batch over the examples, several caches in one pass where they need the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.data.batches import prefetch
from engine.frostline.line import FrostLine


class Piece(NamedTuple):
    """Rows that are computed at once: the number of the first, and how many there are."""

    row: int
    length: int


class Fills(Protocol):
    """A cache that is being filled, such as ``Features``."""

    def pieces(self, batch_size: int) -> list[Piece]:
        """The missing rows in the order and the batches in which they are computed."""

    def examples(self, piece: Piece) -> tuple[np.ndarray, int]:
        """The numbers of the images behind a piece, and their view."""

    def put(self, piece: Piece, values: Sequence[Any]) -> None:
        """Takes the computed tensors of a piece; a shard is written with its last piece."""


# From the caches, by number, that need a batch and what was loaded for it, the tensors for each of them
Compute = Callable[[Sequence[int], Any], Sequence[Sequence[Any]]]


def fill_together(
    caches: Sequence[Fills],
    load: Callable[[np.ndarray, int], Any],
    compute: Compute,
    *,
    batch_size: int,
    stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> bool:
    """Fills caches of the same examples in one pass; returns False if ``stop`` ended it.

    Each cache gets its rows in the batches in which it would be filled alone, because the size of a batch can change the
    last bits of a feature. A batch that several caches need is loaded once.

    Args:
        load: returns the batch of images with these numbers and this view; it is called on another thread.
        compute: computes the tensors of a batch for some of the caches.
        progress: is called with the number of rows that the first cache has got.
    """
    wanted: dict[Piece, list[int]] = {}
    for number, cache in enumerate(caches):
        for piece in cache.pieces(batch_size):
            wanted.setdefault(piece, []).append(number)
    pieces, done = sorted(wanted), 0

    def prepared(piece: Piece) -> tuple[Piece, Any]:
        return piece, load(*caches[wanted[piece][0]].examples(piece))

    for piece, given in prefetch(prepared, pieces):
        numbers = wanted[piece]
        for number, values in zip(numbers, compute(numbers, given), strict=True):
            caches[number].put(piece, values)
        done += piece.length if 0 in numbers else 0
        progress(done)
        if piece != pieces[-1] and stop():
            return False
    return True


class JointPass:
    """Computes the tensors at several lines from the images at once, with the bits of separate passes.

    An optimised graph with more results may fuse other operations, so for each size of batch both ways are compared
    first. From the first difference on, each line is computed by itself, and ``say`` is told.
    """

    def __init__(
        self, lines: Sequence[FrostLine], joint: Callable[[Any], Sequence[Sequence[Any]]], say: Callable[[str], None]
    ) -> None:
        self._lines, self._joint, self._say = lines, joint, say
        self._compared: set[int] = set()
        self.exact = True

    def __call__(self, numbers: Sequence[int], examples: Any) -> Sequence[Sequence[Any]]:
        """Computes the tensors of the lines with these numbers, for the model's input, or its inputs by name."""
        if len(numbers) == 1 or not self.exact:
            return [self._lines[number].prefix(examples) for number in numbers]
        found = self._joint(examples)
        size = len(next(iter(examples.values())) if isinstance(examples, Mapping) else examples)
        if size not in self._compared:
            self._compared.add(size)
            alone = [line.prefix(examples) for line in self._lines]
            if not _same_bits(found, alone):
                self.exact = False
                self._say("one pass would round otherwise than separate passes; each phase is computed by itself")
                found = alone
        return [found[number] for number in numbers]


def _same_bits(one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]) -> bool:
    pairs = [pair for tensors in zip(one, other, strict=True) for pair in zip(*tensors, strict=True)]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
