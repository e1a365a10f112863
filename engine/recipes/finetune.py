"""Fine-tuning as one call: what the filter names trains, everything else provably stays as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine import host, part_times
from engine.data import Part
from engine.data.loading import load_images
from engine.devices import select_device
from engine.feature_cache.decision import CacheDecision
from engine.feature_cache.policy import CachePolicy
from engine.frostline.watch import frozen_output_norms
from engine.recipes.config import FinetuneConfig
from engine.recipes.job import Job
from engine.recipes.listener import Listener
from engine.recipes.memory import forecast_job
from engine.recipes.predictor import Predictor
from engine.recipes.prepare import prepare_job
from engine.recipes.task import Task
from engine.runs import existing
from engine.runs.picture import Panel
from engine.runs.records import list_changing
from engine.runs.run_directory import Keeping, RunDirectory
from engine.runs.saved_flags import FINGERPRINT
from engine.seeds import seed_global_generators
from engine.selection.selection import Selection
from engine.training.checkpoint import RunState
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, LoopError, Outcome, Stage
from engine.training.phases import Evaluation

DONE, FAILED, STOPPED = 0, 1, 3  # exit codes of a run


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What a run came to.

    Attributes:
        out, run: the run directory and the content of its run.json; a dry run makes neither.
        code: 0 if the run is done, 1 if it failed, 3 if it was stopped and can be resumed.
        reason: why it ended: "done", "early_stop", "dry_run", or a sentence.
        task: the data and the model, whose variables are as the last step left them.
        stages: the phases, with their selections.
        evaluations: all evaluations, those before a resume included.
    """

    out: pathlib.Path
    run: Mapping[str, Any]
    code: int
    reason: str
    task: Task
    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def network(self) -> Any:
        """The network that was trained."""
        return self.task.model.network

    @property
    def selection(self) -> Selection:
        """The selection of the last phase."""
        return self.stages[-1].selection

    def predictor(self, *, batch_size: int = 64) -> Predictor:
        """The trained model as a function of images, in batches of at most ``batch_size``.

        It uses the variables as they are now. ``engine.recipes.reopen.open_run(result.out).predictor()`` gives the same
        later, from the run directory.

        Example:
            >>> import tempfile
            >>> from engine import FinetuneConfig, finetune
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     config = FinetuneConfig(train="@head", steps=2, train_examples=64, cache="off", out=f"{folder}/run")
            ...     result = finetune(config)
            >>> predictor = result.predictor()
            >>> images = result.task.source.eval.read(range(3))["image"]
            >>> predictor(images).shape, predictor.class_names[:2]
            ((3, 10), ('T-shirt', 'Trouser'))
        """
        task = self.task
        return Predictor(
            network=self.network,
            normalise=task.normalise,
            image_shape=task.source.image_shape,
            loss=task.loss,
            class_names=task.class_names or task.source.columns or None,
            batch_size=batch_size,
        )


