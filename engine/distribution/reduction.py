"""Sums over all replicas: tensors packed into few vectors, each of which is one collective operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

BUCKET = 32 << 20  # bytes: large enough that a collective's latency does not count, small beside a large model


@dataclasses.dataclass(frozen=True)
class Communication:
    """What a replica gives into collective operations in one step.

    Attributes:
        bytes: of all vectors that are summed. A ring sends each about twice: 2 (replicas - 1) / replicas.
        collectives: the number of collective operations.
    """

    bytes: int = 0
    collectives: int = 0

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """Returns the sum of each tensor over all replicas, in the context of a replica.

    Tensors of one dtype are summed together, as vectors of at most ``BUCKET`` bytes; a larger tensor is a vector of its own.
    Their shapes must be known. All replicas must call it with the same shapes in the same order.
    """
    context = tf.distribute.get_replica_context()
    found: list[Any] = [None] * len(tensors)
    for places in _buckets(tensors):
        flat = [tf.reshape(tensors[place], [-1]) for place in places]
        vector = flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
        sizes = [tensors[place].shape.num_elements() for place in places]
        parts = [summed] if len(places) == 1 else tf.split(summed, sizes)
        for place, part in zip(places, parts, strict=True):
            found[place] = tf.reshape(part, tensors[place].shape)
    return found


def _buckets(tensors: Sequence[Any]) -> Iterator[list[int]]:
    """The places of the tensors of each vector."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[int] = []
        size = 0
        for place, tensor in enumerate(tensors):
            if tensor.dtype != dtype:
                continue
            bytes_ = tensor.shape.num_elements() * dtype.size
            if bucket and size + bytes_ > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(place)
            size += bytes_
        if bucket:
            yield bucket


def count_communication(function: Any, *, replicas: int) -> Communication:
    """Counts the collective operations in the graph of a concrete function that runs this number of replicas."""
    collectives = [op for op in function.graph.get_operations() if op.type.startswith(("Collective", "NcclAllReduce"))]
    # The first input is the vector; the others are the keys of the group.
    total = sum(op.inputs[0].shape.num_elements() * op.inputs[0].dtype.size for op in collectives)
    return Communication(total // replicas, len(collectives) // replicas)


def count_vectors(specs: Sequence[Any]) -> Communication:
    """Counts what ``sum_over_replicas`` of tensors of these specs gives into collective operations, without creating any."""
    return Communication(sum(spec.shape.num_elements() * spec.dtype.size for spec in specs), len(list(_buckets(specs))))
