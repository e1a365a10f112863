"""How finetune's steps are computed: as the flags say, or as --memory_budget allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from engine import sizes
from engine.errors import InputError
from engine.feature_cache.policy import CacheDecision
from engine.frostline.line import FrostLine
from engine.memory.planner import Plan, Planner
from engine.training.loop import Stage
from engine.training.remat import MODES, Mode
from engine.training.step import TrainStep

F = flags.FLAGS


def make(
    make_step: Callable[[int | None, Mode], TrainStep],
    stages: list[Stage],
    batch: Mapping[str, Any],
    *,
    saved: Mapping[str, Any] | None,
    blocks: int,
    with_blocks: Callable[[int], list[Stage]],
) -> tuple[Plan, TrainStep, list[Stage]]:
    """The plan, the step that trains by it, and the phases, which --plan=depth decides.

    Args:
        make_step: (micro_batch_size, remat) -> the step that would train.
        stages: the phases that the flags ask for.
        batch: any batch of a step's size.
        saved: the plan of the checkpoint that is resumed: done again, whatever memory there is now.
        blocks: how many the model has.
        with_blocks: number of top blocks -> the phases that train them and the head.

    Raises:
        BudgetError: nothing fits.
    """
    planner = Planner(
        make_step=make_step,
        batch=batch,
        batch_size=F.batch_size,
        budget=2**62 if F.memory_budget is None else sizes.parse_bytes(F.memory_budget, name="memory_budget"),
        modes=MODES if F.remat is None else (F.remat,),
    )
    size = None if F.micro_batches in (None, 1) else -(-F.batch_size // F.micro_batches)
    mode: Mode = F.remat or "none"
    if saved is not None:
        if saved["blocks"] is not None:
            stages = with_blocks(saved["blocks"])
        plan = planner.as_asked(_asked(stages), saved["micro_batch_size"], saved["remat"])
        plan = dataclasses.replace(plan, blocks=saved["blocks"], reasons=tuple(saved["reasons"]))
    elif F.memory_budget is None:
        plan = planner.as_asked(_asked(stages), size, mode)
    elif F.plan == "micro_batches":
        plan = planner.micro_batches(_asked(stages))
    elif not blocks:
        raise InputError(f"plan=depth: {F.model} has no blocks to choose from")
    else:
        choices = [(number, with_blocks(number)) for number in range(blocks, 0, -1)]
        plan, place = planner.blocks([(number, _asked(found)) for number, found in choices], size, mode)
        stages = choices[place][1]
    return plan, planner.step(plan), stages


def _asked(stages: Sequence[Stage]) -> list[Any]:
    return [(stage.selection, stage.optimizer) for stage in stages]


def describe(plan: Plan, stages: Sequence[Stage], caveats: Sequence[str]) -> None:
    """Prints how steps are computed, why, and what memory that is expected to take."""
    if plan.micro_batch_size is not None:
        count = -(-F.batch_size // plan.micro_batch_size)
        print(f"step:  {F.batch_size} examples in {count} micro-batches of {plan.micro_batch_size}, remat {plan.remat}")
    elif plan.remat != "none":
        print(f"step:  {F.batch_size} examples in one piece, remat {plan.remat}")
    if plan.blocks is not None:
        print(f"depth:   the top {plan.blocks} blocks and the head train")
    for reason in plan.reasons:
        print(f"         {reason}")
    for caveat in caveats:
        print(f"         {caveat}")
    for stage, found in zip(stages, plan.forecasts, strict=True):
        print(f"memory:  phase {stage.phase.name}: about {found.text()}")


def describe_cache(stages: Sequence[Stage], choices: Sequence[CacheDecision]) -> None:
    """Prints where each phase is cut, and whether it trains from kept features."""
    for stage, choice in zip(stages, choices, strict=True):
        if isinstance(choice.line, FrostLine):
            print(f"line:    phase {stage.phase.name}: {choice.line.describe()}")
        size = f" ({sizes.format_bytes(choice.bytes)} on disk)" if choice.used else ""
        print(f"cache:   phase {stage.phase.name}: {'used' if choice.used else 'not used'}{size}; {choice.reason}")
