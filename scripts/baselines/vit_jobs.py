"""The jobs of the benchmarks that compare equal ViTs: made once, from one file of weights, and read by each runner."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from engine import models
from engine.errors import InputError
from engine.files import write_npz
from engine.models import vit
from engine.selection import selection
from engine.selection.filters import FilterError
from engine.selection.variables import name_variables
from engine.training.optimizers import AdamW
from scripts.baselines.harness import Job

LEARNING_RATE = 1e-4


def make(
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
    """One job per selection (a filter in ``train``); all start from the same weights, in a file in ``folder``.

    Says what is measured. ``image_size`` is in pixels; the rest is as in Job.

    Raises:
        InputError: a model that is no plain ViT, or a filter that does not suit it.
    """
    built = models.build_model(model, image_shape=(image_size, image_size, 3), outputs=classes, seed=seed)
    config = getattr(built.network, "config", None)
    if not isinstance(config, vit.Config) or config != dataclasses.replace(
        config,
        pool="token",
        class_token=None,
        fc_norm=False,
        norm_epsilon=vit.Config.norm_epsilon,
        layer_scale=None,
        dropout=0.0,
        drop_path=0.0,
    ):
        raise InputError(
            f"model={model!r}: the peers are plain ViTs; vit:SIZE/PATCH with the options depth, gelu, classes will do"
        )
    if built.outputs < 2:
        raise InputError(f"model={model!r}: classes={built.outputs}: a softmax needs at least 2 classes")
    variables = name_variables(built.network)
    adamw = AdamW()
    decayed = selection.matching(variables, adamw.decay)
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
                adamw={
                    "learning_rate": LEARNING_RATE,
                    **{name: getattr(adamw, name) for name in ("beta1", "beta2", "epsilon", "weight_decay")},
                },
                seed=seed,
            )
        )
    write_npz(weights, ((entry.path, entry.variable.numpy()) for entry in variables))
    after = f", {steps} steps after {warmup}" if warmup else ""
    print(f"{model} at {image_size} px, {variables.parameters:,} parameters, batch {batch_size}{after}")
    return jobs


def read(child: str) -> Job:
    """The job on standard input.

    Raises:
        InputError: there is none; ``child`` is what the process was started as.
    """
    try:
        return Job.read()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"child={child}: it is started by a benchmark with a job on standard input ({error})"
        ) from None
