"""A small data set with all three parts, and studies on it that take seconds."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from engine.files import write_npz
from engine.recipes.task import Task
from engine.study.config import StudyConfig
from engine.study.run import StudyListener, StudyResult, run_study

MODEL = "vit:mini,depth=2"


def write_data(path: pathlib.Path, *, parts: tuple[str, ...] = ("train", "val", "test")) -> pathlib.Path:
    """Grey images of 8x8 pixels in three classes, which a mean can tell apart in part."""
    draws = np.random.default_rng(0)
    arrays: dict[str, Any] = {"class_names": np.array(["a", "b", "c"])}
    for name, count in (("train", 48), ("val", 24), ("test", 30)):
        if name in parts:
            labels = np.arange(count) % 3
            images = draws.integers(0, 140, (count, 8, 8, 1)) + 55 * labels[:, None, None, None]
            arrays |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": labels.astype(np.int64)}
    np.savez(path, **arrays)
    return path


def write_weights(path: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """Weights of the body of the model, so that seeds differ in the head alone."""
    task = Task.open(data=f"npz:{data}", model=MODEL, weights="none", seed=7, batch_size=16)
    body = [entry for entry in task.variables if "head" not in entry.groups]
    write_npz(path, ((entry.path, entry.variable.numpy()) for entry in body))
    return path


def run_small(
    out: pathlib.Path, data: pathlib.Path, *, listener: StudyListener | None = None, **given: Any
) -> StudyResult:
    """A quality study that takes seconds."""
    settings: dict[str, Any] = {
        "mode": "quality",
        "model": MODEL,
        "weights": "none",
        "data": f"npz:{data}",
        "strategies": ["head", "last_1", "full"],
        "learning_rates": "1e-2,1e-3",
        "batch_size": 16,
        "steps": 8,
        "eval_every": 2,
        "corrupt": "noise:1,blur:2",
        "out": str(out),
    }
    return run_study(StudyConfig(**settings | given), listener=listener)
