"""Forecasts the peak memory of a training step before the first one is run.

The sizes of variables, slots and accumulators are exact. The peak of the forward and backward pass is derived from the
traced micro-batch (engine.memory.buffers): exact shapes, and each tensor freed after the last operation that reads it. The
memory that TensorFlow keeps for a traced and optimised graph is estimated from a measured figure per operation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine import part_times
from engine.memory import buffers
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

_BYTES_PER_OPERATION = 55_000  # TensorFlow's own copies of the graph, per operation of the traced micro-batch
_SLACK = 1.08  # fragmentation of the allocator, as a factor on the activations
_SLACK_OF_CONVOLUTIONS = 1.15  # the same where many convolutions train, whose tensors and gradients have many sizes
_MANY = 4  # convolutions; a ViT has one, for its patches
_HOLES = 1.2  # the same for a pass that keeps nothing: its tensors come and go in many sizes
_IN_FLIGHT = 0.3  # share of the gradients not yet summed: two threads run ahead of the summation
_BATCHES_HELD = 3  # the current batch, the next one, and one being prepared


@dataclass(frozen=True)
class Forecast:
    """The peak memory of a step, in bytes.

    Attributes:
        weights: the model's variables; ``process`` includes them.
        slots, averages: the optimizer's state, and the averages of the selection.
        accumulators: the summed gradients, if the step is split into micro-batches.
        gradients: the selection's gradients; with micro-batches, only those not yet summed.
        activations: the largest set of forward and backward tensors alive at once, apart from ``gradients``.
        batches: the images and labels in memory; for a run, also the photos that will be decoded and kept.
        graph: TensorFlow's own memory for the compiled step; for a run, also for its other functions and what it opens.
        process: the process before the step, with weights, data and everything traced for the forecast.
        device: the peak memory of a GPU that computes the step: of the above, what it needs for one step, and one batch.
    """

    weights: int
    slots: int
    averages: int
    accumulators: int
    gradients: int
    activations: int
    batches: int
    graph: int
    process: int
    device: int = 0

    def on(self, kind: str) -> int:
        """The peak memory that limits a step on this kind of device: that of the GPU, or of the whole process."""
        return self.device if kind == "gpu" else self.total

    @property
    def total(self) -> int:
        """The peak memory of the whole process."""
        own = self.slots + self.averages + self.accumulators + self.gradients + self.activations
        return self.process + own + self.batches + self.graph

    def text(self) -> str:
        """The total and its parts, such as "1.2 GiB = process before 400 MiB, ..."."""
        names = ["weights", "slots", "averages", "accumulators", "gradients", "activations", "batches", "graph"]
        parts = {"process before": self.process - self.weights} | {name: getattr(self, name) for name in names}
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        return f"{format_bytes(self.total)} = {listed}"


class Forecaster:
    """Forecasts a step of one selection, for any batch size and any split into micro-batches.

    The step will be called with this selection and optimizer; its micro-batch is traced here, and reused when it trains. Of
    ``batch`` only shapes and dtypes matter.

    Attributes:
        forward, operations: the number of operations in the forward pass, and in all.
        kernels: the bytes of the model's convolution kernels.
    """

    @part_times.part("forecast")
    def __init__(self, step: TrainStep, selection: Selection, optimizer: Optimizer, batch: Mapping[str, Any]) -> None:
        micro = step.micro_batch(selection, batch)
        inputs = list(micro.inputs.values())
        self._each = sum(t.dtype.size * (t.shape[1:].num_elements() or 1) for t in inputs)
        self._freed = buffers.Buffers(micro.graph, inputs, micro.graph.outputs, kept=False, shapes=micro.shapes)
        self._kept = self._freed.keep_results()
        self._micro = micro
        gradients = sum(op.type.endswith("BackpropFilter") for op in micro.backward)
        self._slack = _SLACK_OF_CONVOLUTIONS if gradients > _MANY else _SLACK
        self.forward, self.operations = len(micro.forward), len(micro.forward) + len(micro.backward)
        self._trained = sum(entry.bytes for entry in selection.trained)
        self._weights = sum(entry.bytes for entry in selection.variables)
        self.kernels = sum(entry.bytes for entry in selection.variables if len(entry.shape) == 4)
        self._slots = self._trained * len(optimizer.slots)
        self._averages = self._trained if step.averages is not None else 0

    @functools.cached_property
    def _forward(self) -> buffers.Buffers:
        returned = self._micro.graph.structured_outputs
        results = [value for value in tf.nest.flatten([returned["values"], returned["metrics"]]) if tf.is_tensor(value)]
        return buffers.Buffers(
            self._micro.graph, list(self._micro.inputs.values()), results, kept=False, shapes=self._micro.shapes
        )

    def forward_bytes(self, count: int) -> int:
        """The largest set of tensors alive at once in a forward pass over some examples, of which nothing is kept."""
        return int(_HOLES * self._forward.find_peak(count))

    def batch_bytes(self, count: int) -> int:
        """The images and labels of some examples."""
        return self._each * count

    def at(self, batch_size: int, micro_batch_size: int | None, *, process: int = 0) -> Forecast:
        """The forecast for steps of ``batch_size`` examples, in one piece if ``micro_batch_size`` is None.

        ``process`` is the number of bytes that the process holds now (``host.resident_bytes``).
        """
        whole = micro_batch_size is None
        if micro_batch_size is None:
            gradients, highest = self._trained, self._kept.find_peak(batch_size)
        else:
            gradients, highest = int(_IN_FLIGHT * self._trained), self._freed.find_peak(micro_batch_size)
        accumulators = 0 if whole else self._trained
        activations = int(self._slack * max(0, highest - gradients if whole else highest))
        variables = self._weights + self._slots + self._averages
        return Forecast(
            weights=self._weights,
            slots=self._slots,
            averages=self._averages,
            accumulators=accumulators,
            gradients=gradients,
            activations=activations,
            device=variables + accumulators + gradients + activations + self._each * batch_size,
            batches=_BATCHES_HELD * self._each * batch_size,
            graph=_BYTES_PER_OPERATION * self.operations,
            process=process,
        )
