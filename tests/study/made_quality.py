"""Studies in quality mode that a benchmark could have written; numbers by formulas, comparisons by the real bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import made
import numpy as np

from engine.study.quality.verdict import Judged, compare_strategies, decide

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
KINDS = ("blur:1", "blur:3", "noise:1", "noise:3", "jpeg:2")
# strategy -> the probability of being right, the seconds, the trained parameters
STRATEGIES: Mapping[str, tuple[float, float, int]] = {
    "head": (0.74, 6.0, 12_810), "bias": (0.79, 15.0, 29_738), "last_2": (0.815, 12.0, 424_970), "last_4": (0.81, 19.0, 900_970),
    "lp_ft": (0.82, 33.0, 2_270_794), "first_1": (0.70, 31.0, 15_000), "full": (0.825, 39.0, 2_270_794),
}  # fmt: skip


def judge(
    strategies: Mapping[str, float], *, examples: int = 372, seeds: int = 1, accuracy: bool = True, shifted: bool = True
) -> dict[str, Judged]:
    """Strategies on the same examples: each example is right where its difficulty is below a strategy's probability."""
    rng = np.random.default_rng(0)
    hard, found = rng.random(examples), {}
    for name, share in strategies.items():
        noise = rng.normal(0, 0.05, (seeds, examples))
        right = hard + noise < share
        loss = np.exp(2 * (hard + noise - share))
        under = np.clip((share - 0.1 - hard + rng.normal(0, 0.1, (seeds, examples))) + 0.5, 0, 1)
        under = np.round(4 * under) / 4 if accuracy else 2 * loss + under
        found[name] = Judged(loss=loss, right=right if accuracy else None, shifted=under if shifted else None)
    return found


def rate(
    value: float, reached: float | None, *, seeds: int, accuracy: bool, status: str = "done", origin: str = "given"
) -> dict[str, Any]:
    lost = None if reached is None else 1.6 - 1.2 * reached
    each = [
        {"seed": n, "eval_accuracy": reached if accuracy else None, "eval_loss": lost, "steps": 64, "ended": status, "seconds": 9.0,
         "points": [{"step": s, "eval_accuracy": reached if accuracy else None, "eval_loss": lost} for s in (32, 64)], "weights_sha256": "ab" * 32}
        for n in range(seeds)
    ]  # fmt: skip
    return {
        "learning_rate": value, "origin": origin, "status": status, "steps": 64 if status == "done" else 16,
        "reason": "the loss is not finite" if status == "diverged" else "", "eval_accuracy": reached if accuracy else None,
        "eval_loss": lost, "seeds": each,
    }  # fmt: skip


def row(
    name: str,
    judged: Judged,
    *,
    seconds: float,
    parameters: int,
    classes: Sequence[str] = CLASSES,
    part: str = "test",
    cost: bool = False,
) -> dict[str, Any]:
    """A row of results.json with the runner "quality"."""
    seeds, examples = judged.loss.shape
    accuracy = None if judged.right is None else float(judged.right.mean())
    reached = 0.8 if accuracy is None else accuracy
    rates = [rate(1e-4, reached - 0.06, seeds=seeds, accuracy=accuracy is not None),
             rate(1e-3, reached, seeds=seeds, accuracy=accuracy is not None),
             rate(1e-2, reached - 0.2, seeds=seeds, accuracy=accuracy is not None, status="dropped"),
             rate(1e-1, None, seeds=seeds, accuracy=accuracy is not None, status="diverged", origin="extension")]  # fmt: skip
    commands = [f"frostline finetune --train='{name}/.*' --learning_rate=0.001 --seed={n}" for n in range(seeds)]
    number = examples // len(classes)
    sizes = [number + (n < examples % len(classes)) for n in range(len(classes))]
    each = [{"name": c, "examples": n, "accuracy": None if accuracy is None else min(1.0, max(0.0, accuracy + 0.03 * (k % 7 - 3)))}
            for k, (c, n) in enumerate(zip(classes, sizes, strict=True))]  # fmt: skip
    error = None if accuracy is None else 0.03 + 0.1 * (1 - accuracy)
    under = None
    if judged.shifted is not None:
        level = float(judged.shifted.mean())
        value = {
            "accuracy": None if accuracy is None else level,
            "loss": level if accuracy is None else 1.5 - level,
            "calibration_error": error,
        }
        under = {"each": [{"kind": k.split(":")[0], "strength": int(k[-1]), **value} for k in KINDS], "mean": value}
    lossy = judged.loss.mean(axis=1)
    found = {
        "settings": {"train": [f"@head {name}/.*"], "phases": [{"name": name, "train": f"@head {name}/.*", "steps": 64}], "adapt": None,
                     "optimizer": "adam", "schedule": "cosine", "steps": 64},
        "chosen": {"learning_rate": 1e-3, "by": "eval_loss" if accuracy is None else "eval_accuracy", "edge": None, "command": commands[0], "commands": commands},
        "rates": rates,
        "range_test": {"learning_rates": [1e-5 * 10 ** (k / 5) for k in range(25)], "losses": [2.3 - 0.05 * k + (0.02 * (k - 17) ** 2 if k > 17 else 0) for k in range(25)], "suggested": 1e-3},
        "seconds": seconds, "search_seconds": 3.3 * seconds,
        "cost": {"runner": "engine_cached", "job_seconds": 1.8 * seconds, "peak_rss_bytes": int(6e8 + 1e7 * seconds)} if cost else None,
        "test": {"part": part, "examples": examples, "accuracy": accuracy, "loss": float(lossy.mean()), "calibration_error": error,
                 "adaptive_calibration_error": error,
                 "seeds": [{"seed": n, "accuracy": None if judged.right is None else float(judged.right[n].mean()), "loss": float(lossy[n])} for n in range(seeds)],
                 "classes": each},
        "shifted": under, "compared": [],
    }  # fmt: skip
    return {
        "strategy": name, "runner": "quality", "repeats": seeds, "precision": "float32", "micro_batches": 1,
        "trained_parameters": parameters, "frozen_parameters": 2_300_000 - parameters, "step_ms": None, "job_seconds": None,
        "peak_rss_bytes": None, "eval_accuracy": None, "eval_loss": None, "freeze_verified": True, "failed": False, "reason": "",
        "quality": found,
    }  # fmt: skip


