"""Forecasts the peak memory of a whole run: its steps, its evaluations, and the filling of feature caches.

Besides the step of a phase, a run holds the photos that it has decoded and TensorFlow's graphs of everything that was
called before: the steps of earlier phases, evaluations, and the functions that fill caches. Its peak is that of the
largest pass (a step, an evaluation or a batch of features; all of them read batches that another thread prepares), and
what the allocator keeps of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from engine import part_times, tensorflow_private
from engine.memory.forecast import Forecast, Forecaster

_BYTES_PER_OPERATION = 18_000  # of a traced and compiled function without gradients; measured on Keras models
_CUTTING = 40_000  # per operation of the step: the traces and the functions that a cut at the frost line leaves
_OPENED = 30_000_000  # what TensorBoard, Matplotlib and the files of a run take once they are opened
# Copies of convolution kernels, in the layout of the CPU's library, by whether that is oneDNN: 1.8 to 2.0 without it in
# InceptionV3, VGG16 and ResNet50V2; with it, peaks of VGG16 need at least 0.5, and those of ResNet50 at most 0.9.
_COPIES = {False: 2.0, True: 0.7}
_RETAINED = 0.3  # share of the second largest pass that the allocator has not given back, or not in the right pieces
_PREPARED = 2  # batches of which another thread holds two stages while it prepares the next one


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A phase that trains from a cache.

    Attributes:
        above: the forecaster of the step above the frost line.
        evaluated: the examples whose images go through the whole model at once in an evaluation.
        shard: the bytes of the shards that are collected in memory while caches are filled; None if none is filled.
    """

    above: Forecaster
    evaluated: int
    shard: int | None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run does besides steps.

    Attributes:
        examples, at_least: how many examples there are to evaluate, and how many are evaluated at once at least.
        images: the bytes of photos that will be decoded and kept.
        copies: the bytes of copies of variables that the run keeps besides slots and averages.
        step_examples: the examples of a whole step, where the process computes only a share of them.
        may_cache: whether phases may train from caches, which is decided later; the forecast then covers both.
    """

    examples: int
    at_least: int = 0
    images: int = 0
    copies: int = 0
    may_cache: bool = False
    step_examples: int | None = None

    def evaluated(self, batch_size: int, micro_batch_size: int | None) -> int:
        """The number of examples that are evaluated at once."""
        whole = self.step_examples or batch_size
        return min(self.examples, evaluation_size(whole, micro_batch_size, at_least=self.at_least))


def evaluation_size(batch_size: int, micro_batch_size: int | None, *, at_least: int) -> int:
    """The size of evaluation batches: that of micro-batches where steps have some, else that of steps, if not small."""
    return micro_batch_size or max(batch_size, at_least)


@part_times.part("forecast")
def forecast_phases(
    phases: Sequence[tuple[Forecaster, Cached | None]],
    batch_size: int,
    micro_batch_size: int | None,
    *,
    process: int,
    around: Surroundings,
) -> tuple[Forecast, ...]:
    """The forecast of each phase of a run, given the forecaster of its whole step and, if it has one, its cache.

    ``process`` is the number of bytes that the process holds now, with everything traced so far.
    """
    found, functions = [], 0
    filled, evaluated = (
        micro_batch_size or around.step_examples or batch_size,
        around.evaluated(batch_size, micro_batch_size),
    )
    filling = [whole for whole, cached in phases if cached is not None and cached.shard is not None]
    joint = max(whole.forward for whole in filling) if len(filling) > 1 else 0
    for whole, cached in phases:
        step = whole if cached is None else cached.above
        base = step.at(batch_size, micro_batch_size, process=process)
        ahead = _PREPARED * base.batches // 3
        passes = [base.accumulators + base.gradients + base.activations + base.batches + ahead]
        passes.append(whole.forward_bytes(evaluated if cached is None else cached.evaluated))
        fills = around.may_cache if cached is None else cached.shard is not None
        if fills:
            reads = whole.batch_bytes(filled) * (3 + _PREPARED)
            passes.append(whole.forward_bytes(filled) + reads + (0 if cached is None else cached.shard or 0))
        copies = _COPIES[tensorflow_private.uses_onednn()]
        graph = _OPENED + int(copies * whole.kernels) + base.graph + _BYTES_PER_OPERATION * (functions + whole.forward)
        if cached is not None:
            graph += _BYTES_PER_OPERATION * (step.forward + joint)
        elif around.may_cache:
            graph += _CUTTING * sum(each.operations for each, _ in phases)
        more = max(passes) - passes[0] + int(_RETAINED * sorted(passes)[-2])
        found.append(
            dataclasses.replace(
                base,
                activations=base.activations + more,
                device=base.device + max(passes) - passes[0],
                batches=base.batches + ahead + around.images + around.copies,
                graph=graph,
            )
        )
        functions += step.operations + whole.forward
    return tuple(found)
