"""How a fine-tuning run's steps are computed: as the config says, or as its memory budget allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine import sizes
from engine.data.loading import unloaded_bytes
from engine.distribution.shares import WHOLE, Share
from engine.errors import InputError
from engine.memory.forecast import Forecaster
from engine.memory.planner import Plan, Planner
from engine.memory.run_forecast import Surroundings
from engine.recipes.config import FinetuneConfig
from engine.recipes.stages import check_stages, resolve_stages, top_blocks_phase
from engine.recipes.task import Task
from engine.selection.selection import Selection
from engine.training.loop import Stage
from engine.training.optimizers import Optimizer, count_blocks
from engine.training.remat import MODES, Mode
from engine.training.step import TrainStep

LEAST_EVALUATED = 64  # examples are evaluated at once, at least
_COPIES = 2  # of the weights, which --auto_freeze compares: those of the last evaluation and of this one


def choose_plan(
    config: FinetuneConfig,
    task: Task,
    stages: list[Stage],
    *,
    make_step: Callable[[int | None, Mode], TrainStep],
    saved: Mapping[str, Any] | None,
    kind: str,
    share: Share = WHOLE,
) -> tuple[Plan, TrainStep, list[Stage], list[Forecaster]]:
    """The plan, the step that trains by it, the phases, which plan "depth" decides, and their forecasters.

    ``make_step`` makes the step that would train with a micro-batch size and a remat mode. ``saved`` is the plan of the
    checkpoint that is resumed; it is followed whatever memory there is now. ``kind`` is that of the device. The plan is
    for a replica's ``share`` of a step. BudgetError: no plan fits the budget.
    """
    largest = share.largest(config.batch_size)
    budget = 2**62 if config.memory_budget is None else sizes.parse_bytes(config.memory_budget, name="memory_budget")
    mode = config.remat or "none"
    planner = Planner(
        make_step=make_step,
        batch=task.train_batches(share=share).at(0),
        batch_size=largest,
        budget=budget,
        modes=MODES if config.remat is None else (mode,),
        around=surroundings(config, task),
        kind=kind,
    )
    size = divide_step(largest, config.micro_batches)

    def with_blocks(blocks: int) -> list[Stage]:
        return resolve_stages(config, task, [top_blocks_phase(config, blocks)])

    if saved is not None:
        if saved["blocks"] is not None:
            stages = with_blocks(saved["blocks"])
        plan = planner.forecast_plan(_pairs(stages), saved["micro_batch_size"], saved["remat"])
        plan = dataclasses.replace(plan, blocks=saved["blocks"], reasons=tuple(saved["reasons"]))
    elif config.memory_budget is None:
        plan = planner.forecast_plan(_pairs(stages), size, mode)
    elif config.plan == "micro_batches":
        plan = planner.plan_micro_batches(_pairs(stages))
    elif not (blocks := count_blocks(task.variables)):
        raise InputError(f"plan=depth: {config.model} has no blocks to choose from")
    else:
        choices = [(number, with_blocks(number)) for number in range(blocks, 0, -1)]
        plan, place = planner.plan_blocks([(number, _pairs(found)) for number, found in choices], size, mode)
        stages = choices[place][1]
        check_stages(config, task, stages)
    return plan, planner.build_step(plan), stages, planner.find_forecasters(plan, _pairs(stages))


def divide_step(examples: int, parts: int | None) -> int | None:
    """The number of examples in a micro-batch where a step of so many is computed in ``parts``; None in one piece."""
    return None if parts in (None, 1) else -(-examples // (parts or 1))


def surroundings(config: FinetuneConfig, task: Task, *, decided: bool = False) -> Surroundings:
    """What the run does besides steps; ``decided`` says that it is known which phases train from caches."""
    source = task.source
    parts = [part for part in (source.train, source.eval, source.test) if part is not None]
    return Surroundings(
        examples=max(len(part) for part in parts[1:]),
        at_least=least_evaluated(config),
        images=unloaded_bytes(parts),
        copies=0 if config.auto_freeze is None else _COPIES * sum(entry.bytes for entry in task.variables),
        may_cache=not decided and config.cache != "off",
        step_examples=config.batch_size,
    )


def least_evaluated(config: FinetuneConfig) -> int:
    """How many examples are evaluated at once at least; a memory budget may not allow for more than a step has."""
    return LEAST_EVALUATED if config.memory_budget is None else 0


def _pairs(stages: Sequence[Stage]) -> list[tuple[Selection, Optimizer]]:
    return [(stage.selection, stage.optimizer) for stage in stages]
