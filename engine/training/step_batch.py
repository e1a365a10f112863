"""The batch of a step as the traced functions take it: tensors of this worker's examples, and what they are a share of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.distribution.shares import Share
from engine.graphs.tracing import batch_tensors
from engine.seeds import example_seeds
from engine.training.microbatch import StepError

COUNT = "examples"  # in a batch: the number of examples of the whole step


class StepBatch(NamedTuple):
    """A checked batch: this worker's examples, with "seeds", and the number of examples of the whole step."""

    tensors: dict[str, Any]
    total: int

    def shared(self, share: Share) -> tuple[Any, ...]:
        """The tensors, where each replica's examples begin, and the total, as a replicated step takes them."""
        offsets = tf.constant(share.offsets(self.total), tf.int32)
        return self.tensors, offsets, tf.constant(self.total, tf.int32)


def read_batch(batch: Mapping[str, Any], share: Share, *, seed: int, step: int) -> StepBatch:
    """Checks a batch and converts it to tensors; without "seeds" it gets those of ``seed`` and ``step``.

    Raises:
        StepError: the batch is empty, its arrays differ in length, or a worker's batch is not its share of the step.
    """
    tensors = batch_tensors({name: value for name, value in batch.items() if name != COUNT})
    lengths = {name: t.shape[0] if t.shape.rank else None for name, t in tensors.items()}
    alone = share.replicas == share.of
    if COUNT in batch:
        total = int(batch[COUNT])
    elif alone:
        total = next(iter(lengths.values()), 0) or 0
    else:
        raise StepError(f'batch: with several workers, "{COUNT}" must be the number of examples of the whole step')
    start, stop = share.bounds(total)
    if not lengths or set(lengths.values()) != {stop - start} or total < 1:
        expected = "at least 1" if alone else f"{stop - start}, this worker's share of {total}"
        raise StepError(
            f"batch: all arrays must have the same number of examples ({expected}) on their first axis; got {lengths}"
        )
    if "seeds" not in tensors:
        tensors["seeds"] = tf.constant(example_seeds(seed, step, np.arange(start, stop)))
    return StepBatch(tensors, total)
