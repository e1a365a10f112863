"""How a run's steps are computed within a budget of memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InputError
from engine.host import resident_bytes
from engine.memory.forecast import Forecast, Forecaster
from engine.selection.selection import Selection
from engine.sizes import format_bytes
from engine.training import remat
from engine.training.optimizers import Optimizer
from engine.training.step import TrainStep

_FEW = 4  # examples: smaller micro-batches make poor use of the processor


class BudgetError(InputError):
    """A budget that no plan fits."""


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
