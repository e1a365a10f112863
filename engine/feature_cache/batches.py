"""Batches of cached features: the same examples, order, labels and seeds as batches of images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from engine.data.batches import Batch, EvalBatches, TrainBatches, prefetch
from engine.feature_cache.store import Features
from engine.seeds import example_seeds

_BLOCK, _STEPS = 16 << 20, 16  # the most bytes and steps read at once


class FeatureBatches:
    """Training steps like those of ``batches``, with tensors of a filled cache of the same part in place of inputs.

    In a cache with K views, epoch e reads view e modulo K: the first K epochs see what they would see without a cache.
    """

    def __init__(self, batches: TrainBatches, features: Features) -> None:
        self.batches, self.features = batches, features

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return self.batches.per_epoch

    def at(self, step: int) -> Batch:
        """The batch of a step, counted over all epochs: the line's tensors, labels, weights, "seeds" and "index"."""
        return self._read(step, 1)[0]

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), read ahead on another thread, several at a time."""
        size = max(1, self.features.bytes // self.features.rows) * self.batches.batch_size
        most = min(_STEPS, max(1, _BLOCK // size))
        blocks = []
        while start < stop:
            count = min(most, stop - start, self.per_epoch - start % self.per_epoch)
            blocks.append((start, count))
            start += count
        for block in prefetch(lambda block: self._read(*block), blocks):
            yield from block

    def _read(self, step: int, count: int) -> list[Batch]:
        """The batches of ``count`` steps of one epoch, in one read: its fixed cost is paid once for all of them."""
        epoch, steps = self.batches.own(step, count)
        positions = np.concatenate([own for own, _ in steps])
        # of the epoch in which the features of this view were computed: labels are moved as their images were
        whole: Batch = self.batches.prepared_rest(positions, epoch % self.features.views)
        index = whole["index"]
        whole["seeds"] = example_seeds(self.batches.seed, epoch, index)
        whole |= self.features.read(index, view=epoch % self.features.views)
        sizes = [len(own) for own, _ in steps]
        # one copy of the whole, of which the parts are views: made here, while the previous step is computed
        tensors = {name: tf.split(values, sizes) for name, values in whole.items() if name != "index"}
        indices = np.split(index, np.cumsum(sizes)[:-1])
        return [
            {name: parts[number] for name, parts in tensors.items()} | {"index": indices[number]} | said
            for number, (_, said) in enumerate(steps)
        ]


class EvalFeatureBatches:
    """Evaluation batches like those of ``batches``, with the tensors at the frost line in place of inputs."""

    def __init__(self, batches: EvalBatches, features: Features) -> None:
        self.batches, self.features = batches, features

    @property
    def batch_size(self) -> int:
        """The number of examples in every batch but the last."""
        return self.batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.between(0, len(self))

    def between(self, first: int, stop: int) -> Iterator[Batch]:
        """The batches with the numbers [first, stop)."""
        part, size = self.batches.part, self.batches.batch_size
        for start in range(first * size, min(stop * size, len(part)), size):
            positions = np.arange(start, min(start + size, len(part)))
            batch: Batch = part.read_rest(positions)
            index = batch["index"]
            yield batch | {"seeds": example_seeds(0, 0, index)} | self.features.read(index)
