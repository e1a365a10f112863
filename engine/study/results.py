"""From single runs to rows: medians over repeats, and whether runners agree.

A run is the content of its file (a mapping); a row sums up the repeats of one strategy by one runner.
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

FORMAT = 2  # of a study's JSON files; format 1 was written as `version` and counted windows, not steps
TARGET_SHARE = 0.95  # of the best final accuracy; that is the target unless one is given
TAKEN = 0.1  # the share of the machine's time that others may have before a run counts as disturbed

Run = Mapping[str, Any]

# Relative differences between losses. The first step's losses differ by rounding only: libraries sum in different orders.
# Later, rounding has grown along the trajectory (in BatchNorm networks an ulp became 3e-2 within 50 steps); so the last
# step's loss proves nothing, but it catches a runner that trains something else.
_FIRST = {"float32": 1e-5, "float64": 1e-6, "mixed_bfloat16": 5e-2, "mixed_float16": 1e-2}
_LAST = {"float32": 2e-2, "float64": 1e-4, "mixed_bfloat16": 3e-1, "mixed_float16": 1e-1}


def build_rows(
    runs: Sequence[Run],
    pairs: Iterable[tuple[str, str]],
    *,
    precision: str,
    micro_batches: int,
    gemm_gflops: float,
    target: float | None,
) -> list[dict[str, Any]]:
    """Sums up runs: one row for each (strategy, runner) that has any, in the order of ``pairs``.

    ``gemm_gflops`` is the GFLOP/s that matrix products reach on this machine at their fastest, ``target`` the accuracy for
    which the time to reach it is reported (None without an accuracy).
    """
    found = []
    for strategy, runner in pairs:
        mine = [run for run in runs if (run["strategy"], run["runner"]) == (strategy, runner)]
        mine = sorted((run for run in mine if "left_out" not in run), key=lambda run: run["repeat"])
        if mine:
            failed = [run for run in mine if run.get("failed")]
            done = [run for run in mine if not run.get("failed")]
            row: dict[str, Any] = {"strategy": strategy, "runner": runner, "repeats": len(done)}
            row |= {"precision": precision, "micro_batches": micro_batches}
            row |= _sum_up(done, gemm_gflops=gemm_gflops, target=target)
            found.append(row | {"failed": bool(failed), "reason": failed[0]["reason"] if failed else ""})
    return found


def _sum_up(runs: Sequence[Run], *, gemm_gflops: float, target: float | None) -> dict[str, Any]:
    """The medians of a row's repeats, or what they have in common; None where there is no number."""
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
        # the median of the repeats' medians: a single repeat on a busy machine does not move it
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
    """The seconds to the first evaluation that reaches the target: the median of the repeats; None if most never do."""
    if target is None:
        return None
    reached = [
        next((p["seconds"] for p in points if p["eval_accuracy"] is not None and p["eval_accuracy"] >= target), None)
        for points in curves
    ]
    found = [seconds for seconds in reached if seconds is not None]
    return statistics.median(found) if 2 * len(found) > len(reached) else None


def choose_target(runs: Sequence[Run], asked: float | None) -> tuple[float | None, str]:
    """The target accuracy, and a sentence that says how it was chosen."""
    if asked is not None:
        return asked, f"The target accuracy, {asked:g}, was given by the user."
    best = [(run["points"][-1]["eval_accuracy"], run["strategy"]) for run in runs if run.get("points")]
    known = [(accuracy, strategy) for accuracy, strategy in best if accuracy is not None]
    if not known:
        return None, ""
    accuracy, strategy = max(known, key=lambda pair: pair[0])
    target = TARGET_SHARE * accuracy
    return target, (
        f"The target accuracy, {target:.4f}, is {TARGET_SHARE:.0%} of the best final accuracy, which {strategy} reached "
        f"({accuracy:.4f})."
    )


