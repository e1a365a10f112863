"""Studies that a benchmark could have written: numbers made by formulas, shapes as the real ones have them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

RUNNERS = ("engine", "engine_cached", "v1_trainable", "v1_stop_gradient", "v1_var_list")
STRATEGIES = (
    "head", "last_1", "last_2", "last_3", "last_4", "last_6", "norms", "bias", "attention", "gradual",
    "gradual_plateau", "full",
)  # fmt: skip
_SLOWER = {"engine": 1.0, "engine_cached": 0.0, "keras_fit": 1.2, "v1_trainable": 1.3, "v1_stop_gradient": 1.35}


def vit_variables(depth: int = 6, width: int = 96) -> list[dict[str, Any]]:
    found = [("patch/kernel", 1536), ("patch/bias", width), ("class_token", width), ("position_embedding", 50 * width)]
    for block in range(depth):
        here = f"blocks/{block}"
        for norm in ("norm1", "norm2"):
            found += [(f"{here}/{norm}/gamma", width), (f"{here}/{norm}/beta", width)]
        for name in ("query", "key", "value", "out"):
            found += [(f"{here}/attention/{name}/kernel", width * width), (f"{here}/attention/{name}/bias", width)]
        found += [(f"{here}/mlp/up/kernel", 4 * width * width), (f"{here}/mlp/up/bias", 4 * width)]
        found += [(f"{here}/mlp/down/kernel", 4 * width * width), (f"{here}/mlp/down/bias", width)]
    found += [("norm/gamma", width), ("norm/beta", width), ("head/kernel", 10 * width), ("head/bias", 10)]
    return [
        {"path": p, "parameters": n, "block": "/".join(p.split("/")[:2]) if p[:6] == "blocks" else p.split("/")[0]}
        for p, n in found
    ]


def trains(strategy: str, path: str, depth: int = 6) -> bool:
    if path.startswith("head/") or strategy in ("full", "gradual"):
        return True
    block = int(path.split("/")[1]) if path.startswith("blocks/") else -1
    if strategy.startswith("last_"):
        return block >= depth - int(strategy[5:])
    if strategy == "gradual_plateau":
        return block >= depth - 4
    word = {"norms": "norm", "bias": "bias", "attention": "/attention/"}.get(strategy, "no such")
    return word in path or (strategy == "bias" and path.endswith("beta"))


def row(strategy: str, runner: str, *, order: float, trained: int, parameters: int, **other: Any) -> dict[str, Any]:
    """``order``: 0 for what trains least, 1 for what trains all."""
    cached = runner == "engine_cached"
    step = (4.0 + 30 * order) * (_SLOWER.get(runner, 1.3) or (0.15 + 0.8 * order**2))
    accuracy = 0.70 + 0.14 * (1 - (1 - order) ** 3)
    found = {
        "strategy": strategy, "runner": runner, "repeats": 3, "precision": "float32", "micro_batches": 1,
        "trained_parameters": trained, "frozen_parameters": parameters - trained,
        "step_ms": {"median": step, "p10": 0.95 * step, "p90": 1.12 * step},
        "examples_per_second": 32000 / step, "peak_rss_bytes": int(6e8 + 5e8 * order + (5e7 if cached else 0)),
        "slot_bytes": 8 * trained, "backward_ops": int(40 + 700 * order), "gflop_per_example": 0.05 + 0.09 * order,
        "eval_accuracy": accuracy, "job_seconds": 0.15 * step + 1, "final_loss": 1.9 - 1.4 * order, "freeze_verified": True,
        "failed": False, "eval_loss": 1.8 - 1.2 * order, "job_seconds_spread": {"least": 0.147 * step + 1, "most": 0.154 * step + 1},
        "time_to_target_seconds": 0.1 * step if accuracy > 0.78 else None, "gflop_forward": 0.05, "gflop_backward": 0.09 * order,
        "gemm_share": 0.31, "frozen_output_norm": None if strategy == "full" else 9.7, "first_step_seconds": 1.5,
        "cache": {"used": True, "bytes": 86_400_000, "seconds": 0.8} if cached else None,
        "weights_sha256": [hashlib.sha256(f"{strategy} {runner[:2]}".encode()).hexdigest()] * 3, "reason": "",
    }  # fmt: skip
    return found | other


def failed(strategy: str, runner: str, reason: str) -> dict[str, Any]:
    whole = row(strategy, runner, order=0, trained=1, parameters=2)
    kept = {"strategy": strategy, "runner": runner, "repeats": 3, "precision": "float32", "micro_batches": 1}
    return dict.fromkeys(whole, None) | kept | {"failed": True, "reason": reason}


def curve(made: Mapping[str, Any], *, repeat: int = 1, points: int = 10, accuracy: bool = True) -> dict[str, Any]:
    found = []
    for n in range(1, points + 1):
        share = 1 - math.exp(-4 * n / points)
        found.append({
            "step": 15 * n, "seconds": made["job_seconds"] * n / points, "eval_loss": 2.3 - (2.3 - made["eval_loss"]) * share,
            "eval_accuracy": 0.1 + (made["eval_accuracy"] - 0.1) * share if accuracy else None, "train_loss": 2.3 - 1.2 * share,
        })  # fmt: skip
    return {"strategy": made["strategy"], "runner": made["runner"], "repeat": repeat, "points": found}


def study(
    strategies: Sequence[str] = STRATEGIES, runners: Sequence[str] = RUNNERS, *, accuracy: bool = True, repeats: int = 3
) -> dict[str, Any]:
    variables = vit_variables()
    parameters = sum(v["parameters"] for v in variables)
    rows, made = [], []
    for number, name in enumerate(strategies):
        paths = [v["path"] for v in variables if trains(name, v["path"])]
        size = sum(v["parameters"] for v in variables if v["path"] in set(paths))
        made.append(
            {
                "name": name,
                "phases": [{"name": name, "train": f"@head {name}/.*", "from_step": 0, "to_step": 150}],
                "trained": paths,
                "parameters": size,
            }
        )
        for runner in runners:
            order = number / max(len(strategies) - 1, 1)
            rows.append(row(name, runner, order=order, trained=size, parameters=parameters))
    curves = [curve(r, repeat=n, accuracy=accuracy) for r in rows for n in range(1, repeats + 1)]
    if not accuracy:
        rows = [r | {"eval_accuracy": None, "time_to_target_seconds": None} for r in rows]
    return {
        "format": 2,
        "job": {"model": "vit:mini", "data": "fashion_mnist_mini", "train_examples": 4500, "eval_examples": 500, "classes": 10,
                "image_shape": [28, 28, 1], "batch_size": 32, "steps": 150, "epochs": None, "precision": "float32", "micro_batches": 1,
                "seed": 0, "optimizer": "adam", "learning_rate": 1e-3, "repeats": repeats, "target_accuracy": 0.78 if accuracy else None,
                "command": "python -m scripts.benchmark_freezing --model=vit:mini"},
        "machine": {"cpu": "A Processor 9000", "cores": 2, "memory_bytes": 25 * 10**9, "system": "Linux 6.1", "gemm_gflops": {"median": 151.0, "p10": 148.0, "p90": 153.0}},
        "versions": {"python": "3.11.2", "tensorflow": "2.21.0", "keras": "3.15.1", "frostline": "0.1.0"},
        "parameters": parameters, "variables": variables, "strategies": made,
        "baseline": {"eval_loss": 2.31, "eval_accuracy": 0.1 if accuracy else None},
        "results": rows, "curves": curves, "left_out": [], "notes": [],
    }  # fmt: skip


def rich() -> dict[str, Any]:
    """12 strategies by 5 runners, with a failed run, one left out and a disagreement."""
    found = study()
    reason = "Traceback (most recent call last):\n  ...\nMemoryError: 2 GiB <tensor> & more"
    found["results"][-2] = failed("full", "v1_stop_gradient", reason)
    found["curves"] = [c for c in found["curves"] if (c["strategy"], c["runner"]) != ("full", "v1_stop_gradient")]
    found["left_out"] = [{"strategy": "every", "runner": "keras_fit", "reason": "vit:mini is not a Keras model"}]
    found["notes"] = ["last_2: v1_var_list ended at a loss of 1.31, engine at 1.29: more than rounding explains"]
    return found


HOSTILE = '<script>alert("1")</script>&amp;</script><!--<img src=x onerror=alert(2)>\'"'


def hostile() -> dict[str, Any]:
    """Names that are no names, wherever a user's words get in."""
    found = study(["head", HOSTILE, "full"], ["engine"], repeats=1)
    found["job"] |= {"model": HOSTILE, "data": HOSTILE, "command": HOSTILE, "optimizer": HOSTILE}
    found["machine"] |= {"cpu": HOSTILE, "system": HOSTILE}
    found["versions"] = {HOSTILE: HOSTILE}
    found["variables"] = [v | {"path": v["path"] + HOSTILE, "block": v["block"] + HOSTILE} for v in found["variables"]]
    for strategy in found["strategies"]:
        strategy["trained"] = [path + HOSTILE for path in strategy["trained"]]
        strategy["phases"] = [phase | {"name": HOSTILE, "train": HOSTILE} for phase in strategy["phases"]]
    found["results"].append(failed("head", HOSTILE, HOSTILE + "\x00\x1b[31m\ud800\u202e"))
    found["left_out"] = [{"strategy": HOSTILE, "runner": HOSTILE, "reason": HOSTILE}]
    found["notes"] = [HOSTILE]
    return found
