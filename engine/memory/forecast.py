"""Memory before the first step, and how to stay within a budget.

What variables, slots and accumulators take is arithmetic. What the forward and backward pass take at
their highest moment is read off the traced micro-batch (``dataflow.Buffers``): exact shapes, and every
tensor gone when the last operation that reads it is done. What TensorFlow keeps of a traced and
optimised graph is measured per operation (BUILD.md has the table that shows how well it all fits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.memory import buffers
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

_BYTES_PER_OPERATION = 55_000  # of the traced micro-batch: TensorFlow's own copies of the step's graph
_SLACK = 1.08  # the allocator's holes, of what comes and goes
_IN_FLIGHT = 0.3  # of the gradients that are added up as they come: two threads run ahead of the adding
_BATCHES_HELD = 3  # the step's, the next one's, and one on its way


@dataclass(frozen=True)
class Forecast:
    """Bytes at the highest moment of a step.

    Attributes:
        weights: of all variables; they are in ``process`` already.
        slots, averages: optimizer state, and averages of the selection.
        accumulators: summed gradients, with micro-batches.
        gradients: of the selection; with micro-batches only those that are not added up yet.
        activations: the largest set of forward and backward tensors alive at once, beside ``gradients``.
        batches: images and labels in memory.
        graph: what TensorFlow keeps of the compiled step.
        process: the process before the step: weights, data and what was traced for the forecast included.
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

    @property
    def total(self) -> int:
        """Of the whole process."""
        own = self.slots + self.averages + self.accumulators + self.gradients + self.activations
        return self.process + own + self.batches + self.graph

    def text(self) -> str:
        parts = {
            "process before": self.process - self.weights,
            "weights": self.weights,
            "slots": self.slots,
            "averages": self.averages,
            "accumulators": self.accumulators,
            "gradients": self.gradients,
            "activations": self.activations,
            "batches": self.batches,
            "graph": self.graph,
        }
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        return f"{format_bytes(self.total)} = {listed}"


class Forecaster:
    """Forecasts of one selection with one way of tracing; the batch may be split in any way.

    Args:
        step: its settings; its traced micro-batch is made here, and used again when it trains.
        selection, optimizer: as the step will be called.
        batch: any batch; shapes and dtypes count.
    """

    def __init__(self, step: TrainStep, selection: Selection, optimizer: Optimizer, batch: Mapping[str, Any]) -> None:
        micro = step.micro_batch(selection, batch)
        inputs = list(micro.inputs.values())
        self._each = sum(t.dtype.size * (t.shape[1:].num_elements() or 1) for t in inputs)
        results = micro.graph.outputs
        self._apart = buffers.Buffers(micro.graph, inputs, results, kept=False)
        self._together = buffers.Buffers(micro.graph, inputs, results, kept=True)
        self._operations = len(micro.forward) + len(micro.backward)
        self._trained = sum(entry.bytes for entry in selection.trained)
        self._weights = sum(entry.bytes for entry in selection.variables)
        self._slots = self._trained * len(optimizer.slots)
        self._averages = self._trained if step.averages is not None else 0

    def at(self, batch_size: int, micro_batch_size: int | None, *, process: int = 0) -> Forecast:
        """The forecast for steps of ``batch_size``, in micro-batches or in one piece (None).

        ``process`` is what the process holds now (``resident_bytes``), in bytes.
        """
        whole = micro_batch_size is None
        if micro_batch_size is None:
            gradients, highest = self._trained, self._together.peak(batch_size)
        else:
            gradients, highest = int(_IN_FLIGHT * self._trained), self._apart.peak(micro_batch_size)
        return Forecast(
            weights=self._weights,
            slots=self._slots,
            averages=self._averages,
            accumulators=0 if whole else self._trained,
            gradients=gradients,
            activations=int(_SLACK * max(0, highest - gradients if whole else highest)),
            batches=_BATCHES_HELD * self._each * batch_size,
            graph=_BYTES_PER_OPERATION * self._operations,
            process=process,
        )