def find_disagreements(runs: Sequence[Run], *, precision: str) -> list[str]:
    """Finds runs that should be equal and are not: a sentence for each.

    All runners take the same steps on the same data from the same weights by the same rule. TF1's three methods should
    end with the same bits, and so should the repeats of any runner.
    """
    done = [run for run in runs if not run.get("failed") and "left_out" not in run]
    found = []
    for strategy in dict.fromkeys(run["strategy"] for run in done):
        mine = [run for run in done if run["strategy"] == strategy]
        by_runner = {name: [run for run in mine if run["runner"] == name] for name in _runners(mine)}
        base, *others = [repeats[0] for repeats in by_runner.values()]
        for other in others:
            for key, what, bounds in (("first_loss", "first", _FIRST), ("last_loss", "last", _LAST)):
                apart = _relative_difference(base[key], other[key])
                if not apart <= bounds[precision]:
                    found.append(
                        f"{strategy}: the loss of the {what} step is {base[key]:.6g} by {base['runner']} and {other[key]:.6g} by "
                        f"{other['runner']}; they differ by {apart:.1e}, expected at most {bounds[precision]:.0e}."
                    )
            if other["trained_parameters"] != base["trained_parameters"]:
                found.append(
                    f"{strategy}: {other['runner']} trained {other['trained_parameters']:,} parameters and {base['runner']} "
                    f"{base['trained_parameters']:,}, because their evaluations ended phases at different steps."
                )
        for name, repeats in by_runner.items():
            if len({run["weights_sha256"] for run in repeats}) > 1:
                found.append(f"{strategy}: the repeats of {name} did not end with bit-identical weights.")
        v1 = {name: repeats[0]["weights_sha256"] for name, repeats in by_runner.items() if name.startswith("v1_")}
        if len(set(v1.values())) > 1:
            found.append(f"{strategy}: the TF1 methods ({', '.join(v1)}) did not end with bit-identical weights.")
        broken = [name for name, repeats in by_runner.items() if not all(run["freeze_verified"] for run in repeats)]
        if broken:
            found.append(f"{strategy}: the freeze proof failed, because {', '.join(broken)} changed frozen variables.")
    return found


def find_disturbed(runs: Sequence[Run]) -> list[str]:
    """Says in one sentence, if necessary, how many runs shared the machine with others, so that their times are too long."""
    known = [run for run in runs if run.get("taken") is not None]
    shared = [run for run in known if is_disturbed(run)]
    if not shared:
        return []
    most = max(shared, key=lambda run: run["taken"])
    return [
        f"During {len(shared)} of {len(known)} runs, other programs, or other guests of this machine's host, used over "
        f"{TAKEN:.0%} of its time (at most {most['taken']:.0%}: {most['strategy']} by {most['runner']}, repeat "
        f"{most['repeat']}), so the times of these runs are too long. A median of three repeats tolerates one such run, "
        "not two; the same command with --redo_disturbed and the --out of this study repeats them."
    ]


def is_disturbed(run: Run) -> bool:
    """Whether others used so much of the machine that the times of a run are too long."""
    return (run.get("taken") or 0.0) > TAKEN


def collect_curves(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The learning curves of all runs that have one."""
    keys = ("strategy", "runner", "repeat", "points")
    return [{key: run[key] for key in keys} for run in runs if run.get("points")]


def find_baseline(runs: Iterable[Run]) -> dict[str, Any]:
    """The loss and accuracy before any training; they are the same for all runs."""
    point: Mapping[str, Any] = next((run["points"][0] for run in runs if run.get("points")), {})
    return {"eval_loss": point.get("eval_loss"), "eval_accuracy": point.get("eval_accuracy")}


def write_csv(path: PathLike, found: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a table; the ``median`` of ``step_ms`` becomes ``step_ms.median``, and lists are joined by spaces."""
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
    """The runners of some runs, the engine first, because the others are compared with it."""
    return sorted(dict.fromkeys(run["runner"] for run in runs), key=lambda name: name != "engine")


def _relative_difference(one: float, other: float) -> float:
    if one is None or other is None:  # JSON has no nan
        return math.inf
    return abs(one - other) / max(abs(one), 1e-12)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
