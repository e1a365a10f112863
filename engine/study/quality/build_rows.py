"""The rows of a quality study in results.json: what was found for each strategy."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.study.quality.run import QualityPlan, QualityResult
from engine.study.quality.search import Found
from engine.study.quality.trial import Trial, write_command
from engine.study.quality.verdict import compare_strategies, decide
from engine.study.strategies import Strategy

RUNNER = "quality"  # the runner of these rows
_COST = (
    *("step_ms", "examples_per_second", "peak_rss_bytes", "slot_bytes", "backward_ops", "gflop_per_example"),
    *("job_seconds", "job_seconds_spread", "time_to_target_seconds", "final_loss"),
)  # what only cost mode measures


def build_quality_rows(
    plan: QualityPlan, result: QualityResult, cost: Sequence[Mapping[str, Any]], *, out: pathlib.Path
) -> list[dict[str, Any]]:
    """One row for each strategy whose search has ended; ``cost`` are the rows of cost mode, and ``out`` is the study's folder.

    ``compared`` is empty: it follows from all strategies together (``engine.study.quality.verdict``).
    """
    found = []
    for strategy in plan.strategies:
        search = result.found.get(strategy.interpolated or strategy.name)
        if search is not None and search.records:
            found.append(_build_row(plan, result, strategy, search, cost, out=out))
    return found


def add_quality(study: dict[str, Any], plan: QualityPlan, result: QualityResult, *, out: pathlib.Path) -> None:
    """Adds to study.json what was searched and judged: rows to ``results``, strategies, notes, and the entry ``quality``."""
    rows = build_quality_rows(plan, result, study["results"], out=out)
    known = {strategy["name"]: strategy for strategy in study["strategies"]}
    for row in rows:
        settings, variables = row["quality"]["settings"], {v["path"]: v["parameters"] for v in study["variables"]}
        start, phases = 0, []
        for phase in settings["phases"]:
            stop = start + phase["steps"]
            phases.append({"name": phase["name"], "train": phase["train"], "from_step": start, "to_step": stop})
            start = stop
        trained = [path for path in settings["trained"] if path in variables]  # adapters are not the model's own
        given = {"name": row["strategy"], "phases": phases, "trained": trained, "parameters": row["trained_parameters"]}
        known.setdefault(row["strategy"], given | {"flags": []})
    compared = compare_strategies({name: each.judged for name, each in result.judged.items()})
    for row in rows:
        row["quality"]["compared"] = compared.get(row["strategy"], [])
    study["strategies"] = list(known.values())
    study["results"] = [*study["results"], *rows]
    shown = {row["strategy"] for row in rows}
    study["left_out"] += [
        {"strategy": name, "runner": RUNNER, "reason": why} for name, why in result.failed.items() if name not in shown
    ]
    study["quality"] = {
        "part": plan.part_name,
        "examples": len(plan.part),
        "seeds": list(plan.search.seeds),
        "search": plan.search.kind,
        "rates": list(plan.search.rates) or "auto",
        "same_part": plan.part_name != "test",
        "corrupt": [str(each) for each in plan.corrupt],
        "seconds": result.seconds | {"total": sum(result.seconds.values())},
    }
    whole = not result.stopped
    study["quality"]["verdict"] = decide(rows, study["quality"]).to_json() if whole and rows else None
    if plan.caches.exists():
        study["notes"].append(
            f"{plan.caches} holds the features that trials trained from; the commands that repeat them read them there, and "
            "they can be removed when nothing is to be repeated to the bit."
        )


def flatten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for results.csv, which holds one number or word in each column."""
    found = row.get("quality")
    if not found:
        return dict(row)
    test, shifted = found["test"] or {}, (found["shifted"] or {}).get("mean") or {}
    return {name: value for name, value in row.items() if name != "quality"} | {
        "learning_rate": (found["chosen"] or {}).get("learning_rate"),
        "test_accuracy": test.get("accuracy"),
        "test_loss": test.get("loss"),
        "calibration_error": test.get("calibration_error"),
        "shifted_accuracy": shifted.get("accuracy"),
        "seconds": found["seconds"],
        "search_seconds": found["search_seconds"],
    }