@part_times.collect()
def finetune(config: FinetuneConfig, *, listener: Listener | None = None) -> RunResult:
    """Trains a model as the config says and writes a run directory.

    The same config gives the same bits on the same machine, whether it comes from Python or from flags. For that the
    random generators of Python, NumPy, TensorFlow and Keras are seeded, and with ``config.deterministic`` TensorFlow's
    deterministic ops are enabled, for the whole process.

    Args:
        config: what to train, on what, and how.
        listener: hears about the run while it goes on, and may stop it; by default nothing is shown.

    Raises:
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
    device = select_device(config.device)
    seed_global_generators(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    out = pathlib.Path(config.out) if config.out else existing.choose_out(config.model)
    held = existing.hold_run(out, resume=config.resume, say=listener.say)
    with contextlib.nullcontext() if config.dry_run else held:
        job = prepare_job(config, listener, out=out, device=device)
        listener.show_job(job)
        run = _Run(job, listener)
        listener.show_caching(run.job, run.decisions)
        return run.result({}, DONE, "dry_run", []) if config.dry_run else run.train()


class _Run:
    """A job that is carried out."""

    def __init__(self, job: Job, listener: Listener) -> None:
        config, task = job.config, job.task
        self.job, self.listener = job, listener
        self.evaluator = Evaluator(task.loss_fn, watch=frozen_output_norms)
        self.cache = CachePolicy(
            job.step,
            self.evaluator,
            train=task.train_batches(),
            evaluation=task.eval_batches(batch_size=job.eval_size),
            data=job.settings[FINGERPRINT],
            options=config.cache_options(config.cache_dir or job.out.parent / "feature_cache"),
            say=listener.say,
            stop=listener.should_stop,
        )
        self.cache.shows = listener.show_progress
        self._until_first_step: dict[str, Any] | None = None
        self.decisions: list[CacheDecision] = self.cache.decide(
            job.stages,
            per_epoch=task.per_epoch,
            eval_every=job.eval_every,
            saved=None if job.saved is None else job.saved.cache,
            look=config.dry_run,
        )
        forecasts = forecast_job(job, self.decisions, self.cache)
        self.job = dataclasses.replace(job, plan=dataclasses.replace(job.plan, forecasts=forecasts))

    def train(self) -> RunResult:
        """Runs the loop, and writes the run directory."""
        self._load_images()
        start = self.job.start_state([decision.used for decision in self.decisions])
        directory = self._open_directory(start)
        outcome, code, reason = self._run_loop(directory, start)
        test = self.job.task.source.test
        final = self._test(test) if code == DONE and test is not None else {}
        if code == DONE and any(outcome.state.proven):
            code, reason = FAILED, "frozen variables changed"
        run = directory.finish(
            outcome,
            stages=self.job.stages,
            per_epoch=self.job.task.per_epoch,
            forecasts=self.job.plan.forecasts,
            facts=_facts(self.job),
            cache=self.cache.facts(),
            final=final,
            until_first_step=self._until_first_step,
            code=code,
            reason=reason,
        )
        return self.result(run, code, reason, outcome.state.evaluations)

    def result(self, run: Mapping[str, Any], code: int, reason: str, evaluations: list[Evaluation]) -> RunResult:
        job, past = self.job, tuple(evaluations)
        found: dict[str, Any] = {"run": run, "code": code, "reason": reason, "evaluations": past}
        return RunResult(out=job.out, task=job.task, stages=tuple(job.stages), **found)

    def _load_images(self) -> None:
        """Decodes the photos that the run will read, before anything is written: a DataError names all damaged ones."""
        source, saved = self.job.task.source, self.job.saved
        ended = 0 if saved is None else len(saved.loop.proven)
        parts = [] if source.test is None else [source.test]
        if any(decision.reads_images for decision in self.decisions[ended:]):
            parts += [source.train, source.eval]
        load_images(parts)

    def _open_directory(self, start: RunState) -> RunDirectory:
        job, config = self.job, self.job.config
        ledger = None if job.task.weights is None else job.task.weights.ledger
        directory = RunDirectory(
            job.out,
            step=job.step,
            variables=job.task.variables,
            start=start,
            resumed=job.saved is not None,
            keeping=Keeping(
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every or job.task.per_epoch,
                keep=config.keep,
                keep_best=config.keep_best,
                histograms=config.histograms,
            ),
            monitor=config.monitor,
            flags=config.to_json(),
            decided={"precision": job.computing.precision.used},
            repeating=job.repeating_flags(),
            ledger=None if ledger is None else ledger.to_json(target=config.model),
            changing=list_changing(stage.selection for stage in job.stages),
            data=job.data_facts(),
            say=self.listener.say,
        )
        panels = zip(job.stages, self.decisions, strict=True)
        directory.draw_lines([Panel(stage.phase.name, stage.selection, made.line) for stage, made in panels])
        return directory

    def _run_loop(self, directory: RunDirectory, start: RunState) -> tuple[Outcome, int, str]:
        """How the loop ended, with the exit code and the reason."""
        job, listener = self.job, self.listener
        listener.begin(job.total_steps, start.loop.step)
        loop = Loop(
            step=job.step,
            stages=job.stages,
            batches=self.cache.batches,
            per_epoch=job.task.per_epoch,
            evaluate=self._evaluate,
            eval_every=job.eval_every,
            actions=(self._note_first_step, listener.handle, self.cache, directory.action),
            early_stop=job.config.early_stop,
            monitor=job.config.monitor,
            stop=listener.should_stop,
        )
        try:
            outcome = loop.run(start.loop)
        except LoopError as error:
            return Outcome("failed", start.loop), FAILED, str(error)
        finally:
            listener.end()
        if outcome.reason == "stopped":
            return outcome, STOPPED, f"stopped by {listener.stopped_by}; --resume goes on"
        return outcome, DONE, outcome.reason

    def _note_first_step(self, event: Event) -> None:
        """Keeps where the seconds went until the first step had been done."""
        if event.kind == "step" and self._until_first_step is None:
            self._until_first_step = part_times.finish()

    def _measure(self, stage: Stage, batches: Any, watched: Any = None) -> Any:
        with self.job.step.evaluating(self.job.task.variables):
            return self.evaluator(stage.selection, batches, watched=watched)

    def _evaluate(self, stage: Stage, steps: int) -> Evaluation:
        found = self._measure(stage, *self.cache.evaluation())
        accuracy = found.metrics.get("accuracy")
        return Evaluation(steps, stage.phase.name, found.loss, accuracy, found.frozen_output_norm)

    def _test(self, part: Part) -> dict[str, Any]:
        """Results on the test part, for each class too where it has classes."""
        classes = self.job.task.source.classes
        batches = self.job.task.eval_batches(batch_size=self.job.eval_size, part=part)
        found = self._measure(self.job.stages[-1], batches)
        final: dict[str, Any] = {"test_loss": found.loss, "test_accuracy": found.metrics.get("accuracy")}
        if classes and part.labels.ndim == 1 and "accuracy" in found.per_example:
            hits, chosen = found.per_example["accuracy"], [(name, part.labels == n) for n, name in enumerate(classes)]
            final["test_class_accuracy"] = {name: float(np.mean(hits[at])) for name, at in chosen if at.any()}
        return final


def _facts(job: Job) -> dict[str, Any]:
    """The entries of run.json that are known before the run."""
    config, source = job.config, job.task.source
    return {
        "flags": config.to_json(),
        "versions": host.versions() | {"deterministic": str(config.deterministic)},
        **job.computing.to_json(),
        "model": {
            "name": config.model,
            "parameters": job.task.variables.parameters,
            "notes": list(job.task.model.notes),
        },
        "data": {
            "name": source.name,
            "train_examples": len(source.train),
            "eval_examples": len(source.eval),
            "classes": len(source.classes),
            "class_names": list(source.classes),
            "image_shape": list(source.image_shape),
            "skipped_images": len(source.skipped),
            "skipped": list(source.skipped[:20]),
        },
    }
