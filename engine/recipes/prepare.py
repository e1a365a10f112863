"""Prepares a fine-tuning job: opens, builds, resolves, loads and plans everything before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

from engine import porting
from engine.devices import Device
from engine.recipes.computing import Computing, decide_computing
from engine.recipes.config import FREE, FinetuneConfig
from engine.recipes.job import Job
from engine.recipes.listener import Listener
from engine.recipes.plan import choose_plan
from engine.recipes.stages import requested_phases, resolve_stages
from engine.recipes.task import Task
from engine.runs import run_directory
from engine.runs.saved_flags import FINGERPRINT
from engine.seeds import seed_global_generators
from engine.training import checkpoint
from engine.training.loop import Stage
from engine.training.optimizers import Optimizer
from engine.training.remat import Mode
from engine.training.step import TrainStep

_FEW = 4  # examples in a micro-batch of which a memory budget has not yet decided the size


def prepare_job(config: FinetuneConfig, listener: Listener, *, out: pathlib.Path, device: Device) -> Job:
    """Decides how to compute on a device, opens the data, builds the model, resolves the phases, loads or restores weights, and plans the steps of a run.

    What can be refused is refused as early as possible: a folder that holds a run and contradictions to the run that is
    resumed before data are opened, filters before weights are read, and all of that before photos are decoded. Nothing is
    written. Raises InputError if something does not exist, does not fit, or contradicts the run that is resumed.
    """
    found = run_directory.find_resumable(out, resume=config.resume, warn=listener.say)
    settings = {name: value for name, value in config.to_json().items() if name not in FREE}
    if found is not None:
        run_directory.check_settings(found, settings, warn=listener.say)
    computing = decide_computing(
        config,
        device,
        saved=None if found is None else found[1].computing,
        make_step=functools.partial(_make_trial, config),
        say=listener.say,
    )
    for line in computing.lines():
        listener.say(line)
    if computing.precision.step_seconds is not None:
        seed_global_generators(config.seed)  # as if no step had been timed
    task = _open_task(config, computing.precision.used, listener)
    stages = resolve_stages(config, task, requested_phases(config, task))
    make_step = functools.partial(_make_step, config, task, stages[0].optimizer, computing)
    make_step(None, config.remat or "none")  # its complaints come before the weights are read
    settings[FINGERPRINT] = task.source.fingerprint()
    if found is not None:
        run_directory.check_settings(found, settings, warn=listener.say)
    saved = None if found is None else found[1]
    if found is not None:
        checkpoint.restore(found[0], task.variables)
        listener.say(f"weights: {found[0].path}, {found[1].loop.step} steps trained")
        task = task.with_images(found[1].images)  # as the weights expect them
    else:
        task = task.with_weights(config.weights, rules=config.rules, force_base=config.force_base)
        assert task.weights is not None
        listener.say(f"weights: {task.weights.text}")
        if config.resume:
            listener.say(f"resume: {out} does not hold a checkpoint; starting at step 0")
    plan, step, stages, forecasters = choose_plan(
        config,
        task,
        stages,
        make_step=make_step,
        saved=None if saved is None else saved.plan,
        kind=device.kind,
    )
    if found is not None:
        step.restore(task.variables, found[1].step, found[0].arrays)
    elif task.weights is not None and config.slots == "continue":
        _continue_slots(config, step, stages[0], task, listener)
    if found is None and (note := stages[0].optimizer.note):
        listener.say(f"note:    {note}")
    return Job(
        config=config,
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


def _open_task(config: FinetuneConfig, precision: str, listener: Listener) -> Task:
    fields = (
        "data model head loss image_size seed eval_fraction train_examples bad_images image_cache label_smoothing "
        "batch_size augment"
    )
    given = {name: getattr(config, name) for name in fields.split()}
    return Task.open(weights=None, precision=precision, graph=config.graph_options(), say=listener.say, **given)


def _make_step(
    config: FinetuneConfig,
    task: Task,
    optimizer: Optimizer,
    computing: Computing,
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
    )


def _make_trial(config: FinetuneConfig, precision: str) -> Callable[[], Any]:
    """A step of the longest phase with a model of its own and initial weights, to be timed with this precision.

    Its batch is a micro-batch of the run; with a memory budget, which decides their size, a small one.
    """
    task = _open_task(config, precision, Listener())
    stage = max(
        resolve_stages(config, task, requested_phases(config, task)),
        key=lambda stage: stage.phase.step_count(task.per_epoch),
    )
    size = -(-config.batch_size // (config.micro_batches or 1))
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
