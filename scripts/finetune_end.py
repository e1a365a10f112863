"""How finetune ends: what the test part gave, and the summary that is printed."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def tested(result: Any, part: Any, classes: Sequence[str]) -> dict[str, Any]:
    """What the test part gave, class by class where it has classes."""
    final: dict[str, Any] = {"test_loss": result.loss, "test_accuracy": result.metrics.get("accuracy")}
    if classes and part.labels.ndim == 1 and "accuracy" in result.per_example:
        labels, hits = part.labels, result.per_example["accuracy"]
        final["test_class_accuracy"] = {
            name: float(np.mean(hits[labels == number]))
            for number, name in enumerate(classes)
            if (labels == number).any()
        }
    return final


def describe(run: Mapping[str, Any], evaluations: Sequence[Any], out: pathlib.Path) -> None:
    """Prints accuracy before and after, the freeze proof, where the files are."""
    final, proof = run["final"], run["freeze_proof"]
    print()
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        if last.accuracy is not None:
            print(f"evaluation accuracy: {first.accuracy:.4f} before, {last.accuracy:.4f} after {run['steps']} steps")
        print(f"evaluation loss:     {first.loss:.4f} before, {last.loss:.4f} after")
    if final.get("test_accuracy") is not None:
        print(f"test accuracy:       {final['test_accuracy']:.4f}")
        classes = final.get("test_class_accuracy", {})
        if 0 < len(classes) <= 20:
            print("  " + ", ".join(f"{name} {value:.2f}" for name, value in classes.items()))
    if proof["verified"]:
        print(f"freeze proof:        verified; {proof['variables']} frozen variables kept every bit in their phase")
    else:
        print(
            f"freeze proof:        FAILED; {len(proof['changed'])} frozen variables changed: {', '.join(proof['changed'][:5])}"
        )
    print(
        f"time:                {run['timing']['total_seconds']:.0f} s, peak memory {run['memory']['peak_rss_bytes'] / 2**20:.0f} MiB"
    )
    print(f"run directory:       {out}")
    if run["skipped_steps"]:
        print(f"skipped steps:     {run['skipped_steps']} of {run['steps']}, not finite or without any weight")
    for name, steps in run["left_out_terms"].items():
        print(f"left out:            term {name} in {steps} steps: no example had a weight")
    if run["exit"]["code"]:
        print(f"exit code {run['exit']['code']}: {run['exit']['reason']}")