def _build_row(
    plan: QualityPlan,
    result: QualityResult,
    strategy: Strategy,
    search: Found,
    cost: Sequence[Mapping[str, Any]],
    *,
    out: pathlib.Path,
) -> dict[str, Any]:
    best = [search.records[trial] for trial in search.best]
    first = best[0] if best else next(iter(search.records.values()))
    judged = result.judged.get(strategy.name)
    failed = result.failed.get(strategy.name) or result.failed.get(strategy.interpolated or "")
    if search.chosen is None and failed is None:
        failed = "no learning rate could be used: training diverged with each of them"
    proofs = [record["freeze_verified"] for record in search.records.values() if record["freeze_verified"] is not None]
    row: dict[str, Any] = {
        "strategy": strategy.name,
        "runner": RUNNER,
        "repeats": len(best),
        "precision": plan.setup.shared.precision,
        "micro_batches": plan.setup.shared.micro_batches or 1,
        "trained_parameters": first["trained_parameters"],
        "frozen_parameters": first["frozen_parameters"],
        **dict.fromkeys(_COST),
        "eval_accuracy": _mean(best, "eval_accuracy"),
        "eval_loss": _mean(best, "eval_loss"),
        "freeze_verified": all(proofs) if proofs else None,
        "weights_sha256": [record["weights_sha256"] for record in best],
        "failed": failed is not None,
        "reason": failed or "",
    }
    row["quality"] = {
        "settings": {
            "train": [phase["train"] for phase in first["phases"]],
            "phases": first["phases"],
            "trained": first["trained"],
            "adapt": strategy.adapt,
            "auto_freeze": first["auto_freeze"],
            "optimizer": strategy.optimizer,
            "schedule": plan.setup.shared.schedule,
            "steps": plan.setup.steps,
        },
        "chosen": _describe_choice(plan, result, strategy, search, out=out),
        "rates": _describe_rates(plan, search),
        "range_test": None
        if search.range_test is None
        else {k: v for k, v in search.range_test.items() if k != "format"},
        "seconds": _mean(best, "seconds"),
        "search_seconds": float(sum(record["seconds"] for record in search.records.values())),
        "cost": _find_cost(strategy, cost),
        "test": None if judged is None else judged.facts["test"],
        "shifted": None if judged is None else judged.facts["shifted"],
        "compared": [],
    }
    return row


def _describe_choice(
    plan: QualityPlan, result: QualityResult, strategy: Strategy, search: Found, *, out: pathlib.Path
) -> dict[str, Any] | None:
    if search.chosen is None:
        return None
    tried = [trial.learning_rate for trial in search.records]
    edge = "lowest" if search.chosen == min(tried) else "highest" if search.chosen == max(tried) else None
    commands = [_repeat(plan, strategy, trial, search.records[trial]) for trial in search.best]
    if strategy.interpolated is not None:
        commands = [f"{command} --out=RUN && frostline evaluate --run=RUN --interpolate=auto" for command in commands]
    return {
        "learning_rate": search.chosen,
        "by": plan.search.by,
        "edge": edge if len(set(tried)) > 1 else None,
        "ratios": [{"seed": seed, "ratio": ratio} for seed, ratio in result.ratios.get(strategy.name, {}).items()],
        "command": commands[0],
        "commands": commands,
    }


def _repeat(plan: QualityPlan, strategy: Strategy, trial: Trial, record: Mapping[str, Any]) -> str:
    """The command of a plain run with the bits of a trial: it must train from the same features, or from none."""
    cached = record["cached"]
    cache = "require" if all(cached) else "auto" if any(cached) else "off"
    config = plan.setup.config(strategy, trial.learning_rate, trial.seed, cache=cache)
    return write_command(config, cache_dir=plan.caches if any(cached) else None)


def _describe_rates(plan: QualityPlan, search: Found) -> list[dict[str, Any]]:
    rows = []
    for rate in sorted({trial.learning_rate for trial in search.records}):
        mine = {trial: record for trial, record in search.records.items() if trial.learning_rate == rate}
        records = list(mine.values())
        ended = {record["ended"] for record in records}
        status = next((name for name in ("diverged", "dropped") if name in ended), "done")
        usable = [record for record in records if record["ended"] != "diverged"]
        seeds = [
            {
                "seed": trial.seed,
                **{name: record[name] for name in ("eval_accuracy", "eval_loss", "steps", "ended", "seconds")},
                **{name: record[name] for name in ("points", "weights_sha256")},
            }
            for trial, record in mine.items()
        ]
        rows.append(
            {
                "learning_rate": rate,
                "origin": next(iter(mine)).origin,
                "status": status,
                "steps": max(record["steps"] for record in records),
                "reason": next((record["reason"] for record in records if record["reason"]), ""),
                "eval_accuracy": _mean(usable, "eval_accuracy"),
                "eval_loss": _mean(usable, "eval_loss"),
                "seeds": seeds,
            }
        )
    return rows


def _find_cost(strategy: Strategy, cost: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the fastest engine run of cost mode has taken; averaging weights afterwards costs no training."""
    name = strategy.interpolated or strategy.name
    mine = [r for r in cost if r["strategy"] == name and r["runner"].startswith("engine") and not r["failed"]]
    mine = [row for row in mine if row["job_seconds"] is not None]
    if not mine:
        return None
    fastest = min(mine, key=lambda row: row["job_seconds"])
    return {name: fastest[name] for name in ("runner", "job_seconds", "peak_rss_bytes")}


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [record[name] for record in records]
    return None if not values or None in values else float(np.mean(values))
