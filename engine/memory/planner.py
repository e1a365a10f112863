"""Plans how a run's steps are computed within a memory budget: micro-batches, rematerialisation, trained blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InputError
from engine.host import resident_bytes
from engine.memory.forecast import Forecast, Forecaster
from engine.memory.run_forecast import Surroundings, forecast_phases
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training import remat
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

_FEW = 4  # examples; smaller micro-batches make poor use of the processor


class BudgetError(InputError):
    """A memory budget that no plan fits."""


@dataclass(frozen=True)
class Plan:
    """How a run's steps are computed, with one forecast per selection.

    Attributes:
        micro_batch_size, remat: examples per micro-batch (None for a step in one piece), and the rematerialisation mode.
        reasons: why this plan was chosen, one sentence each.
        blocks: the number of top blocks that train, if that was planned.
    """

    micro_batch_size: int | None
    remat: remat.Mode
    forecasts: tuple[Forecast, ...]
    reasons: tuple[str, ...]
    blocks: int | None = None

    @property
    def total(self) -> int:
        """The largest forecast in bytes."""
        return max(forecast.total for forecast in self.forecasts)

    def to_json(self) -> dict[str, Any]:
        """The part that run.json and checkpoints record."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "remat": self.remat,
            "blocks": self.blocks,
            "reasons": list(self.reasons),
        }