def hopeless(name: str, fault: str) -> dict[str, Any]:
    """A row without any use: "failed", "diverged" or "pending" (not judged)."""
    (judged,) = judge({name: 0.7}).values()
    found = row(name, judged, seconds=5.0, parameters=1000)
    found["quality"] |= {"test": None, "shifted": None, "seconds": None}
    if fault == "diverged":
        found["quality"]["rates"] = [rate(r, None, seeds=1, accuracy=True, status="diverged") for r in (0.1, 1.0)]
        found["quality"]["chosen"] = None
    if fault == "failed":
        found |= {
            "failed": True,
            "reason": "Traceback:\nMemoryError: 2 GiB <tensor> & more",
            "freeze_verified": None,
            "trained_parameters": None,
        }
        found["quality"] = None
    return found


def finish(
    rows: Sequence[dict[str, Any]],
    judged: Mapping[str, Judged],
    *,
    part: str = "test",
    mode: str = "quality",
    seeds: int = 1,
) -> dict[str, Any]:
    """A whole study of these rows, with comparisons and the verdict."""
    compared = compare_strategies(judged, draws=500)
    for each in rows:
        if each["strategy"] in compared and each["quality"]:
            each["quality"]["compared"] = compared[each["strategy"]]
    examples = max([found.loss.shape[1] for found in judged.values()], default=0)
    about: dict[str, Any] = {
        "part": part, "examples": examples, "seeds": list(range(seeds)), "search": "grid", "rates": "auto", "same_part": part != "test",
        "corrupt": list(KINDS), "seconds": {"search": 310.0, "judging": 20.0, "total": 330.0},
    }  # fmt: skip
    about["verdict"] = decide(rows, about).to_json()
    found = made.study([each["strategy"] for each in rows], ["engine"] if mode == "both" else [], repeats=1)
    found["results"] = [*found["results"], *rows]
    return found | {"quality": about}


def study(
    strategies: Mapping[str, tuple[float, float, int]] = STRATEGIES, *, accuracy: bool = True, seeds: int = 1, examples: int = 372,
    classes: Sequence[str] = CLASSES, part: str = "test", mode: str = "quality", shifted: bool = True, more: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    judged = judge(
        {name: each[0] for name, each in strategies.items()},
        seeds=seeds,
        examples=examples,
        accuracy=accuracy,
        shifted=shifted,
    )
    rows = [
        row(name, judged[name], seconds=seconds, parameters=parameters, classes=classes, part=part, cost=mode == "both")
        for name, (_, seconds, parameters) in strategies.items()
    ]
    return finish([*rows, *more], judged, part=part, mode=mode, seeds=seeds)


def hostile() -> dict[str, Any]:
    """Names that are no names, wherever a user's words get in."""
    bad = made.HOSTILE
    found = study({"head": (0.7, 5.0, 100), bad: (0.8, 9.0, 1000), "a&b": (0.79, 4.0, 500)}, classes=[bad, "<b>", '"'])
    for each in found["results"]:
        each["quality"]["chosen"] |= {"command": bad, "commands": [bad]}
        each["quality"]["settings"] |= {"adapt": bad, "optimizer": bad, "schedule": bad, "train": [bad]}
        each["quality"]["shifted"]["each"][0]["kind"] = bad
    found["job"] |= {"model": bad, "data": bad, "command": bad}
    return found
