"""Prepares a fine-tuning job: opens, builds, resolves, loads and plans everything before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from engine import porting
from engine.data.features import order_columns
from engine.devices import Device
from engine.distribution.distribution import ALONE, Distribution
from engine.distribution.shares import Share
from engine.distribution.together import work_together
from engine.memory.forecast import Forecaster
from engine.memory.planner import Plan
from engine.recipes.agreement import agree_on_job, agree_on_start, agree_on_values
from engine.recipes.computing import Computing, decide_computing, read_choice
from engine.recipes.config import FREE, FinetuneConfig
from engine.recipes.job import REPLICAS, Job
from engine.recipes.listener import Listener
from engine.recipes.outputs import list_class_weights
from engine.recipes.plan import choose_plan
from engine.recipes.stages import requested_phases, resolve_stages
from engine.recipes.task import Task
from engine.runs import run_directory
from engine.runs.saved_flags import CLASS_WEIGHTS, FINGERPRINT, SAMPLE_WEIGHTS, read_data_facts, read_flags
from engine.seeds import seed_global_generators
from engine.training import checkpoint
from engine.training.checkpoint import Checkpoint, RunState
from engine.training.loop import Stage
from engine.training.loss_names import list_figures
from engine.training.metric import name_figures
from engine.training.metric_names import check_monitored
from engine.training.microbatch import list_caveats
from engine.training.optimizers import Optimizer
from engine.training.precision import AUTO
from engine.training.remat import Mode
from engine.training.step import TrainStep

Chosen = TypeVar("Chosen", bound=tuple[Any, ...])
_FEW = 4  # examples in a micro-batch of which a memory budget has not yet decided the size


def prepare_job(
    config: FinetuneConfig, listener: Listener, *, out: pathlib.Path, device: Device, distribution: Distribution = ALONE
) -> Job:
    """Decides how to compute on a device, opens the data, builds the model, resolves the phases, loads or restores weights, and plans the steps of a run.

    What can be refused is refused as early as possible: a folder that holds a run and contradictions to the run that is
    resumed before data are opened, filters before weights are read, and all of that before photos are decoded. Nothing is
    written. With several workers, each does all of this, the chief decides what has to be measured or fitted to memory,
    and all of them compare what they have.

    Raises:
        InputError: something does not exist, does not fit, or contradicts the run that is resumed.
        DisagreementError: the workers differ.
    """
    settings = {name: value for name, value in config.to_json().items() if name not in FREE}

    def find() -> tuple[Checkpoint, RunState] | None:
        given: dict[str, Any] = {"resume": config.resume, "warn": listener.say, "writes": distribution.is_chief}
        found = run_directory.find_resumable(out, **given)
        if found is not None:
            run_directory.check_settings(found, settings, warn=listener.say)
        return found

    found, _ = work_together(distribution, find)
    saved = None if found is None else found[1]
    agree_on_start(distribution, config, None if found is None else found[0])
    computing = _decide_computing(config, device, distribution, saved, listener)
    if computing.precision.step_seconds is not None:
        seed_global_generators(config.seed)  # as if no step had been timed
    (task, stages, make_step), _ = work_together(
        distribution, lambda: _build(config, computing, distribution, settings, found, listener, out=out)
    )

    if saved is not None and (note := _compare_replicas(config, distribution, saved, stages, out=out)) is not None:
        listener.say(note)

    def choose(decided: Mapping[str, Any] | None) -> tuple[Plan, TrainStep, list[Stage], list[Forecaster]]:
        given: dict[str, Any] = {"make_step": make_step, "saved": decided, "kind": device.kind}
        return choose_plan(config, task, stages, **given, share=distribution.share)

    plan, step, stages, forecasters = _choose_together(config, distribution, saved, choose)
    data = settings[FINGERPRINT], settings.get(CLASS_WEIGHTS), settings.get(SAMPLE_WEIGHTS)
    agree_on_job(distribution, computing, task.source, data, stages, plan.to_json())

    def restore() -> None:
        if found is not None:
            step.restore(task.variables, found[1].step, found[0].arrays)
        elif task.weights is not None and config.slots == "continue":
            _continue_slots(config, step, stages[0], task, listener)

    work_together(distribution, restore)
    agree_on_values(distribution, task.variables, step)
    if found is None and (note := stages[0].optimizer.note):
        listener.say(f"note:    {note}")
    return Job(
        config=config,
        distribution=distribution,
        computing=computing,
        task=task,
        out=out,
        settings=settings,
        stages=stages,
        plan=plan,
        forecasters=forecasters,
        step=step,
        saved=saved,
    )


def _decide_computing(
    config: FinetuneConfig, device: Device, distribution: Distribution, saved: RunState | None, listener: Listener
) -> Computing:
    """How the run computes, as the chief decides it: others might measure otherwise."""

    def decide() -> Computing | None:
        if not distribution.is_chief:
            return None
        return decide_computing(
            config,
            device,
            saved=None if saved is None else saved.computing,
            make_step=functools.partial(_make_trial, config, distribution.share),
            say=listener.say,
        )

    computing, told = work_together(
        distribution, decide, tell=lambda made: None if made is None else made.precision.to_json()
    )
    if computing is None:
        given: dict[str, Any] = {"jit_compile": config.jit_compile, "measured": config.precision == AUTO}
        computing = Computing(device=device, precision=read_choice(told[0]), **given)
    for line in computing.lines():
        listener.say(line)
    return computing


def _build(
    config: FinetuneConfig,
    computing: Computing,
    distribution: Distribution,
    settings: dict[str, Any],
    found: tuple[Checkpoint, RunState] | None,
    listener: Listener,
    *,
    out: pathlib.Path,
) -> tuple[Task, list[Stage], Callable[[int | None, Mode], TrainStep]]:
    """The data and the model with its weights, the phases, and what makes their steps; ``settings`` get the data's digest."""
    task = _open_task(config, computing.precision.used, listener)
    if found is not None and (facts := read_data_facts(out)) is not None:
        source = order_columns(task.source, facts.features, say=listener.say)
        task = dataclasses.replace(task, source=source)
    own = [name.removeprefix("eval_") for name in list_figures(config.losses())]
    check_monitored(config.monitor, (*own, *name_figures(task.metrics)), accuracy=task.has_accuracy)
    if config.adapt is not None:  # they belong to the weights, and phases name them
        task = task.with_adapters() if found is not None else _load(config, task, listener)
        for line in task.model.adapters.lines:
            listener.say(f"adapt:   {line}")
    stages = resolve_stages(config, task, requested_phases(config, task))
    make_step = functools.partial(_make_step, config, task, stages[0].optimizer, computing, distribution)
    make_step(None, config.remat or "none")  # its complaints come before the weights are read
    settings[FINGERPRINT] = task.source.fingerprint()
    if weights := list_class_weights(task.outputs):  # those of a file may have changed
        settings[CLASS_WEIGHTS] = {name: list(values) for name, values in weights.items()}
    if task.sample_weights is not None:
        settings[SAMPLE_WEIGHTS] = hashlib.sha256(task.sample_weights.tobytes()).hexdigest()
    if found is not None:
        run_directory.check_settings(found, settings, warn=listener.say)
        checkpoint.restore(found[0], task.variables)
        listener.say(f"weights: {found[0].path}, {found[1].loop.step} steps trained")
        return task.with_images(found[1].images), stages, make_step  # as the weights expect them
    task = task if config.adapt is not None else _load(config, task, listener)
    if config.resume:
        listener.say(f"resume: {out} does not hold a checkpoint; starting at step 0")
    return task, stages, make_step


