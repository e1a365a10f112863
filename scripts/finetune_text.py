"""What finetune prints: the job before it begins, progress, and the summary at the end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

from engine import part_times, sizes
from engine.feature_cache.decision import CacheDecision
from engine.frostline.line import FrostLine
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import RunResult
from engine.recipes.job import Job
from engine.recipes.listener import Listener
from engine.runs.progress import Progress
from engine.selection.variables import NamedVariable
from engine.text import shorten, table
from engine.training.loop import Event, Stage
from engine.training.optimizers import set_paces

from . import cli


class PrintingListener(Listener):
    """Prints what a run does; SIGINT and SIGTERM stop it."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config = config
        self._signal = cli.StopSignal()
        self._progress: Progress | None = None

    def should_stop(self) -> bool:
        stop = self._signal()
        self.stopped_by = self._signal.name
        return stop

    def say(self, line: str) -> None:
        print(line)

    def show_job(self, job: Job) -> None:
        _print_job(job)
        _print_plan(job)

    def show_caching(self, job: Job, decisions: Sequence[CacheDecision]) -> None:
        for stage, decision in zip(job.stages, decisions, strict=True):
            name = stage.phase.name
            if isinstance(decision.line, FrostLine):
                print(f"line:    phase {name}: {decision.line.describe()}")
            size = f" ({sizes.format_bytes(decision.bytes)} on disk)" if decision.used else ""
            print(f"cache:   phase {name}: {'used' if decision.used else 'not used'}{size}; {decision.reason}")
        for stage, forecast in zip(job.stages, job.plan.forecasts, strict=True):
            print(f"memory:  phase {stage.phase.name}: about {forecast.text()}")
            if (line := job.describe_device_memory(forecast)) is not None:
                print(f"         {line}")

    def begin(self, total: int, start: int) -> None:
        print()
        self._progress = Progress(total, start=start, log_every=self._config.log_every)

    def handle(self, event: Event) -> None:
        if self._progress is not None:
            self._progress(event)

    def show_progress(self, total: int, what: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        assert self._progress is not None
        return self._progress.show_progress(total, what)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.close()


def _print_job(job: Job) -> None:
    """Prints model, data, and what each phase trains."""
    task, source = job.task, job.task.source
    print(f"model:   {task.model.name}, {task.variables.parameters:,} parameters in {len(task.variables)} variables")
    for note in task.model.notes:
        print(f"         {note}")
    if task.images is not None:
        print(
            f"         images are scaled as these weights expect ({task.images}; the option preprocess= overrides it)"
        )
    test = f", {len(source.test)} test" if source.test else ""
    skipped = f"; {len(source.skipped)} bad images skipped" if source.skipped else ""
    print(f"data:    {source.name}, {len(source.train)} train, {len(source.eval)} evaluation{test} examples{skipped}")
    for stage in job.stages:
        steps = stage.phase.step_count(task.per_epoch)
        last = stage.schedule.factor_at(steps - 1, steps, learning_rate=stage.learning_rate) * stage.learning_rate
        course = "" if str(stage.schedule) == "constant" else f" ({stage.schedule}; {last:.3g} in the last step)"
        counting = (
            "" if stage.selection.losses is None else f", by the loss of {', '.join(stage.selection.losses)} alone"
        )
        print(f"\nphase {stage.phase.name}: {steps} steps, learning rate {stage.learning_rate:g}{course}{counting}")
        print(stage.selection.table())
        if task.model.adapters is not None:
            print(_describe_share(stage))
        if stage.rates is not None or stage.optimizer.decays is not None:
            print(_rates_table(stage))
    if any(stage.optimizer.decay_toward == "start" for stage in job.stages):
        print("\ndecay:   toward the values that variables have when they begin to train (a slot of each keeps them)")
    print()


def _describe_share(stage: Stage) -> str:
    """What trains, as a share of the model that the adapters were attached to."""
    entries, trained = stage.selection.variables, stage.selection.trained_parameters
    full = sum(entry.size for entry in entries if "adapters" not in entry.groups)
    adapters = sum(entry.size for entry in stage.selection.trained if "adapters" in entry.groups)
    return f"{trained:,} parameters train, {trained / full:.2%} of the {full:,} of the model ({adapters:,} in adapters)"


def _rates_table(stage: Stage) -> str:
    """What each trained variable's learning rate and weight decay are, and which rules decided them."""
    found: dict[tuple[str, str, str], list[NamedVariable]] = {}
    rates, decays = stage.rates, stage.optimizer.decays
    for entry, pace in zip(stage.selection.trained, set_paces(stage.selection, stage.optimizer, rates), strict=True):
        rate, by = stage.learning_rate * pace.factor, "--learning_rate"
        if rates is not None and pace.rule is not None:
            rate, by = rates.values[pace.rule], f"`{rates.rule(pace.rule)}`"
        if pace.decays and decays is not None and (own := decays.deciding(entry)) is not None:
            by += f", decay `{decays.rule(own)}`"
        found.setdefault((f"{rate:g}", f"{pace.weight_decay:g}" if pace.decays else "0", by), []).append(entry)
    head = ("learning rate", "weight decay", "variables", "parameters", "decided by", "paths")
    body = [
        (rate, decay, str(len(own)), f"{sum(e.size for e in own):,}", by, shorten([e.path for e in own]))
        for (rate, decay, by), own in found.items()
    ]
    return table([head, *body], right={0, 1, 2, 3})


def _print_plan(job: Job) -> None:
    """Prints how steps are computed, and why."""
    plan, size = job.plan, job.replica_examples
    examples = f"{size} example{'s'[: size - 1]}{' of a replica' * (job.distribution.share.of > 1)}"
    if plan.micro_batch_size is not None:
        count = -(-size // plan.micro_batch_size)
        parts = f"{count} micro-batch{'es'[: 2 * (count > 1)]} of {plan.micro_batch_size}"
        print(f"step:    {examples} in {parts}, remat {plan.remat}")
    elif plan.remat != "none":
        print(f"step:    {examples} in one piece, remat {plan.remat}")
    if plan.blocks is not None:
        print(f"depth:   the top {plan.blocks} blocks and the head train")
    for text in (*plan.reasons, *job.caveats()):
        print(f"         {text}")


def print_times(parts: Mapping[str, Mapping[str, float]]) -> None:
    """Prints where the seconds of a dry run went."""
    print(f"time:    {part_times.describe(parts)}")


def print_end(result: RunResult) -> None:
    """Prints accuracy at the first and the last evaluation, the freeze proof, and where the files are."""
    run, final, proof = result.run, result.run["final"], result.run["freeze_proof"]
    print()
    if result.evaluations:
        first, last = result.evaluations[0], result.evaluations[-1]
        if last.accuracy is not None:
            print(f"evaluation accuracy: {first.accuracy:.4f} before, {last.accuracy:.4f} after {last.step} steps")
        print(f"evaluation loss:     {first.loss:.4f} before, {last.loss:.4f} after")
        for name, value in last.figures.items():
            if name != "accuracy" and isinstance(value, float):
                print(f"{f'evaluation {name}:':<20} {first.figures.get(name, math.nan):.4f} before, {value:.4f} after")
    if final.get("test_accuracy") is not None:
        print(f"test accuracy:       {final['test_accuracy']:.4f}")
        classes = final.get("test_class_accuracy", {})
        if 0 < len(classes) <= 20:
            print("  " + ", ".join(f"{name} {value:.2f}" for name, value in classes.items()))
    for name, value in final.items():
        if name.startswith("test_") and name not in ("test_loss", "test_accuracy") and isinstance(value, float):
            print(f"{f'test {name[5:]}:':<20} {value:.4f}")
    if proof["verified"]:
        print(f"freeze proof:        verified; {proof['variables']} frozen variables kept every bit in their phase")
    else:
        changed = ", ".join(proof["changed"][:5])
        print(f"freeze proof:        FAILED; {len(proof['changed'])} frozen variables changed: {changed}")
    memory = run["memory"]["peak_rss_bytes"] / 2**20
    print(f"time:                {run['timing']['total_seconds']:.0f} s, peak memory {memory:.0f} MiB")
    if (parts := run["timing"]["until_first_step"]) is not None:
        print(f"until the 1st step:  {part_times.describe(parts)}")
    print(f"run directory:       {result.out}")
    if run["skipped_steps"]:
        print(f"skipped steps:       {run['skipped_steps']} of {run['steps']}, not finite or without any weight")
    for name, steps in run["left_out_terms"].items():
        print(f"left out:            term {name} in {steps} steps: no example had a weight")
    if result.code:
        print(f"exit code {result.code}: {result.reason}")
