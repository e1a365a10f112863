"""Memory before the first step, and how to stay within a budget.

What variables, slots and accumulators take is arithmetic. What the forward and backward pass take at
their highest moment is read off the traced micro-batch (``graph.Buffers``): exact shapes, and every
tensor gone when the last operation that reads it is done. What TensorFlow keeps of a traced and
optimised graph is measured per operation (BUILD.md has the table that shows how well it all fits).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import graph, remat
from engine.errors import InputError
from engine.optimizers import Optimizer
from engine.report import peak_rss_bytes
from engine.selection import Selection
from engine.sizes import format_bytes
from engine.step import TrainStep

_BYTES_PER_OPERATION = 40_000  # of the traced micro-batch: TensorFlow's own copies of the window's graph
_SLACK = 1.05  # the allocator's holes, of what comes and goes
_FEW = 4  # examples: smaller micro-batches make poor use of the processor
_BATCHES_HELD = 3  # the window's, the next one's, and one on its way


class BudgetError(InputError):
    """A budget that no plan fits."""


@dataclass(frozen=True)
class Forecast:
    """Bytes at the highest moment of a window.

    Attributes:
        weights: of all variables; they are in ``process`` already.
        slots, averages: optimizer state, and averages of the selection.
        accumulators: summed gradients, with micro-batches.
        gradients: of the selection; with micro-batches each is added up as it comes and counts among ``activations``.
        activations: the largest set of forward and backward tensors alive at once, beside ``gradients``.
        batches: images and labels in memory.
        graph: what TensorFlow keeps of the compiled step.
        process: the process before the step, weights and data included.
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
        process: bytes of the process before anything is traced (``resident_bytes``).
    """

    def __init__(
        self, step: TrainStep, selection: Selection, optimizer: Optimizer, batch: Mapping[str, Any], *, process: int
    ) -> None:
        micro = step.micro_batch(selection, batch)
        names = micro.function.structured_input_signature[0][0]
        inputs = micro.graph.inputs[: len(names)]
        self._each = sum(t.dtype.size * (t.shape[1:].num_elements() or 1) for t in inputs)
        results = micro.graph.outputs
        self._apart = graph.Buffers(micro.graph, inputs, results, kept=False)
        self._together = graph.Buffers(micro.graph, inputs, results, kept=True)
        self._operations = len(micro.forward) + len(micro.backward)
        self._trained = sum(entry.bytes for entry in selection.trained)
        self._weights = sum(entry.bytes for entry in selection.variables)
        self._slots = self._trained * len(optimizer.slots)
        self._averages = self._trained if step.averages is not None else 0
        self._process = process

    def at(self, batch_size: int, micro_batch_size: int | None) -> Forecast:
        """The forecast for windows of ``batch_size``, in micro-batches or in one piece (None)."""
        whole = micro_batch_size is None
        if micro_batch_size is None:
            gradients, highest = self._trained, self._together.peak(batch_size)
        else:
            gradients, highest = 0, self._apart.peak(micro_batch_size)
        return Forecast(
            weights=self._weights,
            slots=self._slots,
            averages=self._averages,
            accumulators=0 if whole else self._trained,
            gradients=gradients,
            activations=int(_SLACK * max(0, highest - gradients)),
            batches=_BATCHES_HELD * self._each * batch_size,
            graph=_BYTES_PER_OPERATION * self._operations,
            process=self._process,
        )


@dataclass(frozen=True)
class Plan:
    """How a run's windows are computed.

    Attributes:
        micro_batch_size: examples; None computes a window in one piece.
        remat: mode.
        forecasts: one for each selection.
        reasons: why, a sentence each.
        blocks: how many top blocks train, where that was planned.
    """

    micro_batch_size: int | None
    remat: remat.Mode
    forecasts: tuple[Forecast, ...]
    reasons: tuple[str, ...]
    blocks: int | None = None

    @property
    def total(self) -> int:
        return max(forecast.total for forecast in self.forecasts)


@dataclass
class Planner:
    """Finds plans within a budget.

    Attributes:
        make_step: (micro_batch_size, remat) -> the step that would train.
        batch: any batch.
        batch_size: examples per window.
        budget: bytes, of the whole process.
        process: bytes of the process now.
        modes: kinds of rematerialisation that may be used, cheapest first.
    """

    make_step: Callable[[int | None, remat.Mode], TrainStep]
    batch: Mapping[str, Any]
    batch_size: int
    budget: int
    process: int
    modes: Sequence[remat.Mode] = remat.MODES
    _known: dict[Any, Forecaster] = field(default_factory=dict)

    def micro_batches(self, asked: Sequence[tuple[Selection, Optimizer]]) -> Plan:
        """The largest micro-batch that fits for all of (selection, optimizer); remat if it must be.

        First comes a window in one piece; then micro-batches of at least 4 examples without remat,
        with elementwise, with blocks; then smaller ones in the same order.

        Raises:
            BudgetError: nothing fits; says the smallest budget that would do.
        """
        reasons: list[str] = []
        for few, many in ((_FEW, self.batch_size), (1, _FEW - 1)):
            for mode in self.modes:
                if many == self.batch_size:
                    whole = self._forecasts(asked, None, mode)
                    if self._most(whole) <= self.budget:
                        return self._plan(None, mode, whole, reasons)
                size = self._largest(asked, mode, min(few, self.batch_size), min(many, self.batch_size - 1))
                if size is not None:
                    return self._plan(size, mode, self._forecasts(asked, size, mode), reasons)
                least = self._most(self._forecasts(asked, min(few, self.batch_size), mode))
                what = f"micro-batches of {min(few, self.batch_size)}"
                reasons.append(f"remat={mode} with {what} would take {format_bytes(least)}")
        raise self._impossible(asked)

    def blocks(
        self,
        choices: Sequence[tuple[int, Selection, Optimizer]],
        micro_batch_size: int | None,
        mode: remat.Mode,
    ) -> tuple[Plan, int]:
        """The first of (blocks, selection, optimizer), given with the most blocks first, that fits; and its place.

        Raises:
            BudgetError: not even the last fits.
        """
        low, high = 0, len(choices)  # what fits for n blocks fits for fewer
        while low < high:
            middle = (low + high) // 2
            fits = self._most(self._forecasts([choices[middle][1:]], micro_batch_size, mode)) <= self.budget
            low, high = (low, middle) if fits else (middle + 1, high)
        if low == len(choices):
            least = self._most(self._forecasts([choices[-1][1:]], micro_batch_size, mode))
            raise BudgetError(
                f"memory_budget={format_bytes(self.budget)}: with {choices[-1][0]} block(s) trained it takes "
                f"{format_bytes(least)}; micro-batches, or remat=blocks, need less"
            )
        blocks, *chosen = choices[low]
        reasons = []
        if low:
            more = self._most(self._forecasts([choices[low - 1][1:]], micro_batch_size, mode))
            reasons.append(f"{choices[low - 1][0]} blocks would take {format_bytes(more)}")
        forecasts = self._forecasts([tuple(chosen)], micro_batch_size, mode)
        plan = self._plan(micro_batch_size, mode, forecasts, reasons)
        return Plan(plan.micro_batch_size, plan.remat, plan.forecasts, plan.reasons, blocks), low

    def _largest(self, asked: Any, mode: remat.Mode, low: int, high: int) -> int | None:
        """The largest micro-batch from ``low`` to ``high`` that fits."""
        if low > high or self._most(self._forecasts(asked, low, mode)) > self.budget:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self._most(self._forecasts(asked, middle, mode)) <= self.budget:
                low = middle
            else:
                high = middle - 1
        # equal parts: as many micro-batches, but no small one at the end
        parts = -(-self.batch_size // low)
        return -(-self.batch_size // parts)

    def _forecasts(self, asked: Any, size: int | None, mode: remat.Mode) -> tuple[Forecast, ...]:
        found = []
        for selection, optimizer in asked:
            key = (selection, optimizer, mode)
            if key not in self._known:
                step = self.make_step(self.batch_size, mode)
                self._known[key] = Forecaster(step, selection, optimizer, self.batch, process=self.process)
            found.append(self._known[key].at(self.batch_size, size))
        return tuple(found)

    @staticmethod
    def _most(forecasts: Sequence[Forecast]) -> int:
        return max(forecast.total for forecast in forecasts)

    def _plan(self, size: int | None, mode: remat.Mode, found: tuple[Forecast, ...], reasons: list[str]) -> Plan:
        count = 1 if size is None else -(-self.batch_size // size)
        how = "one piece" if size is None else f"{count} micro-batches of {size}"
        fits = f"{how} with remat={mode}: {format_bytes(self._most(found))} of {format_bytes(self.budget)}"
        return Plan(size, mode, found, (*reasons, fits))

    def _impossible(self, asked: Any) -> BudgetError:
        least, mode = min((self._most(self._forecasts(asked, 1, mode)), mode) for mode in self.modes)
        return BudgetError(
            f"memory_budget={format_bytes(self.budget)}: the smallest that would do is {format_bytes(least)} "
            f"(micro-batches of 1 example, remat={mode}); a smaller selection or model needs less"
        )


def resident_bytes() -> int:
    """Memory that this process holds now."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the most it held so far
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")