def _compare_replicas(
    config: FinetuneConfig, distribution: Distribution, saved: RunState, stages: list[Stage], *, out: pathlib.Path
) -> str | None:
    """What differs because the run that is resumed had other replicas, or shared moments among them; None if nothing does."""
    before, now = saved.computing.get(REPLICAS, 1), distribution.share.of
    shared, shares = bool((read_flags(out) or {}).get("sync_batch_norm")), config.sync_batch_norm
    if before == now and (now == 1 or shared == shares):
        return None
    whole = (before == 1 or shared) and (now == 1 or shares)  # the moments of the whole step, before and now
    given: dict[str, Any] = {"part": "replica's share", "synchronised": whole}
    more = dict.fromkeys(text for stage in stages for text in list_caveats(stage.selection, **given))
    if before == now and not more:
        return None
    what = f"sync_batch_norm={shares} now, {shared} before"
    if before != now:
        what = f"{now} replica{'s'[: now - 1]} now, {before} before"
    differs = "steps may differ, and not only in their last bits" if more else "last bits of the steps may differ"
    return "; ".join([f"resume: {what}: the {differs}", *more])


def _load(config: FinetuneConfig, task: Task, listener: Listener) -> Task:
    """The task with its first weights."""
    task = task.with_weights(config.weights, rules=config.rules, force_base=config.force_base)
    assert task.weights is not None
    listener.say(f"weights: {task.weights.text}")
    return task


