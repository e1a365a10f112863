"""Fine-tuning as one call: what the filter names trains, everything else provably stays as it is."""

from __future__ import annotations

import contextlib
import pathlib

import tensorflow as tf

from engine import part_times
from engine.data.source import find_place
from engine.devices import select_device
from engine.distribution.distribution import Distribution, WorkerLostError
from engine.distribution.start import start_distribution
from engine.distribution.together import is_known_to_all, work_together
from engine.recipes.config import FinetuneConfig
from engine.recipes.execution import Execution
from engine.recipes.listener import Listener, SilentListener
from engine.recipes.prepare import prepare_job
from engine.recipes.run_result import DONE as DONE
from engine.recipes.run_result import FAILED as FAILED
from engine.recipes.run_result import STOPPED as STOPPED
from engine.recipes.run_result import RunResult as RunResult
from engine.runs import existing
from engine.seeds import seed_global_generators


@part_times.collect()
def finetune(config: FinetuneConfig, *, listener: Listener | None = None) -> RunResult:
    """Trains a model as the config says and writes a run directory.

    The same config gives the same bits on the same machine, whether it comes from Python or from flags. For that the
    random generators of Python, NumPy, TensorFlow and Keras are seeded, and with ``config.deterministic`` TensorFlow's
    deterministic ops are enabled, for the whole process.

    With ``config.distribute="multiworker"`` every worker calls it with the same config, and the chief alone writes.

    Args:
        config: what to train, on what, and how.
        listener: hears about the run while it goes on, and may stop it; by default nothing is shown. On a worker beside
            the chief it hears only which worker this is, but may stop the run of all.

    Raises:
        WorkerLostError: a worker does not come, or dies before the run has begun.
        StoppedError: the listener asked to stop before all workers had come.
        DisagreementError: workers have other versions, flags, data or weights than the chief.
        InputError: something that the config names does not exist or does not fit, or another process writes the same
            run. Nothing is written then.
        NoSpaceError: the disk is full (engine.writing). The last checkpoint stands, and a resume goes on from it.

    Example:
        >>> import tempfile
        >>> from engine import FinetuneConfig, finetune
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = FinetuneConfig(train="@head", steps=2, train_examples=64, cache="off", out=f"{folder}/run")
        ...     result = finetune(config)
        >>> result.reason, result.run["steps"], result.run["freeze_proof"]["verified"]
        ('done', 2, True)
    """
    listener = listener or Listener()
    distribution = start_distribution(
        config.distribute,
        device=config.device,
        logical_devices=config.logical_devices,
        timeout=config.worker_timeout,
        say=listener.say,
        stop=listener.should_stop,
    )
    if (line := _introduce(distribution)) is not None:
        listener.say(line)
    try:
        result = _finetune(config, listener if distribution.is_chief else SilentListener(listener), distribution)
    except Exception as error:
        if is_known_to_all(error):
            distribution.close()
        raise
    with contextlib.suppress(WorkerLostError):  # what it had to do is done
        distribution.close()
    return result


def _introduce(distribution: Distribution) -> str | None:
    """What a process says first of the others; None if there are none."""
    replicas = f"{distribution.share.of} replica{'s'[: distribution.share.of - 1]}"
    if distribution.workers > 1 and not distribution.is_chief:
        return f"worker {distribution.worker} of {distribution.workers} ({distribution.addresses[distribution.worker]})"
    if distribution.workers > 1:
        return f"distribution: {distribution.workers} workers, {replicas}; this is worker 0, the chief"
    return None if distribution.kind == "none" else f"distribution: {replicas} in this process"


def _find_folders(config: FinetuneConfig) -> dict[str, pathlib.Path | None]:
    """The folders of data and model that a run reads, as ``existing.check_apart`` takes them."""
    place = find_place(config.data) if config.data.partition(":")[0] in ("folder", "text") else None
    model = pathlib.Path(config.model.partition(":")[2].partition(",")[0])
    named = ":" in config.model and model.is_dir()
    return {"data": place if place is not None and place.is_dir() else None, "model": model if named else None}


def _finetune(config: FinetuneConfig, listener: Listener, distribution: Distribution) -> RunResult:
    with contextlib.ExitStack() as held:

        def hold() -> str:
            if not distribution.is_chief:
                return ""
            out = pathlib.Path(config.out) if config.out else existing.choose_out(config.model)
            if not config.resume:
                existing.check_apart(out, **_find_folders(config))
            holding = existing.hold_run(out, resume=config.resume, say=listener.say)
            if not config.dry_run:
                held.enter_context(holding)
            return str(out)

        device = select_device(config.device, several=config.distribute == "mirrored")
        seed_global_generators(config.seed)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        _, told = work_together(distribution, hold, tell=str)
        job = prepare_job(config, listener, out=pathlib.Path(told[0]), device=device, distribution=distribution)
        listener.show_job(job)
        run = Execution(job, listener)
        listener.show_caching(run.job, run.decisions)
        return run.result({}, DONE, "dry_run", []) if config.dry_run else run.train()
