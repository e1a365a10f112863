"""study.json: everything that is known of a study, as one JSON value."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from engine.devices import core_count, processor
from engine.selection.layer_groups import part_names
from engine.study import results
from engine.study.job import read_record
from engine.study.planning import Plan
from engine.study.quality.build_rows import add_quality
from engine.study.quality.run import QualityResult
from engine.study.strategies import OPTIMIZER, list_flags


def summarize(plan: Plan, runs: Sequence[Mapping[str, Any]], quality: QualityResult | None = None) -> dict[str, Any]:
    """study.json of a plan, the runs of it that are finished, failed or left out, and what was searched and judged."""
    job, task, source = plan.job, plan.setting.task, plan.setting.task.source
    runs = [*runs, *plan.others()]
    pairs = list(dict.fromkeys([*plan.pairs, *((run["strategy"], run["runner"]) for run in runs)]))
    names = dict.fromkeys(name for name, _ in pairs)
    blocks = part_names(task.variables)
    machine = (read_record(plan.out / "machine.json") or {}).get("gemm_gflops", {"median": 0.0, "p10": 0.0, "p90": 0.0})
    target, how = results.choose_target(runs, plan.config.target_accuracy)
    found = {
        "format": results.FORMAT,
        "job": {
            "model": job.model,
            "data": source.name,
            "train_examples": len(source.train),
            "eval_examples": len(source.eval),
            "classes": len(source.classes),
            "image_shape": list(source.image_shape),
            "batch_size": job.batch_size,
            "steps": job.steps,
            "epochs": job.steps / plan.setting.batches.per_epoch,
            "precision": job.precision,
            "micro_batches": job.micro_batches,
            "seed": job.seed,
            "optimizer": "adam",
            "learning_rate": job.learning_rate,
            "repeats": max(run["repeat"] for run in runs) if runs else 0,
            "target_accuracy": target,
            "command": plan.command,
        },
        "machine": _describe_machine() | {"gemm_gflops": machine},
        "versions": dict(job.versions),
        "parameters": task.variables.parameters,
        "variables": [{"path": e.path, "parameters": e.size, "block": blocks[e.path]} for e in task.variables],
        "strategies": [_describe_strategy(plan, name, runs) for name in names],
        "baseline": results.find_baseline(runs),
        "results": results.build_rows(
            runs,
            pairs,
            precision=job.precision,
            micro_batches=job.micro_batches,
            gemm_gflops=machine["p90"],  # nearly the peak: other programs, for a moment, do not lower it
            target=target,
        ),
        "curves": results.collect_curves(runs),
        "left_out": plan.left_out + _left_out(runs),
        "notes": _write_notes(plan, runs, how),
    }
    if plan.quality is not None and quality is not None:
        add_quality(found, plan.quality, quality, out=plan.out)
    return found


def _left_out(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The (strategy, runner) whose processes found that they have nothing of their own to show."""
    found = {(run["strategy"], run["runner"]): run["left_out"] for run in runs if "left_out" in run}
    return [{"strategy": strategy, "runner": runner, "reason": why} for (strategy, runner), why in found.items()]


def _write_notes(plan: Plan, runs: Sequence[Mapping[str, Any]], how: str) -> list[str]:
    """What a reader must know, a sentence each; ``how`` says how the target accuracy was chosen."""
    notes = [*results.find_disagreements(runs, precision=plan.job.precision), *([how] if how else [])]
    if any(run["runner"].startswith("v1_") for run in runs):
        size = sum(entry.bytes for entry in plan.setting.task.variables)
        notes.append(
            f"The TF1 runners hold the weights twice ({size / 2**20:.1f} MiB more): in the session, and in the variables "
            "that the freeze proof reads."
        )
    for strategy in plan.strategies if plan.runs else ():
        asked = strategy.phases(plan.job.steps, learning_rate=plan.job.learning_rate)
        own = list_flags([dataclasses.asdict(phase) for phase in asked], strategy.optimizer)
        own += [f"learning_rate={p.learning_rate:g} in phase {p.name}" for p in asked if p.learning_rate is not None]
        if own:
            notes.append(f"{strategy.name} trains with settings of its own: {', '.join(own)}.")
    notes += results.find_disturbed(runs)
    notes += [
        f"{r['strategy']}, {r['runner']}: {r['skipped_steps']} steps were not finite and were skipped."
        for r in runs
        if r.get("skipped_steps")
    ]
    return notes


def _describe_strategy(plan: Plan, name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A strategy as it was run, or as it is planned when it has not been run."""
    done = next((run for run in runs if run["strategy"] == name and run.get("done")), None)
    variables = plan.setting.task.variables
    if done is not None:
        phases = [{key: row[key] for key in ("name", "train", "from_step", "to_step")} for row in done["done"]]
        trained, flags = done["trained"], list_flags(done["phases"], done.get("optimizer", OPTIMIZER))
    else:
        strategy = next(strategy for strategy in plan.strategies if strategy.name == name)
        phases, trained, start = [], [], 0
        asked = strategy.phases(plan.job.steps, learning_rate=plan.job.learning_rate)
        flags = list_flags([dataclasses.asdict(phase) for phase in asked], strategy.optimizer)
        for stage in [] if strategy.adapt else plan.setting.stages(asked, optimizer=strategy.optimizer):
            stop = min(plan.job.steps, start + stage.phase.step_count(plan.setting.batches.per_epoch))
            phases.append({"name": stage.phase.name, "train": stage.phase.train, "from_step": start, "to_step": stop})
            trained += [e.path for e in (*stage.selection.trained, *stage.selection.moving) if e.path not in trained]
            start = stop
    sizes = {entry.path: entry.size for entry in variables if entry.kind == "weight"}
    parameters = sum(sizes.get(path, 0) for path in trained)
    return {"name": name, "phases": phases, "trained": trained, "parameters": parameters, "flags": flags}


def _describe_machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": processor(), "cores": core_count(), "memory_bytes": memory, "system": platform.platform()}
