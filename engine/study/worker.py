"""What the processes of a study do: measure the machine once, and run one strategy by one runner."""

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
from engine.reading import read_file
from engine.runs import records
from engine.selection.proof import weights_sha256
from engine.study import registry
from engine.study.cost import Cost, measure_gemm_gflops
from engine.study.histograms import Histograms, compute_gradients
from engine.study.job import Job, Run, Setting
from engine.study.measurements import LeftOut, NotFiniteError
from engine.study.results import FORMAT
from engine.study.runners import EngineRunner
from engine.training.loop import LoopError, Stage
from engine.training.phases import Phase


def measure_machine(out: str) -> None:
    """Measures the machine for the study in a folder, into its machine.json."""
    write_json(pathlib.Path(out) / "machine.json", {"format": FORMAT, "gemm_gflops": measure_gemm_gflops()})


def do_run(given: dict[str, Any]) -> None:
    """Does a run (the fields of a ``Run``) and writes its file, atomically; raises LoopError if a step was not finite."""
    run = Run(**given)
    out = pathlib.Path(run.out)
    job = Job.from_json(json.loads(read_file(out / "job.json", 1 << 28))["job"])
    random.seed(job.seed)
    np.random.seed(job.seed)
    tf.random.set_seed(job.seed)
    tf.config.experimental.enable_op_determinism()
    setting = Setting.open(job, out, adapt=run.adapt)
    stages = setting.stages((Phase(**phase) for phase in run.phases), optimizer=run.optimizer)
    scratch = out / f".cache-{run.strategy}-{run.repeat}"
    runner = registry.load_runner(run.target)(setting, stages, scratch=scratch)
    pictures = _watch_histograms(run, runner, setting) if run.histograms and isinstance(runner, EngineRunner) else None
    try:
        runner.run()
    except LeftOut as left:
        write_json(run.file, run.identity() | {"left_out": str(left)})
        return
    except NotFiniteError as error:
        raise LoopError(f"{error}{_locate(setting, runner, error) if run.check_numerics else ''}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    peak = host.peak_rss_bytes()  # before anything is looked at that is not part of the run
    found = run.identity() | {"peak_rss_bytes": peak} | runner.measurements.to_json()
    found |= _describe(run, runner, setting, stages)
    if pictures is not None:
        pictures.close()
        _draw(pictures, run)
    runner.close()
    records.write_run(run.file, found)


def _describe(run: Run, runner: Any, setting: Setting, stages: list[Stage]) -> dict[str, Any]:
    """The facts of a finished run; those that repeats share are looked at in the first repeat only."""
    steps_of = {row["name"]: row["to_step"] - row["from_step"] for row in runner.phases}
    stages = [stage for stage in stages if stage.phase.name in steps_of]
    trained = {entry.path for stage in stages for entry in stage.selection.trained}
    moved = trained | {entry.path for stage in stages for entry in stage.selection.moving}
    variables = setting.task.variables
    entries = [entry for entry in variables if entry.path in moved]
    found: dict[str, Any] = {
        "done": runner.phases,
        "trained": [entry.path for entry in entries],
        "trained_parameters": sum(entry.size for entry in entries if entry.path in trained),
        "frozen_parameters": sum(entry.size for entry in variables if entry.path not in moved),
        "freeze_verified": not any(row["changed"] for row in runner.phases),
        "weights_sha256": weights_sha256((e.path, e.variable.numpy()) for e in entries),
        "skipped_steps": runner.skipped_steps,
        "cache": runner.cache,
        "frozen_output_norm": runner.measurements.norm,
        "cost": None,
    }
    if run.repeat == 1:
        if not isinstance(runner, EngineRunner):
            found["frozen_output_norm"] = _measure_norm(setting, stages[-1])
        costs: list[tuple[int, Cost]] = [(steps_of[stage.phase.name], runner.cost(stage)) for stage in stages]
        steps = sum(count for count, _ in costs)
        found["cost"] = {
            "gflop_forward": sum(count * each.forward for count, each in costs) / steps,
            "gflop_backward": sum(count * each.backward for count, each in costs) / steps,
            "backward_ops": max(each.backward_ops for _, each in costs),
        }
    return found


def _measure_norm(setting: Setting, stage: Stage) -> float | None:
    """The norm of the frozen part's output on the first evaluation examples, with the values that a run ended with."""
    from engine.data import EvalBatches
    from engine.frostline.watch import frozen_output_norms
    from engine.training.evaluation import WATCHED, Evaluator

    batches = EvalBatches(setting.evaluation.part, batch_size=WATCHED, normalise=setting.evaluation.normalise)
    evaluator = Evaluator(setting.task.loss_fn, watch=frozen_output_norms)
    return evaluator(stage.selection, [next(iter(batches))]).frozen_output_norm


def _locate(setting: Setting, runner: Any, error: NotFiniteError) -> str:
    """Where a step stopped being finite, as the end of an error message."""
    if not error.batch:
        return "; check_numerics cannot look back, because the weights have moved already"
    if not isinstance(runner, EngineRunner):  # the same step by the engine's graph, with the values of the session
        runner.read_back(error.stage)
        runner = EngineRunner(setting, [error.stage], scratch=runner.scratch)
    step, selection = runner.step, error.stage.selection
    found = nonfinite.first_nonfinite(
        step.micro_batch(selection, error.batch), selection, error.batch, micro_batch_size=step.micro_batch_size
    )
    what = found.describe() if found else "every operation is finite: only the norm of the gradient is too large"
    return f"; {what}"


# ---- histograms


def _watch_histograms(run: Run, runner: EngineRunner, setting: Setting) -> Histograms:
    """Collects, at each evaluation, histograms of the weights and of the gradients of one batch of images."""
    pictures = Histograms(pathlib.Path(run.out) / "tensorboard" / f"{run.strategy}-{run.runner}")
    batch = setting.batches.at(0)

    def watch(stage: Stage, step: int) -> None:
        pictures.add(stage.selection, compute_gradients(runner.step, stage.selection, batch), step)

    runner.watch = watch
    return pictures


def _draw(pictures: Histograms, run: Run) -> None:
    """Draws the picture of a strategy once: from the run of ``engine``, or from the first run that has one."""
    path = pathlib.Path(run.out) / "histograms" / f"{run.strategy}.png"
    if run.runner == "engine" or not path.exists():
        path.parent.mkdir(exist_ok=True)
        pictures.draw(path, f"{run.strategy}: weights and gradients, by {run.runner}")
