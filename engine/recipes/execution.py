"""A job that is carried out: the loop, what is written beside it, and the end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engine import host, part_times
from engine.data import Part
from engine.data.loading import load_images
from engine.data.tasks import has_label
from engine.distribution.distribution import WorkerLostError
from engine.distribution.failures import explained
from engine.distribution.reduction import Communication
from engine.distribution.together import work_together
from engine.feature_cache.decision import CacheDecision
from engine.feature_cache.policy import CachePolicy
from engine.frostline.watch import frozen_output_norms
from engine.recipes.agreement import check_drift
from engine.recipes.auto_freezing import AutoFreezing
from engine.recipes.detections import draw_some as draw_boxes
from engine.recipes.encoders import find_kind
from engine.recipes.job import Job
from engine.recipes.listener import Listener
from engine.recipes.memory import forecast_job
from engine.recipes.outputs import list_class_weights
from engine.recipes.pixel_evaluation import draw_some, predict_some
from engine.recipes.run_result import DONE, FAILED, STOPPED, RunResult
from engine.recipes.task import Task
from engine.runs.picture import Panel
from engine.runs.records import list_changing
from engine.runs.run_directory import RunDirectory
from engine.runs.saved_flags import FINGERPRINT
from engine.training.checkpoint import RunState
from engine.training.evaluation import Evaluator
from engine.training.loop import Event, Loop, LoopError, Outcome, Stage
from engine.training.loss_names import CENTERS
from engine.training.phases import Evaluation


class Execution:
    """A job that is carried out."""

    def __init__(self, job: Job, listener: Listener) -> None:
        config, task = job.config, job.task
        self.job, self.listener = job, listener
        given: dict[str, Any] = {"distribution": job.distribution, "replicas": job.step.replicas}
        self.evaluator = Evaluator(task.loss_fn, watch=frozen_output_norms, **given)
        self.cache = CachePolicy(
            job.step,
            self.evaluator,
            train=job.train_batches(),
            evaluation=task.eval_batches(batch_size=job.eval_size),
            data=job.settings[FINGERPRINT],
            options=config.cache_options(config.cache_dir or job.out.parent / "feature_cache"),
            distribution=job.distribution,
            rows_at_once=job.rows_at_once,
            say=listener.say,
            stop=listener.should_stop,
        )
        self.cache.shows = listener.show_progress
        self._until_first_step: dict[str, Any] | None = None
        self._first_batch: Mapping[str, Any] | None = None
        self._sent: dict[str, Communication] = {}  # by phase
        self._lost = False  # whether another worker was
        self.decisions: list[CacheDecision] = self.cache.decide(
            job.stages,
            per_epoch=task.per_epoch,
            eval_every=job.eval_every,
            saved=None if job.saved is None else job.saved.cache,
            look=config.dry_run,
        )
        self.freezing = self._prepare_freezing()
        forecasts = forecast_job(job, self.decisions, self.cache)
        self.job = dataclasses.replace(job, plan=dataclasses.replace(job.plan, forecasts=forecasts))

    def _prepare_freezing(self) -> AutoFreezing | None:
        """What moves the frost line while the run trains, if anything does."""
        job = self.job
        if job.config.auto_freeze is None:
            return None
        given: dict[str, Any] = {"decisions": self.decisions, "eval_every": job.eval_every}
        given |= {"distribution": job.distribution, "say": self.listener.say}
        if job.saved is not None:
            given["state"] = job.saved.auto_freeze
        freezing = AutoFreezing(job.config, job.task, job.stages, self.cache, **given)
        for line in freezing.describe():
            self.listener.say(line)
        return freezing

    def train(self) -> RunResult:
        """Runs the loop, and writes the run directory."""
        job, distribution = self.job, self.job.distribution
        start = job.start_state([decision.used for decision in self.decisions])
        if self.freezing is not None:
            start = dataclasses.replace(start, auto_freeze=self.freezing.state)
            if job.saved is not None:
                self.freezing.resume()
        work_together(distribution, self._load_images)
        directory, _ = work_together(
            distribution, lambda: self._open_directory(start) if distribution.is_chief else None
        )
        outcome, code, reason = self._run_loop(directory, start)
        final: dict[str, Any] = {}
        if code == DONE and job.task.source.test is not None:
            try:
                with explained(distribution):
                    final = self._test(job.task.source.test)
            except WorkerLostError as error:
                self._lost, code, reason = True, FAILED, str(error)
        if code == DONE and any(outcome.state.proven):
            code, reason = FAILED, "frozen variables changed"

        def finish() -> dict[str, Any] | None:
            if directory is None:
                return None
            facts = _facts(job) | {"distribution": self._distribution_facts()}
            if self.freezing is not None:
                facts["auto_freeze"] = self.freezing.to_json()
                if self.freezing.state.moves:
                    self._draw_lines(directory)
            try:
                self._draw_predictions(code)
            except Exception as error:  # a picture must not cost a trained run its record
                self.listener.say(f"predictions.png was not drawn: {type(error).__name__}: {error}")
            return directory.finish(
                outcome,
                stages=job.stages,
                per_epoch=job.task.per_epoch,
                forecasts=job.plan.forecasts,
                facts=facts,
                cache=self.cache.facts(),
                final=final,
                until_first_step=self._until_first_step,
                code=code,
                reason=reason,
            )

        if self._lost:
            run = finish() or {"steps": outcome.state.step, "exit": {"code": code, "reason": reason}}
        else:
            own, told = work_together(distribution, finish, tell=lambda made: made)
            run = own or told[0]
        return self.result(run, code, reason, outcome.state.evaluations)

    def _draw_predictions(self, code: int) -> None:
        """Draws some evaluation examples where there is a class for each pixel, or boxes, once the run is done."""
        task = self.job.task
        if code != DONE or not (task.source.eval.dense or task.kind == CENTERS):
            return
        result = self.result({}, code, "", [])
        if task.kind == CENTERS:
            with self.job.step.evaluating(task.variables):
                draw_boxes(self.job.out, result.predictor(), task.source.eval, self.listener.say)
            return
        with self.job.step.evaluating(task.variables):
            drawn = predict_some(result.predictor(), task.source.eval)
        if drawn is not None:
            draw_some(self.job.out, drawn, task.source.classes, self.listener.say)

    def _distribution_facts(self) -> dict[str, Any]:
        """The entry ``distribution`` of run.json."""
        distribution = self.job.distribution
        return {
            "kind": distribution.kind,
            "workers": distribution.workers,
            "replicas": distribution.share.of,
            "phases": [
                {"name": name, "bytes_per_step": sent.bytes, "collectives_per_step": sent.collectives}
                for name, sent in self._sent.items()
            ],
        }

    def result(self, run: Mapping[str, Any], code: int, reason: str, evaluations: list[Evaluation]) -> RunResult:
        job, past = self.job, tuple(evaluations)
        found: dict[str, Any] = {"run": run, "code": code, "reason": reason, "evaluations": past}
        found["distribution"] = job.distribution
        return RunResult(out=job.out, task=job.task, stages=tuple(job.stages), **found)

    def _load_images(self) -> None:
        """Decodes the photos that the run will read, before anything is written: a DataError names all damaged ones.

        A worker decodes those of its share; where steps see images, all training images, since shares change each epoch.
        """
        source, saved, size = self.job.task.source, self.job.saved, self.job.eval_size
        ended = 0 if saved is None else len(saved.loop.proven)
        reading = [decision for decision in self.decisions[ended:] if decision.reads_images]
        parts = [] if source.test is None else [self._own_part(source.test, size)]
        if reading:
            uncached = any(not decision.used for decision in reading)
            parts += [source.train if uncached else self._own_part(source.train, 1), self._own_part(source.eval, size)]
        load_images(parts)

    def _own_part(self, part: Part, size: int) -> Part:
        """What this worker has of a part that is divided in batches of this size."""
        if self.job.distribution.workers == 1:
            return part
        first, stop = self.job.distribution.share.bounds(-(-len(part) // size))
        return part.take(np.arange(first * size, min(stop * size, len(part))))

    def _open_directory(self, start: RunState) -> RunDirectory:
        job, config = self.job, self.job.config
        ledger = None if job.task.weights is None else job.task.weights.ledger
        directory = RunDirectory(
            job.out,
            step=job.step,
            variables=job.task.variables,
            start=start,
            resumed=job.saved is not None,
            keeping=job.keeping(),
            monitor=config.monitor,
            flags=config.to_json(),
            decided={"precision": job.computing.precision.used},
            repeating=job.repeating_flags(),
            ledger=None if ledger is None else ledger.to_json(target=config.model),
            changing=list_changing(stage.selection for stage in job.stages),
            data=job.data_facts(),
            say=self.listener.say,
        )
        self._draw_lines(directory)
        return directory

    def _draw_lines(self, directory: RunDirectory) -> None:
        panels = zip(self.job.stages, self.decisions, strict=True)
        directory.draw_lines([Panel(stage.phase.name, stage.selection, made.line) for stage, made in panels])

    def _run_loop(self, directory: RunDirectory | None, start: RunState) -> tuple[Outcome, int, str]:
        """How the loop ended, with the exit code and the reason."""
        job, listener = self.job, self.listener
        keeping, freezing = job.keeping(), [self.freezing] if self.freezing is not None else []

        def write(event: Event) -> None:
            if keeping.is_due(event):
                check_drift(job.distribution, job.task.variables, job.step)
                work_together(job.distribution, lambda: None if directory is None else directory.action(event))
            elif directory is not None:
                directory.action(event)

        listener.begin(job.total_steps, start.loop.step)
        loop = Loop(
            step=job.step,
            stages=job.stages,
            batches=self._batches,
            per_epoch=job.task.per_epoch,
            evaluate=self._evaluate,
            eval_every=job.eval_every,
            actions=(*freezing, self._note_step, listener.handle, self.cache, write),
            early_stop=job.config.early_stop,
            monitor=job.config.monitor,
            stop=listener.should_stop,
            distribution=job.distribution,
        )
        try:
            with explained(job.distribution):
                outcome = loop.run(start.loop)
        except (LoopError, WorkerLostError) as error:
            self._lost = isinstance(error, WorkerLostError)
            return Outcome("failed", start.loop), FAILED, str(error)
        finally:
            listener.end()
        if outcome.reason == "stopped":
            return outcome, STOPPED, f"stopped by {self._find_stopping()}; --resume goes on"
        return outcome, DONE, outcome.reason

    def _find_stopping(self) -> str:
        """Who stopped the run: a signal, or the listener; with several workers, on which of them."""
        distribution = self.job.distribution
        wishes = distribution.exchange(str(self.listener.stopped_by) if self.listener.should_stop() else None)
        worker = next((worker for worker, wish in enumerate(wishes) if wish is not None), None)
        if worker is None:  # a listener that wanted it only once
            return str(self.listener.stopped_by)
        return f"{wishes[worker]}{f' on {distribution.name(worker)}' if distribution.workers > 1 else ''}"

    def _batches(self, stage: Stage, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
        """The batches of the loop, of which the first is kept until it has been trained."""
        with contextlib.closing(self.cache.batches(stage, start, stop)) as batches:  # type: ignore[type-var]
            for batch in batches:
                if self.job.step.replicas is not None and stage.phase.name not in self._sent:
                    self._first_batch = batch
                yield batch

    def _note_step(self, event: Event) -> None:
        """Keeps where the seconds went until the first step had been done, and what replicas exchange in each phase's."""
        if event.kind != "step":
            return
        if self._until_first_step is None:
            self._until_first_step = part_times.finish()
        if self._first_batch is not None:
            stage = event.stage
            given: dict[str, Any] = {"optimizer": stage.optimizer, "rates": stage.rates}
            self._sent[stage.phase.name] = self.job.step.communication(stage.selection, self._first_batch, **given)
            self._first_batch = None

    def _measure(self, stage: Stage, batches: Any, watched: Any = None) -> Any:
        with self.job.step.evaluating(self.job.task.variables):
            return self.evaluator(stage.selection, batches, watched=watched)

    def _evaluate(self, stage: Stage, steps: int) -> Evaluation:
        found = self._measure(stage, *self.cache.evaluation())
        norm, figures = found.frozen_output_norm, found.figures
        return Evaluation(steps, stage.phase.name, found.loss, found.accuracy, norm, figures, found.lower)

    def _test(self, part: Part) -> dict[str, Any]:
        """Results on the test part, for each class too where it has classes."""
        classes = self.job.task.source.classes
        batches = self.job.task.eval_batches(batch_size=self.job.eval_size, part=part)
        found = self._measure(self.job.stages[-1], batches)
        final: dict[str, Any] = {"test_loss": found.loss, "test_accuracy": found.accuracy}
        final |= {f"test_{name}": value for name, value in found.figures.items()}
        if classes and part.labels.ndim == 1 and "accuracy" in found.per_example:
            hits, labelled = found.per_example["accuracy"], has_label(part)
            chosen = [(name, labelled & (part.labels == n)) for n, name in enumerate(classes)]
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
            "input_kind": find_kind(config, job.data_facts()),
            "skipped_images": len(source.skipped),
            "skipped": list(source.skipped[:20]),
            **_describe_tasks(job.task),
        },
    }


def _describe_tasks(task: Task) -> dict[str, Any]:
    """What run.json says of the labels of several outputs, and of the weights of classes, where there are some."""
    found: dict[str, Any] = {}
    if task.several:
        found["tasks"] = [
            {"name": o.name, "loss": o.loss.kind, "outputs": o.count, "class_names": list(o.classes)}
            for o in task.outputs
        ]
    if weights := list_class_weights(task.outputs):
        found["class_weights"] = {name: list(values) for name, values in weights.items()}
    return found
