"""What operations do besides computing: one answer, also for what called functions do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from engine.graphs.op_kinds import OpKinds, is_random


@pytest.mark.parametrize(
    "kind",
    [
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomShuffle",
        "RandomStandardNormal",
        "StatefulStandardNormal",
        "StatefulStandardNormalV2",
        "StatefulTruncatedNormal",
        "StatefulUniformInt",
        "TruncatedNormal",
        "UniformCandidateSampler",
    ],
)
def test_operations_that_draw_from_a_state_of_their_own_are_random(kind: str) -> None:
    assert is_random(kind)


@pytest.mark.parametrize(
    "kind", ["StatelessRandomUniformV2", "StatelessMultinomial", "MatMul", "StatefulPartitionedCall"]
)
def test_operations_that_are_given_their_seeds_or_draw_nothing_are_not_random(kind: str) -> None:
    assert not is_random(kind)


def graph_of(function: Callable[[Any], Any]) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([2, 3], tf.float32)).graph


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: x + tf.random.uniform([2, 3]),
        lambda x: tf.cast(tf.random.categorical(x, 3), tf.float32),
        lambda x: x + tf.random.truncated_normal([2, 3]),
    ],
    ids=["uniform", "categorical", "truncated normal"],
)
def test_a_draw_is_found_in_called_functions_however_deep(draw: Callable[[Any], Any]) -> None:
    inner = tf.function(draw, autograph=False)
    outer = tf.function(lambda x: inner(x) * 2.0, autograph=False)
    for function in (draw, inner, outer):
        graph = graph_of(lambda x, function=function: function(x))
        kinds = OpKinds(graph)
        assert any(kinds.draws(op) for op in graph.get_operations())


def test_a_called_function_without_a_draw_is_not_random() -> None:
    inner = tf.function(lambda x: x + tf.random.stateless_uniform([2, 3], [1, 2]), autograph=False)
    graph = graph_of(lambda x: inner(x))
    kinds = OpKinds(graph)
    assert not any(kinds.draws(op) for op in graph.get_operations())


def test_a_write_is_found_in_a_called_function_and_a_read_is_not_one() -> None:
    variable = tf.Variable(1.0)
    for write in (False, True):

        @tf.function(autograph=False)
        def inner(x: Any, write: bool = write) -> Any:
            if write:
                variable.assign_add(1.0)
            return x * variable

        graph = graph_of(lambda x, inner=inner: inner(x))
        kinds = OpKinds(graph)
        assert any(kinds.written(op) for op in graph.get_operations()) is write
        assert any(kinds.has_effect(op) for op in graph.get_operations()) is write
