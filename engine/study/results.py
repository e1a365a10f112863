"""From single runs to rows: medians over repeats, whether runners agree, and the files of a study.

A run is what its process wrote (a mapping); a row sums up the repeats of one strategy by one runner. Schema of
study.json: version 1.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.files import PathLike, write_bytes

TARGET_SHARE = 0.95  # of the best final accuracy: the target, unless one is given
TAKEN = 0.1  # share of the machine's time that others may have before times are called too long

Run = Mapping[str, Any]

# Relative difference of losses. The first step's loss differs by rounding alone: other libraries sum in another order.
# Later rounding has grown along the trajectory (in BatchNorm networks an ulp became 3e-2 within 50 steps), so the last
# step's is no proof of equality, only a net for a runner that trains something else.
_FIRST = {"float32": 1e-5, "float64": 1e-6, "mixed_bfloat16": 5e-2, "mixed_float16": 1e-2}
_LAST = {"float32": 2e-2, "float64": 1e-4, "mixed_bfloat16": 3e-1, "mixed_float16": 1e-1}


def rows(
    runs: Sequence[Run],
    pairs: Iterable[tuple[str, str]],
    *,
    precision: str,
    micro_batches: int,
    gemm_gflops: float,
    target: float | None,
) -> list[dict[str, Any]]:
    """One row for each (strategy, runner) of which there are runs, in the order of ``pairs``.

    Args:
        runs: finished and failed ones.
        pairs: what was to be run.
        precision, micro_batches: of the job.
        gemm_gflops: what matrix products reach on this machine at their fastest.
        target: accuracy whose time is asked for; None without accuracy.
    """
    found = []
    for strategy, runner in pairs:
        mine = [run for run in runs if (run["strategy"], run["runner"]) == (strategy, runner)]
        mine = sorted((run for run in mine if "left_out" not in run), key=lambda run: run["repeat"])
        if mine:
            row: dict[str, Any] = {"strategy": strategy, "runner": runner}
            failed = [run for run in mine if run.get("failed")]
            done = [run for run in mine if not run.get("failed")]
            row |= {"repeats": len(done), "precision": precision, "micro_batches": micro_batches}
            row |= _summed_up(done, gemm_gflops=gemm_gflops, target=target)
            found.append(row | {"failed": bool(failed), "reason": failed[0]["reason"] if failed else ""})
    return found


def _summed_up(runs: Sequence[Run], *, gemm_gflops: float, target: float | None) -> dict[str, Any]:
    """What the repeats of one row have in common, or their medians; None where there is no number."""
    first: Run = runs[0] if runs else {}
    last = [run["points"][-1] for run in runs]
    pooled = [value for run in runs for value in run["step_ms"]]
    job = [run["job_seconds"] for run in runs]
    each: Run = next((run["cost"] for run in runs if run["cost"]), {})
    forward, backward = each.get("gflop_forward"), each.get("gflop_backward")
    gflop = None if forward is None or backward is None else forward + backward
    speed = _median(1e3 * run["examples"] / sum(run["step_ms"]) for run in runs if run["step_ms"])
    share = None if gflop is None or speed is None or gemm_gflops <= 0 else gflop * speed / gemm_gflops
    return {
        "trained_parameters": first.get("trained_parameters"),
        "frozen_parameters": first.get("frozen_parameters"),
        # the median of the repeats' medians: one repeat on a busy machine does not move it
        "step_ms": {
            "median": _median(statistics.median(run["step_ms"]) for run in runs if run["step_ms"]),
            "p10": float(np.percentile(pooled, 10)) if pooled else None,
            "p90": float(np.percentile(pooled, 90)) if pooled else None,
        },
        "examples_per_second": speed,
        "peak_rss_bytes": None if not runs else round(statistics.median(run["peak_rss_bytes"] for run in runs)),
        "slot_bytes": first.get("slot_bytes"),
        "backward_ops": each.get("backward_ops"),
        "gflop_per_example": gflop,
        "eval_accuracy": _median(point["eval_accuracy"] for point in last),
        "job_seconds": _median(job),
        "final_loss": _median(run["last_loss"] for run in runs),
        "freeze_verified": all(run["freeze_verified"] for run in runs) if runs else None,
        "eval_loss": _median(point["eval_loss"] for point in last),
        "job_seconds_spread": {"least": min(job), "most": max(job)} if job else None,
        "time_to_target_seconds": time_to_target([run["points"] for run in runs], target),
        "gflop_forward": forward,
        "gflop_backward": backward,
        "gemm_share": share,
        "frozen_output_norm": next((run["frozen_output_norm"] for run in runs if run["frozen_output_norm"]), None),
        "first_step_seconds": _median(run["first_step_seconds"] for run in runs),
        "cache": first.get("cache") and dict(first["cache"], seconds=_median(run["cache"]["seconds"] for run in runs)),
        "weights_sha256": [run["weights_sha256"] for run in runs],
    }


def time_to_target(curves: Sequence[Sequence[Mapping[str, Any]]], target: float | None) -> float | None:
    """Seconds to the first evaluation with that accuracy: the median of the repeats; None if most never had it."""
    if target is None:
        return None
    reached = [
        next((p["seconds"] for p in points if p["eval_accuracy"] is not None and p["eval_accuracy"] >= target), None)
        for points in curves
    ]
    found = [seconds for seconds in reached if seconds is not None]
    return statistics.median(found) if 2 * len(found) > len(reached) else None


def choose_target(runs: Sequence[Run], asked: float | None) -> tuple[float | None, str]:
    """The target accuracy, and how it was chosen, in words."""
    if asked is not None:
        return asked, f"The target accuracy, {asked:g}, was given."
    best = [(run["points"][-1]["eval_accuracy"], run["strategy"]) for run in runs if run.get("points")]
    known = [(accuracy, strategy) for accuracy, strategy in best if accuracy is not None]
    if not known:
        return None, ""
    accuracy, strategy = max(known, key=lambda pair: pair[0])
    target = TARGET_SHARE * accuracy
    return target, (
        f"The target accuracy, {target:.4f}, is {TARGET_SHARE:.0%} of the best final one, that of {strategy} ({accuracy:.4f})."
    )


def disagreements(runs: Sequence[Run], *, precision: str) -> list[str]:
    """What a reader must know of runs that should be equal and are not, a sentence each.

    All runners train the same steps of the same data from the same weights by the same rule. TF1's three methods
    are to end with the same bits, and so are the repeats of any runner.
    """
    done = [run for run in runs if not run.get("failed") and "left_out" not in run]
    found = []
    for strategy in dict.fromkeys(run["strategy"] for run in done):
        mine = [run for run in done if run["strategy"] == strategy]
        by_runner = {name: [run for run in mine if run["runner"] == name] for name in _runners(mine)}
        base, *others = [repeats[0] for repeats in by_runner.values()]
        for other in others:
            for key, what, bounds in (("first_loss", "first", _FIRST), ("last_loss", "last", _LAST)):
                apart = _apart(base[key], other[key])
                if not apart <= bounds[precision]:
                    found.append(
                        f"{strategy}: the {what} step's loss is {base[key]:.6g} by {base['runner']} and "
                        f"{other[key]:.6g} by {other['runner']}: {apart:.1e} apart, {bounds[precision]:.0e} is expected at most."
                    )
            if other["trained_parameters"] != base["trained_parameters"]:
                found.append(
                    f"{strategy}: {other['runner']} trained {other['trained_parameters']:,} parameters and "
                    f"{base['runner']} {base['trained_parameters']:,}: their evaluations ended phases at other steps."
                )
        for name, repeats in by_runner.items():
            if len({run["weights_sha256"] for run in repeats}) > 1:
                found.append(f"{strategy}: the repeats of {name} did not end with the same bits.")
        v1 = {name: repeats[0]["weights_sha256"] for name, repeats in by_runner.items() if name.startswith("v1_")}
        if len(set(v1.values())) > 1:
            found.append(f"{strategy}: the TF1 methods did not end with the same bits ({', '.join(v1)}).")
        broken = [name for name, repeats in by_runner.items() if not all(run["freeze_verified"] for run in repeats)]
        if broken:
            found.append(f"{strategy}: frozen variables changed by {', '.join(broken)}: the freeze proof failed.")
    return found


def disturbed(runs: Sequence[Run]) -> list[str]:
    """At most one sentence: how many runs shared the machine with others, whose times are longer for it."""
    known = [run for run in runs if run.get("taken") is not None]
    shared = [run for run in known if is_disturbed(run)]
    if not shared:
        return []
    most = max(shared, key=lambda run: run["taken"])
    return [
        f"In {len(shared)} of {len(known)} runs others had over {TAKEN:.0%} of this machine's time (at most {most['taken']:.0%}: "
        f"{most['strategy']} by {most['runner']}, repeat {most['repeat']}), other programs or other guests of its host: "
        "these runs' times are too long. A median of three repeats forgives one of them, not two; the same command with "
        "--redo_disturbed and this study's --out runs them again."
    ]


def is_disturbed(run: Run) -> bool:
    """Whether others had so much of the machine that a run's times are too long."""
    return (run.get("taken") or 0.0) > TAKEN


def curves(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """``curves`` of study.json."""
    return [
        {"strategy": run["strategy"], "runner": run["runner"], "repeat": run["repeat"], "points": run["points"]}
        for run in runs
        if run.get("points")
    ]


def baseline(runs: Iterable[Run]) -> dict[str, Any]:
    """Loss and accuracy before any training; the same for all runs."""
    point: Mapping[str, Any] = next((run["points"][0] for run in runs if run.get("points")), {})
    return {"eval_loss": point.get("eval_loss"), "eval_accuracy": point.get("eval_accuracy")}


def write_csv(path: PathLike, found: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table; ``step_ms.median`` is the ``median`` of ``step_ms``, and lists are joined by spaces."""
    flat = [_flat(row) for row in found]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_bytes(path, text.getvalue().encode())


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def _runners(runs: Iterable[Run]) -> list[str]:
    """Runners of some runs, the engine first: the others are compared with it."""
    names = list(dict.fromkeys(run["runner"] for run in runs))
    return sorted(names, key=lambda name: name != "engine")


def _apart(one: float, other: float) -> float:
    if one is None or other is None:  # JSON has no nan
        return math.inf
    return abs(one - other) / max(abs(one), 1e-12)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
