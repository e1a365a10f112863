"""study.json of benchmark_freezing: everything that is known of a study, schema version 1."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from engine.selection.layer_groups import part_names
from engine.study import results
from scripts.benchmark_freezing_plan import Plan, command, read

F = flags.FLAGS


def whole(plan: Plan, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """study.json, schema version 1, of the runs that there are."""
    job, source = plan.job, plan.setting.source
    runs = [*runs, *plan.others()]
    pairs = list(dict.fromkeys([*plan.pairs, *((run["strategy"], run["runner"]) for run in runs)]))
    names = dict.fromkeys(name for name, _ in pairs)
    blocks = part_names(plan.setting.variables)
    machine = read(plan.out / "machine.json") or {"median": 0.0, "p10": 0.0, "p90": 0.0}
    target, how = results.choose_target(runs, F.target_accuracy)
    left = [
        {key: run[key] for key in ("strategy", "runner")} | {"reason": run["left_out"]}
        for run in runs
        if "left_out" in run
    ]
    left = list({(row["strategy"], row["runner"]): row for row in left}.values())
    notes = [*results.disagreements(runs, precision=job.precision), *([how] if how else [])]
    if any(run["runner"].startswith("v1_") for run in runs):
        size = sum(entry.bytes for entry in plan.setting.variables)
        notes.append(
            f"The TF1 runners hold the weights twice ({size / 2**20:.1f} MiB more): in the session, and where the freeze "
            "proof reads them back."
        )
    notes += results.disturbed(runs)
    skipped = [run for run in runs if run.get("skipped_steps")]
    notes += [
        f"{r['strategy']}, {r['runner']}: {r['skipped_steps']} steps were not finite and were skipped." for r in skipped
    ]
    return {
        "version": 1,
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
            "command": command(),
        },
        "machine": _machine() | {"gemm_gflops": machine},
        "versions": dict(job.versions),
        "parameters": plan.setting.variables.parameters,
        "variables": [{"path": e.path, "parameters": e.size, "block": blocks[e.path]} for e in plan.setting.variables],
        "strategies": [_strategy(plan, name, runs) for name in names],
        "baseline": results.baseline(runs),
        "results": results.rows(
            runs,
            pairs,
            precision=job.precision,
            micro_batches=job.micro_batches,
            gemm_gflops=machine["p90"],  # the peak: a moment in which others had the machine does not lower it
            target=target,
        ),
        "curves": results.curves(runs),
        "left_out": plan.left_out + left,
        "notes": notes,
    }


def _strategy(plan: Plan, name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As it was run; as it is planned, where it has not been."""
    done = next((run for run in runs if run["strategy"] == name and run.get("done")), None)
    if done is not None:
        phases = [{key: row[key] for key in ("name", "train", "from_step", "to_step")} for row in done["done"]]
        trained = done["trained"]
    else:
        strategy = next(strategy for strategy in plan.strategies if strategy.name == name)
        phases, trained, start = [], [], 0
        for stage in plan.setting.stages(strategy.phases(plan.job.steps)):
            stop = min(plan.job.steps, start + stage.phase.step_count(plan.setting.batches.per_epoch))
            phases.append({"name": stage.phase.name, "train": stage.phase.train, "from_step": start, "to_step": stop})
            trained += [e.path for e in (*stage.selection.trained, *stage.selection.moving) if e.path not in trained]
            start = stop
    sizes = {entry.path: entry.size for entry in plan.setting.variables if entry.kind == "weight"}
    return {
        "name": name,
        "phases": phases,
        "trained": trained,
        "parameters": sum(sizes.get(path, 0) for path in trained),
    }


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores, "memory_bytes": memory, "system": platform.platform()}