def _choose_together(
    config: FinetuneConfig,
    distribution: Distribution,
    saved: RunState | None,
    choose: Callable[[Mapping[str, Any] | None], Chosen],
) -> Chosen:
    """What ``choose`` makes of the plan that is resumed. What would fit a memory budget, the chief decides for all."""
    if saved is not None or config.memory_budget is None or distribution.workers == 1:
        return work_together(distribution, lambda: choose(None if saved is None else saved.plan))[0]
    own, told = work_together(
        distribution,
        lambda: choose(None) if distribution.is_chief else None,
        tell=lambda made: None if made is None else made[0].to_json(),
    )
    return work_together(distribution, lambda: choose(told[0]) if own is None else own)[0]


def _open_task(config: FinetuneConfig, precision: str, listener: Listener) -> Task:
    fields = (
        "data model head loss image_size seed eval_fraction train_examples bad_images image_cache parts masks max_tokens "
        "label_smoothing class_weights sample_weights metrics batch_size augment adapt"
    )
    given = {name: getattr(config, name) for name in fields.split()}
    given |= {"graph": config.graph_options(), "image_options": config.image_options()}
    return Task.open(weights=None, precision=precision, say=listener.say, **given)


def _make_step(
    config: FinetuneConfig,
    task: Task,
    optimizer: Optimizer,
    computing: Computing,
    distribution: Distribution,
    micro_batch_size: int | None,
    remat: Mode,
) -> TrainStep:
    return TrainStep(
        task.loss_fn,
        optimizer,
        seed=config.seed,
        micro_batch_size=micro_batch_size,
        remat=remat,
        loss_scale=task.loss_scale(),
        ema=config.ema,
        nonfinite=config.nonfinite,
        jit_compile=computing.jit_compile,
        strategy=distribution.strategy,
        **({"sync_batch_norm": True} if config.sync_batch_norm else {}),
    )


def _make_trial(config: FinetuneConfig, share: Share, precision: str) -> Callable[[], Any]:
    """A step of the longest phase with a model of its own and initial weights, to be timed with this precision.

    Its batch is a micro-batch of the run; with a memory budget, which decides their size, a small one.
    """
    task = _open_task(config, precision, Listener()).with_adapters()
    stage = max(
        resolve_stages(config, task, requested_phases(config, task)),
        key=lambda stage: stage.phase.step_count(task.per_epoch),
    )
    size = -(-share.largest(config.batch_size) // (config.micro_batches or 1))
    if config.memory_budget is not None:
        size = min(size, _FEW)
    step = TrainStep(
        task.loss_fn,
        stage.optimizer,
        remat=config.remat or "none",
        nonfinite="skip",
        give_up=100,
        jit_compile=config.jit_compile,
    )
    batch = dataclasses.replace(task, batch_size=size).train_batches().at(0)
    return lambda: float(step(stage.selection, batch, learning_rate=1e-6).loss)


def _continue_slots(config: FinetuneConfig, step: TrainStep, stage: Stage, task: Task, listener: Listener) -> None:
    """Takes over the optimizer slots that the weights file holds for the first phase, and says what it did."""
    weights, model = task.weights, task.model
    if weights is None or (weights.ledger is None and model.own_slots is None):
        return
    if weights.deltas:
        listener.say("slots:   fresh; those of a base belong to values that a delta has changed")
        return
    with contextlib.ExitStack() as opened:
        if weights.ledger is None:
            own = None if model.own_slots is None else model.own_slots(config.weights)
            file = None if own is None else opened.enter_context(own)
        elif config.weights == "auto":
            return
        else:
            file = opened.enter_context(porting.open_tensors(config.weights))
            file = file if weights.classes is None else weights.classes.view(file)
        said = None if file is None else porting.continue_from(file, step.slots, stage.selection, stage.optimizer)
    if said is not None:
        listener.say(f"slots:   {said}")
    if said is not None and step.slots.t and (given := stage.optimizer.describe()):
        listener.say(f"         it goes on with {given}, which slots do not tell")
