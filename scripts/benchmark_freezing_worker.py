"""One run of benchmark_freezing, in a process of its own: a strategy, a runner, a repeat."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

import numpy as np
import tensorflow as tf

from engine import host
from engine.audit import nonfinite
from engine.files import write_json
from engine.runs import records
from engine.selection.proof import weights_sha256
from engine.study.cost import Cost, gemm_gflops
from engine.study.histograms import Histograms, gradients
from engine.training.loop import LoopError, Stage
from engine.training.phases import Phase
from scripts.benchmark_freezing_job import V1_RUNNERS, Job, Run, Setting, examples
from scripts.benchmark_freezing_record import LeftOut, NotFiniteError
from scripts.benchmark_freezing_runners import EngineRunner


def machine(out: pathlib.Path) -> None:
    """Measures the machine once for a study, in OUT/machine.json."""
    write_json(out / "machine.json", gemm_gflops())


def work(run: Run) -> None:
    """Does the run and writes its file, whole or not at all.

    Raises:
        LoopError: a step was not finite; says where, if that was asked for.
    """
    out = pathlib.Path(run.out)
    job = Job.from_json(json.loads((out / "job.json").read_text(encoding="utf-8"))["job"])
    random.seed(job.seed)
    np.random.seed(job.seed)
    tf.random.set_seed(job.seed)
    tf.config.experimental.enable_op_determinism()
    setting = Setting(job, examples(job, out))
    setting.start(out / "weights.npz")
    stages = setting.stages(Phase(**phase) for phase in run.phases)
    cache = out / f".cache-{run.strategy}-{run.repeat}" if run.runner == "engine_cached" else None
    runner = _make(run, setting, stages, cache)
    pictures = _watched(run, runner, setting) if run.histograms and isinstance(runner, EngineRunner) else None
    try:
        runner.run()
    except LeftOut as left:
        write_json(run.file, {"left_out": str(left)} | _identity(run))
        return
    except NotFiniteError as error:
        raise LoopError(f"{error}{_where(setting, runner, error) if run.check_numerics else ''}") from None
    finally:
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
    peak = host.peak_rss_bytes()  # before anything is looked at that is no part of the run
    found = _identity(run) | {"peak_rss_bytes": peak} | _measured(runner) | _facts(run, runner, setting, stages)
    if pictures is not None:
        pictures.close()
        _draw(pictures, run)
    runner.close()
    records.write_run(run.file, found)


def _identity(run: Run) -> dict[str, Any]:
    return {"strategy": run.strategy, "runner": run.runner, "repeat": run.repeat, "phases": run.phases}


def _make(run: Run, setting: Setting, stages: list[Stage], cache: pathlib.Path | None) -> Any:
    budget = any(stage.phase.until for stage in stages)
    if run.runner in V1_RUNNERS:
        from scripts.benchmark_freezing_v1 import V1Runner

        return V1Runner(setting, stages, budget=budget, method=run.runner.removeprefix("v1_"))
    if run.runner == "keras_fit":
        from scripts.baselines.keras_runner import KerasRunner

        return KerasRunner(setting, stages)
    return EngineRunner(setting, stages, budget=budget, cache=cache)


def _measured(runner: Any) -> dict[str, Any]:
    record = runner.record
    names = (
        "step_ms",
        "examples",
        "first_step_seconds",
        "first_loss",
        "last_loss",
        "points",
        "slot_bytes",
        "job_seconds",
        "taken",
    )
    return {name: getattr(record, name) for name in names}


def _facts(run: Run, runner: Any, setting: Setting, stages: list[Stage]) -> dict[str, Any]:
    """What is known of a run that has ended; what no repeat changes is looked at in the first alone."""
    begun = {row["name"]: row["to_step"] - row["from_step"] for row in runner.phases}
    stages = [stage for stage in stages if stage.phase.name in begun]
    trained = {entry.path for stage in stages for entry in stage.selection.trained}
    moved = trained | {entry.path for stage in stages for entry in stage.selection.moving}
    entries = [entry for entry in setting.variables if entry.path in moved]
    found: dict[str, Any] = {
        "done": runner.phases,
        "trained": [entry.path for entry in entries],
        "trained_parameters": sum(entry.size for entry in entries if entry.path in trained),
        "frozen_parameters": sum(entry.size for entry in setting.variables if entry.path not in moved),
        "freeze_verified": not any(row["changed"] for row in runner.phases),
        "weights_sha256": weights_sha256((e.path, e.variable.numpy()) for e in entries),
        "skipped_steps": getattr(getattr(runner, "step", None), "skipped", 0),
        "cache": None,
        "frozen_output_norm": runner.record.norm,
        "cost": None,
    }
    caching = getattr(runner, "caching", None)
    if caching is not None:
        facts = caching.facts()
        seconds = sum(row["seconds"] for row in facts["phases"])
        found["cache"] = {"used": facts["used"], "bytes": facts["bytes"], "seconds": seconds}
    if run.repeat == 1:
        if not isinstance(runner, EngineRunner):
            found["frozen_output_norm"] = _norm(setting, stages[-1])
        costs: list[tuple[int, Cost]] = [(begun[stage.phase.name], runner.cost(stage)) for stage in stages]
        steps = sum(count for count, _ in costs)
        found["cost"] = {
            "gflop_forward": sum(count * each.forward for count, each in costs) / steps,
            "gflop_backward": sum(count * each.backward for count, each in costs) / steps,
            "backward_ops": max(each.backward_ops for _, each in costs),
        }
    return found


def _norm(setting: Setting, stage: Stage) -> float | None:
    """Of what the frozen part puts out for the first evaluation examples, by the values that a runner ended with."""
    from engine.data import EvalBatches
    from engine.frostline.watch import frozen_output_norms
    from engine.training.evaluation import WATCHED, Evaluator

    batches = EvalBatches(setting.evaluation.part, batch_size=WATCHED, normalise=setting.evaluation.normalise)
    return Evaluator(setting.loss_fn, watch=frozen_output_norms)(
        stage.selection, [next(iter(batches))]
    ).frozen_output_norm


def _where(setting: Setting, runner: Any, error: NotFiniteError) -> str:
    """What --check_numerics adds to a failure."""
    if not error.batch:
        return "; --check_numerics cannot look back: the weights have moved already"
    if not isinstance(runner, EngineRunner):  # the same step by the engine's graph, with the values of the session
        runner.step.read_back(error.stage.selection)
        runner = EngineRunner(setting, [error.stage], budget=False)
    step, selection = runner.step, error.stage.selection
    found = nonfinite.first_nonfinite(
        step.micro_batch(selection, error.batch), selection, error.batch, micro_batch_size=step.micro_batch_size
    )
    return "; " + (found.describe() if found else "each operation is finite: the gradient's norm alone is too large")


# ---- histograms


def _watched(run: Run, runner: EngineRunner, setting: Setting) -> Histograms:
    """Histograms at each evaluation, of the weights and of the gradients of one batch of images."""
    pictures = Histograms(pathlib.Path(run.out) / "tensorboard" / f"{run.strategy}-{run.runner}")
    batch = setting.batches.at(0)

    def watch(stage: Stage, step: int) -> None:
        pictures.add(stage.selection, gradients(runner.step, stage.selection, batch), step)

    runner.watch = watch
    return pictures


def _draw(pictures: Histograms, run: Run) -> None:
    """The picture of a strategy, once: by the engine's run, or by whichever drew it first."""
    path = pathlib.Path(run.out) / "histograms" / f"{run.strategy}.png"
    if run.runner == "engine" or not path.exists():
        path.parent.mkdir(exist_ok=True)
        pictures.draw(path, f"{run.strategy}: weights and gradients, by {run.runner}")
