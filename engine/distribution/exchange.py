"""Values that the workers of a run tell each other, by the collective operations of their strategy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEAD = 64  # words of 8 bytes that each worker sends at first: the length, and the beginning of its value
_BLOCK = 1 << 17  # words of all workers together, at least one each, that are sent at once after that


class Exchange:
    """All workers call its methods equally often, in the same order, and so does every collective operation of a step.

    What is sent is the sum of vectors of which each worker fills its own places. The operations are traced once, for
    vectors of any length.
    """

    def __init__(self, strategy: Any, *, workers: int, worker: int) -> None:
        self._workers, self._worker = workers, worker
        self._sums = {dtype: _trace_sum(strategy, dtype) for dtype in ("int64", "float64")}

    def exchange(self, value: Any) -> list[Any]:
        """Gives the JSON value of each worker to all; they are listed by worker."""
        written = json.dumps(value).encode()
        words = np.frombuffer(written + bytes(-len(written) % 8), "<i8")
        head = self._share_rows(np.concatenate([[len(written)], words[: _HEAD - 1]]), _HEAD)
        rows, length = [head[:, 1:]], -(-int(head[:, 0].max()) // 8)
        block = max(1, _BLOCK // self._workers)
        for begin in range(_HEAD - 1, length, block):
            rows.append(self._share_rows(words[begin : begin + block], min(block, length - begin)))
        texts = np.concatenate(rows, axis=1)
        return [
            json.loads(row.astype("<i8").tobytes()[:size]) for row, size in zip(texts, head[:, 0].tolist(), strict=True)
        ]

    def sum_arrays(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """The sums over workers of float64 arrays: see ``Distribution.sum_arrays``.

        Raises:
            ValueError: the workers give other numbers of arrays, or arrays of other shapes.
        """
        given = [np.asarray(array, np.float64) for array in arrays]
        shapes = self.exchange([array.shape for array in given])
        if any(each != shapes[0] for each in shapes):
            raise ValueError(f"arrays to be summed have other shapes on other workers: {shapes}")
        flat = np.concatenate([array.ravel() for array in given]) if given else np.zeros(0)
        sums = [self._sums["float64"](flat[begin : begin + _BLOCK]).numpy() for begin in range(0, flat.size, _BLOCK)]
        ends = np.cumsum([array.size for array in given])[:-1]
        parts = np.split(np.concatenate(sums) if sums else flat, ends) if given else []
        return [part.reshape(array.shape) for part, array in zip(parts, given, strict=True)]

    def _share_rows(self, words: np.ndarray, width: int) -> np.ndarray:
        """A row of each worker: its words, and zeros up to ``width``."""
        rows = np.zeros([self._workers, width], np.int64)
        rows[self._worker, : len(words)] = words
        return self._sums["int64"](rows.ravel()).numpy().reshape(rows.shape)


def _trace_sum(strategy: Any, dtype: str) -> Any:
    """A function that adds the vectors of all workers."""
    import tensorflow as tf

    def add(vector: Any) -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], dtype)])
    def run(vector: Any) -> Any:
        return strategy.run(add, (vector,))

    return run
