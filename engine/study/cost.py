"""What a step costs in arithmetic: multiply-adds of a traced forward and backward pass, and what the machine could do.

A multiply-add counts as 2 floating-point operations. Matrix products, convolutions and their gradients are counted,
element-wise work is not; nor is what happens inside loops and branches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.graphs import dataflow, tracing
from engine.graphs.batch_shapes import BatchShapes
from engine.host import quantiles
from engine.selection.selection import Selection
from engine.training import microbatch
from engine.training.microbatch import MicroBatch
from engine.training.step import TrainStep


class Pass(NamedTuple):
    """A traced forward and backward pass.

    Attributes:
        graph: its graph.
        inputs: the placeholders of examples, batch axis first and open.
        forward, backward: operations; backward ones are those that only the gradients need.
    """

    graph: Any
    inputs: Sequence[Any]
    forward: Sequence[Any]
    backward: Sequence[Any]


class Cost(NamedTuple):
    """Attributes: GFLOP for an example, forward and backward; operations that only the gradients need."""

    forward: float
    backward: float
    backward_ops: int


def cost(traced: Pass) -> Cost:
    """What a traced pass costs."""
    needed = dataflow.ancestors([], ops=(*traced.forward, *traced.backward))
    ops = [op for op in traced.graph.get_operations() if op in needed]
    shapes = BatchShapes(traced.graph, list(traced.inputs), ops)
    forward, backward = (2e-9 * sum(shapes.macs(op) for op in ops) for ops in (traced.forward, traced.backward))
    return Cost(forward, backward, len(traced.backward))


def of_step(step: TrainStep, selection: Selection, batch: Any) -> Cost:
    """What the engine's step costs for a selection and batches like this one: of features, only the part above the line."""
    micro = step.micro_batch(selection, batch)
    counted = micro
    if tracing.calls_functions(micro.graph) and "image" in micro.inputs:
        specs = micro.function.structured_input_signature[0][0]
        whole = step.micro_batch_size is None
        counted = microbatch.trace_micro_batch(
            step.loss_fn, selection, specs, whole=whole, remat_mode=step.remat, inline=True
        )
    return cost(_traced(counted))._replace(backward_ops=len(micro.backward))


def _traced(micro: MicroBatch) -> Pass:
    return Pass(micro.graph, list(micro.inputs.values()), micro.forward, micro.backward)


def gemm_gflops(size: int = 1536, *, times: int = 15) -> dict[str, float]:
    """GFLOP/s of float32 products of two square matrices on this machine: median, p10 and p90 of so many."""
    left, right = (tf.random.stateless_uniform([size, size], seed=[0, number]) for number in (1, 2))
    product = tf.function(tf.matmul, autograph=False)
    seconds = []
    for _ in range(times + 2):  # the first two input_dependent up
        started = time.perf_counter()
        product(left, right).numpy()
        seconds.append(time.perf_counter() - started)
    rates = 2e-9 * size**3 / np.array(seconds[2:])
    return quantiles(rates)
