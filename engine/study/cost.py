"""The arithmetic of a step, counted in a traced forward and backward pass, and the arithmetic that the machine can do.

A multiply-add counts as 2 floating-point operations. Matrix products, convolutions and their gradients are counted;
element-wise work is not, nor is anything inside loops and branches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.data.batch_names import list_inputs
from engine.graphs import dataflow, tracing
from engine.graphs.batch_shapes import BatchShapes
from engine.host import quantiles
from engine.selection.selection import Selection
from engine.training import microbatch
from engine.training.step import TrainStep


class TracedPass(NamedTuple):
    """A traced pass: its graph, the placeholders of its examples (whose first axis is the batch, of unknown length), the
    operations of the forward pass, and those that only the gradients need."""

    graph: Any
    inputs: Sequence[Any]
    forward: Sequence[Any]
    backward: Sequence[Any]


class Cost(NamedTuple):
    """The cost of a step: GFLOP per example, and the number of operations that only the gradients need."""

    forward: float
    backward: float
    backward_ops: int


def count_cost(traced: TracedPass) -> Cost:
    """Counts the arithmetic of a traced pass."""
    needed = dataflow.ancestors([], ops=(*traced.forward, *traced.backward))
    ops = [op for op in traced.graph.get_operations() if op in needed]
    shapes = BatchShapes(traced.graph, list(traced.inputs), ops)
    forward, backward = (2e-9 * sum(shapes.macs(op) for op in ops) for ops in (traced.forward, traced.backward))
    return Cost(forward, backward, len(traced.backward))


def step_cost(step: TrainStep, selection: Selection, batch: Any) -> Cost:
    """Counts the arithmetic of the engine's step for a selection and batches like this one.

    For a batch of cached features, only the part above the frost line counts.
    """
    micro = step.micro_batch(selection, batch)
    counted = micro
    if tracing.calls_functions(micro.graph) and list_inputs(micro.inputs):
        specs = micro.function.structured_input_signature[0][0]
        whole = step.micro_batch_size is None
        counted = microbatch.trace_micro_batch(
            step.loss_fn, selection, specs, whole=whole, remat_mode=step.remat, inline=True
        )
    traced = TracedPass(counted.graph, list(counted.inputs.values()), counted.forward, counted.backward)
    return count_cost(traced)._replace(backward_ops=len(micro.backward))


def measure_gemm_gflops(size: int = 1536, *, times: int = 15) -> dict[str, float]:
    """Measures the GFLOP/s of this machine in float32 products of square matrices: median, p10 and p90 of ``times``."""
    left, right = (tf.random.stateless_uniform([size, size], seed=[0, number]) for number in (1, 2))
    product = tf.function(tf.matmul, autograph=False)
    seconds = []
    for _ in range(times + 2):  # the first two are not counted
        started = time.perf_counter()
        product(left, right).numpy()
        seconds.append(time.perf_counter() - started)
    return quantiles(2e-9 * size**3 / np.array(seconds[2:]))
