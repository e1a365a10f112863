"""What a step keeps from one call to the next, besides the variables that it trains, and what a checkpoint has of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from engine.selection.variables import ModelVariables
from engine.training.ema import Averages
from engine.training.optimizer_state import Slots
from engine.training.optimizers import Optimizer
from engine.training.precision import LossScale
from engine.training.step_result import NonFinite, NonFiniteError


class StepState:
    """The state of a ``TrainStep``: slots, averages, the loss scale and counters, which that documents."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        loss_scale: LossScale | None,
        ema: float | None,
        nonfinite: NonFinite | None,
        give_up: int,
    ) -> None:
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.nonfinite = nonfinite or ("skip" if loss_scale is not None else "stop")
        self.give_up = give_up
        self._first_scale, self._ema = None if loss_scale is None else dataclasses.replace(loss_scale), ema
        self._begin()

    def _begin(self) -> None:
        self.slots = Slots()
        self.averages = Averages(self._ema) if self._ema is not None else None
        self.steps = self.skipped = self.traces = self._skipped_in_row = 0
        self.left_out: dict[str, int] = {}

    def begin_anew(self) -> None:
        """Gives the step a new state of its own, the one that it had at first."""
        self.loss_scale = None if self._first_scale is None else dataclasses.replace(self._first_scale)
        self._begin()

    def state(self) -> dict[str, Any]:
        """Returns the state that a resume needs besides variables and ``arrays``."""
        scale = self.loss_scale
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "left_out": dict(self.left_out),
            "loss_scale": None if scale is None else {"scale": scale.scale, "good": scale.good},
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names and values of slots (``optimizer/<path>/<slot>``) and averages (``ema/<path>``)."""
        yield from self.slots.arrays()
        if self.averages is not None:
            yield from self.averages.arrays()

    def restore(self, variables: ModelVariables, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Restores saved ``state()`` and ``arrays()``; raises OptimizerError or EmaError if the arrays do not fit."""
        self.slots.restore(variables, self.optimizer, arrays)
        if self.averages is not None:
            self.averages.restore(variables, arrays)
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._skipped_in_row, self.left_out = state["skipped_in_row"], dict(state["left_out"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.scale, self.loss_scale.good = state["loss_scale"]["scale"], state["loss_scale"]["good"]

    def _judge(self, applied: bool, finite: bool, scale: float, explain: Callable[[], str]) -> None:
        """Counts the step and adjusts the loss scale, or raises NonFiniteError (after counting the last skipped step)."""
        if not finite and self.nonfinite == "stop":
            raise NonFiniteError(f"step {self.steps + 1} was not applied; {explain()}")
        self.steps += 1
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        if applied:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        if finite:  # no example had a weight
            return
        self._skipped_in_row += 1
        if self._skipped_in_row >= self.give_up:
            at = "" if self.loss_scale is None else f", the last with loss scale {scale:g}"
            raise NonFiniteError(f"{self._skipped_in_row} steps in a row were skipped{at}; {explain()}")