@dataclass
class Planner:
    """Finds plans within a memory budget.

    Attributes:
        make_step: (micro_batch_size, remat) -> the step that would train.
        batch, batch_size: any batch, and the examples per step.
        budget, process: the bytes that the whole process may use, and a function that returns what it holds now.
        modes: the rematerialisation modes that may be used, cheapest first.
        around: what the run does besides steps; None forecasts steps alone.
        kind: the kind of device; on a "gpu" the budget is for its memory.
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
    around: Surroundings | None = None
    kind: str = "cpu"

    def plan_micro_batches(self, jobs: Sequence[tuple[Selection, Optimizer]]) -> Plan:
        """Finds the largest micro-batch that fits for all jobs, with as little rematerialisation as possible.

        ``jobs`` are the (selection, optimizer) pairs that will be trained. For each mode in turn, a step in one piece is
        tried first, then micro-batches of at least 4 examples. Smaller micro-batches are tried last, in the same order of
        modes. If nothing fits, the message of the BudgetError names the smallest budget that would suffice.
        """
        reasons: list[str] = []
        for few, many in ((_FEW, self.batch_size), (1, _FEW - 1)):
            for mode in self.modes:
                if not self._can(jobs, mode):
                    continue
                if many == self.batch_size:
                    whole = self._forecasts(jobs, None, mode)
                    if self._most(whole) <= self.budget:
                        return self._plan(None, mode, whole, reasons)
                size = self._largest(jobs, mode, min(few, self.batch_size), min(many, self.batch_size - 1))
                if size is not None:
                    return self._plan(size, mode, self._forecasts(jobs, size, mode), reasons)
                least = self._most(self._forecasts(jobs, min(few, self.batch_size), mode))
                what = f"micro-batches of {min(few, self.batch_size)}"
                reasons.append(f"remat={mode} with {what} would take {format_bytes(least)}")
        raise self._impossible(jobs)

    def plan_blocks(
        self, choices: Sequence[tuple[int, Sequence[tuple[Selection, Optimizer]]]], size: int | None, mode: remat.Mode
    ) -> tuple[Plan, int]:
        """Finds the first of ``choices`` that fits with a given micro-batch size and mode, and its position.

        ``choices`` are numbers of blocks in descending order, each with the jobs that would train them. Raises BudgetError
        if not even the last one fits.
        """

        def needs(place: int) -> int:
            return self._most(self._forecasts(choices[place][1], size, mode))

        low, high = 0, len(choices)  # if a number of blocks fits, so do all smaller ones
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if needs(middle) <= self.budget else (middle + 1, high)
        if low == len(choices):
            raise BudgetError(
                f"memory_budget={format_bytes(self.budget)}: training {choices[-1][0]} block(s) takes "
                f"{format_bytes(needs(-1))}; --micro_batches or --remat=blocks needs less"
            )
        blocks, jobs = choices[low]
        above = [f"{choices[low - 1][0]} blocks would take {format_bytes(needs(low - 1))}"] if low else []
        plan = self._plan(size, mode, self._forecasts(jobs, size, mode), above)
        return dataclasses.replace(plan, blocks=blocks), low

    def forecast_plan(self, jobs: Sequence[tuple[Selection, Optimizer]], size: int | None, mode: remat.Mode) -> Plan:
        """The plan with a given micro-batch size and mode: nothing is chosen, only forecast."""
        return Plan(size, mode, self._forecasts(jobs, size, mode, whole=size is None), ())

    def build_step(self, plan: Plan) -> TrainStep:
        """The step that trains by a plan; it reuses everything traced for the forecast."""
        step = self._step(plan.remat, plan.micro_batch_size is None)
        step.micro_batch_size = plan.micro_batch_size
        return step

    def find_forecasters(self, plan: Plan, jobs: Sequence[tuple[Selection, Optimizer]]) -> list[Forecaster]:
        """The forecasters of the jobs' whole steps, as a plan computes them."""
        found = []
        for job in jobs:
            wholes = (plan.micro_batch_size is None, False)  # a budget plans with steps that may be split
            keys = [(*job, plan.remat, whole) for whole in wholes]
            found.append(next(self._known[key] for key in keys if key in self._known))
        return found

    def _step(self, mode: remat.Mode, whole: bool) -> TrainStep:
        key = mode, whole
        if key not in self._steps:
            self._steps[key] = self.make_step(None if whole else self.batch_size, mode)
        return self._steps[key]

    def _largest(self, jobs: Any, mode: remat.Mode, low: int, high: int) -> int | None:
        """The largest micro-batch from ``low`` to ``high`` that fits."""
        if low > high or self._most(self._forecasts(jobs, low, mode)) > self.budget:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self._most(self._forecasts(jobs, middle, mode)) <= self.budget:
                low = middle
            else:
                high = middle - 1
        # equal parts: the same number of micro-batches, but without a small one at the end
        parts = -(-self.batch_size // low)
        return -(-self.batch_size // parts)

    def _forecasts(self, jobs: Any, size: int | None, mode: remat.Mode, *, whole: bool = False) -> tuple[Forecast, ...]:
        """Forecasts from a micro-batch traced as a part of a step, or as the ``whole`` of it."""
        keys = [(selection, optimizer, mode, whole) for selection, optimizer in jobs]
        for key in keys:
            if key not in self._known:
                self._known[key] = Forecaster(self._step(mode, whole), *key[:2], self.batch)
                self._now = None
        if self._now is None:  # tracing takes memory itself
            self._now = self.process()
        found = [self._known[key] for key in keys]
        if self.around is None:
            return tuple(known.at(self.batch_size, size, process=self._now) for known in found)
        phases = [(known, None) for known in found]
        return forecast_phases(phases, self.batch_size, size, process=self._now, around=self.around)

    def _most(self, forecasts: Sequence[Forecast]) -> int:
        return max(forecast.on(self.kind) for forecast in forecasts)

    def _plan(self, size: int | None, mode: remat.Mode, found: tuple[Forecast, ...], reasons: list[str]) -> Plan:
        count = 1 if size is None else -(-self.batch_size // size)
        how = "one piece" if size is None else f"{count} micro-batches of {size}"
        fits = f"{how} with remat={mode}: {format_bytes(self._most(found))} of {format_bytes(self.budget)}"
        return Plan(size, mode, found, (*reasons, fits))

    def _can(self, jobs: Any, mode: remat.Mode) -> bool:
        """Whether the model supports a mode; if it is the only one allowed, an unsupported mode is an error."""
        try:
            for selection, optimizer in jobs:
                if (selection, optimizer, mode, False) not in self._known:
                    self._step(mode, whole=False).micro_batch(selection, self.batch)
        except remat.RematError:
            if len(self.modes) == 1:
                raise
            return False
        return True

    def _impossible(self, jobs: Any) -> BudgetError:
        able = [mode for mode in self.modes if self._can(jobs, mode)]
        least, mode = min((self._most(self._forecasts(jobs, 1, mode)), mode) for mode in able)
        return BudgetError(
            f"memory_budget={format_bytes(self.budget)}: the smallest budget that would suffice is {format_bytes(least)} "
            f"(micro-batches of 1 example, remat={mode}); a smaller selection or model needs less"
        )
