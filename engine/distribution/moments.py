"""Sums over all replicas in the middle of the forward pass, for the moments of a batch that several devices share.

Within ``summing_over`` a layer asks for the moments of the whole step's batch. They are computed by collective operations
inside the traced function, which every replica must therefore run, also one without examples.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from engine.distribution.replicas import Replicas

_GROUP = 1 << 20  # this and the keys of operations are apart from those that tf.distribute counts up from 0 and 100
_keys = itertools.count(1 << 20)  # every worker traces the same functions in the same order
_active: contextvars.ContextVar[_Sums | None] = contextvars.ContextVar("sums", default=None)


class _Sums:
    """The collective operations of one traced function, which run in the order in which they were traced."""

    def __init__(self, replicas: Replicas, present: Any) -> None:
        self._replicas = replicas
        self._present = present
        self._last: dict[int, Any] = {}  # by graph: operations of two graphs cannot wait for each other

    def of_present(self, value: Any) -> Any:
        """A sum over this replica's examples; 0 if it has none, and an example of zeros stands in for them."""
        return tf.where(self._present, value, tf.zeros_like(value))

    def add(self, value: Any) -> Any:
        """The sum of a tensor over all replicas."""
        here = tf.compat.v1.get_default_graph()
        last = self._last.get(id(here))
        with tf.control_dependencies([] if last is None else [last]):
            found = tf.raw_ops.CollectiveReduceV2(
                input=value,
                group_size=self._replicas.share.of,
                group_key=_GROUP,
                instance_key=next(_keys),
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
                communication_hint="nccl" if "GPU" in self._replicas.devices[0].upper() else "ring",
            )
        self._last[id(here)] = found
        return tf.ensure_shape(found, value.shape)


@contextlib.contextmanager
def summing_over(replicas: Replicas | None, *, present: Any = True) -> Iterator[None]:
    """Within this scope, ``moments`` are those of the batch of all replicas; with None nothing changes.

    ``present`` is a boolean scalar of the graph: whether this replica has examples. One that has none computes with others
    in their place, because kernels need not give zeros for an empty batch; they do not count.
    """
    token = _active.set(None if replicas is None else _Sums(replicas, present))
    try:
        yield
    finally:
        _active.reset(token)


def moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Returns the mean and the variance of a tensor over ``axes``, which include that of the examples.

    Within ``summing_over`` they are those over the examples of all replicas, and their gradients too. The variance is the
    mean of the squared distances from that mean, as that of ``tf.nn.moments``.
    """
    sums = _active.get()
    if sums is None:
        mean, variance = tf.nn.moments(x, axes=list(axes))
        return mean, variance
    shape = tf.shape(x)
    count = tf.cast(tf.reduce_prod(tf.gather(shape, list(axes))), x.dtype)
    total = _summed(sums, count)
    mean = _summed(sums, tf.reduce_sum(x, axis=list(axes))) / total
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape.as_list())]
    distances = x - tf.reshape(mean, kept)
    return mean, _summed(sums, tf.reduce_sum(tf.square(distances), axis=list(axes))) / total


def _summed(sums: _Sums, value: Any) -> Any:
    """The sum over all replicas. Each replica's loss depends on it, so its gradient is the sum of theirs."""

    @tf.custom_gradient
    def add(value: Any) -> Any:
        return sums.add(value), lambda gradient: sums.add(gradient)

    return add(sums.of_present(value))
