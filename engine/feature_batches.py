"""Windows of kept features: the very examples, order, labels and seeds that windows of images have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.data.batches import Batch, EvalBatches, TrainBatches, ahead
from engine.features import Features
from engine.seeds import example_seeds


class FeatureBatches:
    """Training windows as those of ``batches``, with the tensors at the frost line in place of "image".

    Of a cache with K views, epoch e takes view e modulo K: the first K epochs see what they would see uncached.

    Args:
        batches: windows of images.
        features: of the same part, filled.
    """

    def __init__(self, batches: TrainBatches, features: Features) -> None:
        self.batches, self.features = batches, features

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch."""
        return self.batches.per_epoch

    def at(self, window: int) -> Batch:
        """The batch of a window, counted over all epochs: tensors, "label", "seeds", "index"."""
        epoch, positions = self.batches.place(window)
        part = self.batches.part
        index = part.index[positions]
        batch: Batch = {"label": part.labels[positions], "index": index}
        batch["seeds"] = example_seeds(self.batches.seed, epoch, index)
        return batch | self.features.read(index, view=epoch % self.features.views)

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the windows [start, stop), read ahead on another thread."""
        return ahead(self.at, range(start, stop))


class EvalFeatureBatches:
    """An evaluation or test part as ``batches`` gives it, with the tensors at the frost line in place of "image"."""

    def __init__(self, batches: EvalBatches, features: Features) -> None:
        self.batches, self.features = batches, features

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        part, size = self.batches.part, self.batches.batch_size
        for start in range(0, len(part), size):
            positions = np.arange(start, min(start + size, len(part)))
            index = part.index[positions]
            batch: Batch = {"label": part.labels[positions], "index": index, "seeds": example_seeds(0, 0, index)}
            yield batch | self.features.read(index)
