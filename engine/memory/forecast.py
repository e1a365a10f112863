"""Memory before the first step, and how to stay within a budget.

What variables, slots and accumulators take is arithmetic. What the forward and backward pass take at
their highest moment is read off the traced micro-batch (``dataflow.Buffers``): exact shapes, and every
tensor gone when the last operation that reads it is done. What TensorFlow keeps of a traced and
optimised graph is measured per operation (BUILD.md has the table that shows how well it all fits).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InputError
from engine.graphs import dataflow
from engine.runs.records import peak_rss_bytes
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training import remat
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

_BYTES_PER_OPERATION = 55_000  # of the traced micro-batch: TensorFlow's own copies of the step's graph
_SLACK = 1.08  # the allocator's holes, of what comes and goes
_IN_FLIGHT = 0.3  # of the gradients that are added up as they come: two threads run ahead of the adding
_FEW = 4  # examples: smaller micro-batches make poor use of the processor
_BATCHES_HELD = 3  # the step's, the next one's, and one on its way


class BudgetError(InputError):
    """A budget that no plan fits."""


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
        self._apart = dataflow.Buffers(micro.graph, inputs, results, kept=False)
        self._together = dataflow.Buffers(micro.graph, inputs, results, kept=True)
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


@dataclass(frozen=True)
class Plan:
    """How a run's steps are computed.

    Attributes:
        micro_batch_size: examples; None computes a step in one piece.
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

    def to_json(self) -> dict[str, Any]:
        """What run.json and checkpoints keep."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "remat": self.remat,
            "blocks": self.blocks,
            "reasons": list(self.reasons),
        }


@dataclass
class Planner:
    """Finds plans within a budget.

    Attributes:
        make_step: (micro_batch_size, remat) -> the step that would train.
        batch: any batch.
        batch_size: examples per step.
        budget: bytes, of the whole process.
        process: tells what the process holds now, in bytes.
        modes: kinds of rematerialisation that may be used, cheapest first.
    """

    make_step: Callable[[int | None, remat.Mode], TrainStep]
    batch: Mapping[str, Any]
    batch_size: int
    budget: int
    process: Callable[[], int] = field(default_factory=lambda: resident_bytes)
    modes: Sequence[remat.Mode] = remat.MODES
    _known: dict[Any, Forecaster] = field(default_factory=dict)
    _now: int | None = None
    _steps: dict[tuple[remat.Mode, bool], TrainStep] = field(default_factory=dict)

    def micro_batches(self, asked: Sequence[tuple[Selection, Optimizer]]) -> Plan:
        """The largest micro-batch that fits for all of (selection, optimizer); remat if it must be.

        First comes a step in one piece; then micro-batches of at least 4 examples without remat,
        with elementwise, with blocks; then smaller ones in the same order.

        Raises:
            BudgetError: nothing fits; says the smallest budget that would do.
        """
        reasons: list[str] = []
        for few, many in ((_FEW, self.batch_size), (1, _FEW - 1)):
            for mode in self.modes:
                if not self._can(asked, mode):
                    continue
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
        self, choices: Sequence[tuple[int, Sequence[tuple[Selection, Optimizer]]]], size: int | None, mode: remat.Mode
    ) -> tuple[Plan, int]:
        """The first of ``choices`` that fits, and its place.

        Args:
            choices: numbers of blocks, the most first, each with what would train.
            size, mode: the micro-batch and remat, which stay.

        Raises:
            BudgetError: not even the last fits.
        """

        def needs(place: int) -> int:
            return self._most(self._forecasts(choices[place][1], size, mode))

        low, high = 0, len(choices)  # what fits for some blocks fits for fewer
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if needs(middle) <= self.budget else (middle + 1, high)
        if low == len(choices):
            raise BudgetError(
                f"memory_budget={format_bytes(self.budget)}: with {choices[-1][0]} block trained it takes "
                f"{format_bytes(needs(-1))}; --micro_batches or --remat=blocks needs less"
            )
        blocks, asked = choices[low]
        above = [f"{choices[low - 1][0]} blocks would take {format_bytes(needs(low - 1))}"] if low else []
        plan = self._plan(size, mode, self._forecasts(asked, size, mode), above)
        return dataclasses.replace(plan, blocks=blocks), low

    def as_asked(self, asked: Sequence[tuple[Selection, Optimizer]], size: int | None, mode: remat.Mode) -> Plan:
        """A plan that nobody chose: the forecasts alone."""
        return Plan(size, mode, self._forecasts(asked, size, mode, whole=size is None), ())

    def step(self, plan: Plan) -> TrainStep:
        """The step that trains by a plan; what was traced for the forecast is not traced again."""
        whole = plan.micro_batch_size is None
        step = self._step(plan.remat, whole)
        step.micro_batch_size = plan.micro_batch_size
        return step

    def _step(self, mode: remat.Mode, whole: bool) -> TrainStep:
        key = mode, whole
        if key not in self._steps:
            self._steps[key] = self.make_step(None if whole else self.batch_size, mode)
        return self._steps[key]

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

    def _forecasts(
        self, asked: Any, size: int | None, mode: remat.Mode, *, whole: bool = False
    ) -> tuple[Forecast, ...]:
        """By a micro-batch that was traced to be a part of a step, or the ``whole`` of it."""
        found = []
        for selection, optimizer in asked:
            key = (selection, optimizer, mode, whole)
            if key not in self._known:
                step = self._step(mode, whole)
                self._known[key] = Forecaster(step, selection, optimizer, self.batch)
                self._now = None
        if self._now is None:  # tracing takes memory itself
            self._now = self.process()
        for selection, optimizer in asked:
            forecaster = self._known[selection, optimizer, mode, whole]
            found.append(forecaster.at(self.batch_size, size, process=self._now))
        return tuple(found)

    @staticmethod
    def _most(forecasts: Sequence[Forecast]) -> int:
        return max(forecast.total for forecast in forecasts)

    def _plan(self, size: int | None, mode: remat.Mode, found: tuple[Forecast, ...], reasons: list[str]) -> Plan:
        count = 1 if size is None else -(-self.batch_size // size)
        how = "one piece" if size is None else f"{count} micro-batches of {size}"
        fits = f"{how} with remat={mode}: {format_bytes(self._most(found))} of {format_bytes(self.budget)}"
        return Plan(size, mode, found, (*reasons, fits))

    def _can(self, asked: Any, mode: remat.Mode) -> bool:
        """Whether the model can do that mode; one that was asked for by itself must."""
        try:
            for selection, optimizer in asked:
                if (selection, optimizer, mode, False) not in self._known:
                    self._step(mode, whole=False).micro_batch(selection, self.batch)
        except remat.RematError:
            if len(self.modes) == 1:
                raise
            return False
        return True

    def _impossible(self, asked: Any) -> BudgetError:
        able = [mode for mode in self.modes if self._can(asked, mode)]
        least, mode = min((self._most(self._forecasts(asked, 1, mode)), mode) for mode in able)
        return BudgetError(
            f"memory_budget={format_bytes(self.budget)}: the smallest that would do is {format_bytes(least)} "
            f"(micro-batches of 1 example, remat={mode}); a smaller selection or model needs less"
        )


def resident_bytes() -> int:
    """Memory that this process holds now, what Python no longer needs given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the most it held so far
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")
