"""The jobs of the benchmarks that compare equal ViTs: built once, from one file of weights, for all runners."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from engine import models
from engine.errors import InputError
from engine.files import write_npz
from engine.models import vit
from engine.selection import selection
from engine.selection.filters import Filter, FilterError
from engine.selection.variables import name_variables
from engine.training.optimizers import AdamW

from .harness import Job

LEARNING_RATE = 1e-4
_PLAIN: dict[str, Any] = {
    "pool": "token", "class_token": None, "fc_norm": False, "norm_epsilon": vit.Config.norm_epsilon, "layer_scale": None,
    "dropout": 0.0, "drop_path": 0.0,
}  # fmt: skip


def build_jobs(
    folder: pathlib.Path,
    *,
    model: str,
    image_size: int,
    classes: int,
    train: Sequence[str],
    batch_size: int,
    warmup: int,
    steps: int,
    seed: int,
) -> list[Job]:
    """Builds one job per filter in ``train``; all start from the same weights, in a file in ``folder``.

    Prints what is measured. ``image_size`` is in pixels; the other arguments are as in ``Job``. Raises InputError if the
    model is not a plain ViT, or a filter does not fit it.
    """
    built = models.build_model(model, image_shape=(image_size, image_size, 3), outputs=classes, seed=seed)
    config = getattr(built.network, "config", None)
    if not isinstance(config, vit.Config) or config != dataclasses.replace(config, **_PLAIN):
        raise InputError(
            f"model={model!r}: it is compared with plain ViTs; expected vit:SIZE/PATCH, with no options but depth, gelu and "
            "classes"
        )
    if built.outputs < 2:
        raise InputError(f"model={model!r}: classes={built.outputs}: a softmax needs at least 2 classes")
    variables = name_variables(built.network)
    settings, decays = hyperparameters()
    decayed = selection.matching_paths(variables, decays)
    weights = folder / "weights.npz"
    jobs = []
    for text in train:
        try:
            chosen = selection.select(variables, text)
        except FilterError as error:
            raise FilterError(f"train={text!r}: {error}") from None
        trained = [entry.path for entry in chosen.trained]
        jobs.append(
            Job(
                model=model,
                config=dataclasses.asdict(config),
                train=text,
                trained=trained,
                decayed=[path for path in trained if path in decayed],
                weights=str(weights),
                batch_size=batch_size,
                warmup=warmup,
                steps=steps,
                adamw=settings,
                seed=seed,
            )
        )
    write_npz(weights, ((entry.path, entry.variable.numpy()) for entry in variables))
    after = f", {steps} steps after {warmup}" if warmup else ""
    print(f"{model} at {image_size} px, {variables.parameters:,} parameters, batch {batch_size}{after}")
    return jobs


def hyperparameters() -> tuple[dict[str, float], Filter]:
    """The AdamW of all runners: its hyperparameters by the engine's names, and what decays."""
    adamw = AdamW()
    names = ("beta1", "beta2", "epsilon", "weight_decay")
    return {"learning_rate": LEARNING_RATE} | {name: getattr(adamw, name) for name in names}, adamw.decay
