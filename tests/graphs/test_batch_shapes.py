"""Shapes as functions of the batch size, and how often they are inferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from engine.graphs import batch_shapes
from engine.graphs.batch_shapes import BatchShapes, Length


def _traced(compute: Callable[[Any], Any]) -> tuple[Any, Any]:
    spec = tf.TensorSpec([None, 6, 4], tf.float32)
    function = tf.function(compute, autograph=False).get_concrete_function(spec)
    (result,) = function.outputs
    return BatchShapes(function.graph, function.graph.inputs[:1]), result


def _pairs(x: Any) -> Any:
    count = tf.shape(x)[0]
    return tf.zeros([count * (count - 1) // 2])


def _square(x: Any) -> Any:
    return tf.reshape(tf.matmul(x[:, 0], x[:, 0], transpose_b=True), [-1])


def _padded(x: Any) -> Any:
    return tf.concat([tf.reshape(x, [-1, 4]), tf.zeros([3, 4])], axis=0)


@pytest.mark.parametrize(
    ("compute", "expected", "times"),
    [
        (lambda x: tf.reshape(x, [-1, 4]) * 2.0, [(6, 0), (0, 4)], 1),
        (lambda x: tf.reshape(x, [-1]), [(24, 0)], 1),
        (lambda x: tf.reduce_sum(x, axis=0), [(0, 6), (0, 4)], 1),
        (lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:1], [1, 24]], axis=0)), [(1, 0), (0, 1), (0, 24)], 2),
        (_padded, [(6, 3), (0, 4)], 2),  # not a multiple of the batch: another size settles it
        (lambda x: tf.repeat(x, 2000, axis=0)[:, 0, 0], [(2000, 0)], 2),
        (_square, None, 2),
        (_pairs, None, 2),  # B (B - 1) / 2 is a multiple of an odd B, too
    ],
    ids=["rows", "flat", "reduced", "computed", "padded", "many rows", "square", "pairs"],
)
def test_a_length_is_found_as_a_function_of_the_batch_size_and_inferred_no_more_often_than_needed(
    monkeypatch: pytest.MonkeyPatch, compute: Callable[[Any], Any], expected: list[tuple[int, int]] | None, times: int
) -> None:
    sizes, infer = [], batch_shapes._infer

    def counted(*arguments: Any) -> Any:
        sizes.append(arguments[-1])
        return infer(*arguments)

    monkeypatch.setattr(batch_shapes, "_infer", counted)
    shapes, result = _traced(compute)
    found = shapes(result)
    assert (None if found is None else [tuple(length) for length in found]) == expected
    assert len(sizes) <= times
    assert shapes(result) == found
    shapes.bound(result), shapes.certain(result)
    assert len(sizes) <= 2


@pytest.mark.parametrize("compute", [_pairs, _square], ids=["pairs", "square"])
def test_a_length_that_grows_faster_than_the_batch_is_bounded_from_above(compute: Callable[[Any], Any]) -> None:
    shapes, result = _traced(compute)
    if shapes.certain(result):
        (length,) = shapes.bound(result)
        assert length.each * 7919 + length.fixed >= 7919 * 7918 // 2
    else:  # TensorFlow did not infer the length at all
        assert shapes.bound(result) == (Length(0, 1),)
