"""What a fine-tuning run trains, phase by phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.recipes.config import FinetuneConfig
from engine.recipes.task import Task
from engine.selection import filters, selection
from engine.selection.variables import NamedVariable
from engine.training import schedules
from engine.training.loop import Stage
from engine.training.optimizers import Optimizer, OptimizerError, set_paces
from engine.training.phases import Phase
from engine.training.rates import RateError, Rates, parse_rates


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
    """Phases with their selections, optimizers, schedules and rates; an error names the phase.

    A rule of ``rates`` and ``decays`` need not concern all phases: each stage has those that concern it.
    """
    base = config.make_optimizer()
    if config.decay is not None:
        selection.matching_paths(task.variables, base.decay)
    found = [resolve_stage(config, task, phase, base=base) for phase in phases]
    if config.adapt is not None and not any("adapters" in e.groups for stage in found for e in stage.selection.trained):
        raise filters.FilterError(
            f"adapt={config.adapt!r}: no phase trains an adapter; add @adapters to the filter, as in --train='@adapters @head'"
        )
    if config.plan != "depth":  # else the plan still decides which of them train
        check_stages(config, task, found)
    return found


def resolve_stage(config: FinetuneConfig, task: Task, phase: Phase, *, base: Optimizer | None = None) -> Stage:
    """One phase, without what must hold for all phases together; ``base`` is the optimizer of the config."""
    base = base or config.make_optimizer()
    given = {name: getattr(phase, name) for name in ("weight_decay", "layer_decay", "clip_norm")}
    try:
        selected = selection.select(task.variables, phase.train, statistics=task.model.statistics)
    except filters.FilterError as error:
        raise filters.FilterError(f"phase {phase.name!r}, train='{phase.train}': {error}") from None
    if (losses := config.find_losses(phase)) is not None:
        selected = dataclasses.replace(selected, losses=losses)
    rates, decays = (_rules(config, phase, name) for name in ("rates", "decays"))
    if decays is not None:
        decays = decays.for_variables([entry for entry in selected.trained if base.decay(entry)])
    return Stage(
        phase=phase,
        selection=selected,
        optimizer=dataclasses.replace(base, decays=decays, **{k: v for k, v in given.items() if v is not None}),
        schedule=schedules.parse(phase.schedule or config.schedule),
        learning_rate=phase.learning_rate or config.learning_rate,
        rates=None if rates is None else rates.for_variables(selected.trained),
    )


def check_stages(config: FinetuneConfig, task: Task, stages: Sequence[Stage]) -> None:
    """Checks what depends on the length of phases, or on all phases together.

    Raises ScheduleError if a phase cannot follow its schedule, or the optimizer allows none; OptimizerError if
    ``decay_toward`` has no effect; RateError or FilterError if a
    rule of ``rates`` or ``decays`` decides no variable in any phase, and RateError if rules leave nothing to
    ``layer_decay``.
    """
    for stage in stages:
        try:
            stage.schedule.check(learning_rate=stage.learning_rate, steps=stage.phase.step_count(task.per_epoch))
        except schedules.ScheduleError as error:
            raise schedules.ScheduleError(f"phase {stage.phase.name!r}: {error}") from None
    _check_constant_rate(stages)
    _check_decay(stages)
    layered = [stage for stage in stages if stage.optimizer.layer_decay is not None]
    paces = [pace for s in layered for pace in set_paces(s.selection, s.optimizer, s.rates)]
    if layered and all(pace.rule is not None for pace in paces):
        raise RateError(
            f"layer_decay={layered[0].optimizer.layer_decay:g}: it is not used, because rules of rates decide every "
            "variable that trains; it concerns only variables that take --learning_rate"
        )
    for name in ("rates", "decays"):
        concerned: dict[Rates, dict[str, NamedVariable]] = {}
        for stage in stages:
            if (rules := _rules(config, stage.phase, name)) is not None:
                trained = stage.selection.trained
                entries = trained if name == "rates" else [e for e in trained if stage.optimizer.decay(e)]
                concerned.setdefault(rules, {}).update((entry.path, entry) for entry in entries)
        for rules, found in concerned.items():
            for number, part in enumerate(rules.filters):
                item = filters.Item(number + 1, False, part)
                try:
                    selection.matching_paths(task.variables, filters.Ordered((item,)))
                except filters.FilterError as error:
                    raise filters.FilterError(f"{name}='{rules}': {error}") from None
            rules.check([entry for entry in task.variables if entry.path in found])


def _check_decay(stages: Sequence[Stage]) -> None:
    """Raises OptimizerError if ``decay_toward`` would be used by nothing, since no variable decays in any phase."""
    pulled = [stage for stage in stages if stage.optimizer.decay_toward == "start"]
    if pulled and not any(p.decays for s in pulled for p in set_paces(s.selection, s.optimizer, s.rates)):
        raise OptimizerError(
            "decay_toward=start: no variable decays in any phase; give --weight_decay, or say by --decay which of those that "
            "train do (by default all but @bias @norm @embedding)"
        )


def _check_constant_rate(stages: Sequence[Stage]) -> None:
    """Raises ScheduleError if a learning rate changes although the optimizer would rescale the variables with it."""
    known: dict[str, tuple[float, str]] = {}
    for stage in stages:
        name = stage.phase.name
        if not stage.optimizer.constant_rate:
            continue
        about = f"phase {name!r}: the optimizer computes a variable from its slots and the learning rate"
        if stage.schedule.kind != "constant" or stage.schedule.warmup:
            raise schedules.ScheduleError(
                f"{about}, so schedule={stage.schedule} would rescale what it has learned; give --schedule=constant"
            )
        paces = set_paces(stage.selection, stage.optimizer, stage.rates)
        now = {}
        for entry, pace in zip(stage.selection.trained, paces, strict=True):
            rule = None if stage.rates is None or pace.rule is None else stage.rates.values[pace.rule]
            now[entry.path] = rate = stage.learning_rate * pace.factor if rule is None else rule, name
            before, where = known.get(entry.path, rate)
            if before != rate[0]:
                raise schedules.ScheduleError(
                    f"{about}, so a rate of {rate[0]:g} after {before:g} (phase {where!r}) would rescale {entry.path}; give "
                    "both phases the same learning rate, or train in one phase (--train=FILTER)"
                )
        known = now


def _rules(config: FinetuneConfig, phase: Phase, name: str) -> Rates | None:
    """The rules of a phase, or else of the run, for what ``name`` says."""
    text = getattr(phase, name) or getattr(config, name)
    return None if text is None else parse_rates(text, name=name)
