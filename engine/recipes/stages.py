"""What a fine-tuning run trains, phase by phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.recipes.config import FinetuneConfig
from engine.recipes.task import Task
from engine.selection import filters, selection
from engine.training import schedules
from engine.training.loop import Stage
from engine.training.phases import Phase


def requested_phases(config: FinetuneConfig, task: Task) -> list[Phase]:
    """The phases of the config, or the two default phases: first the head, then the upper part with it."""
    if found := config.phases():
        return found
    steps = config.steps or max(1, round((config.epochs or 8.0) * task.per_epoch))
    head = max(1, steps // 4)
    found = [Phase(name="head", train="@head", steps=head, learning_rate=4 * config.learning_rate)]
    if steps > head:
        train = f"{task.model.upper} @head".strip()  # in this order: upper layers may hold the head
        found.append(Phase(name="upper", train=train, steps=steps - head, learning_rate=2 * config.learning_rate))
    return found


def top_blocks_phase(config: FinetuneConfig, blocks: int) -> Phase:
    """The phase that trains the top blocks and the head, for plan "depth"."""
    epochs = None if config.steps else config.epochs or 8.0
    return Phase(name=f"top_{blocks}", train=f"@blocks[-{blocks}:] @head", steps=config.steps, epochs=epochs)


def resolve_stages(config: FinetuneConfig, task: Task, phases: Sequence[Phase]) -> list[Stage]:
    """Phases with their selections, optimizers and schedules; a FilterError names the phase."""
    base = config.make_optimizer()
    if config.decay is not None:
        selection.matching_paths(task.variables, base.decay)
    found = []
    for phase in phases:
        given = {name: getattr(phase, name) for name in ("weight_decay", "layer_decay", "clip_norm")}
        try:
            selected = selection.select(task.variables, phase.train, statistics=task.model.statistics)
        except filters.FilterError as error:
            raise filters.FilterError(f"phase {phase.name!r}, train='{phase.train}': {error}") from None
        found.append(
            Stage(
                phase=phase,
                selection=selected,
                optimizer=dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None}),
                schedule=schedules.parse(phase.schedule or config.schedule),
                learning_rate=phase.learning_rate or config.learning_rate,
            )
        )
    return found
