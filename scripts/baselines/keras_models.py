"""The runners engine and keras on a network of keras.applications: the same network, weights, selection and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine import models
from engine.errors import InputError
from engine.selection import selection
from engine.selection.filters import FilterError
from engine.selection.variables import name_variables
from engine.training import precision

from . import keras_runner, keras_vit, tensorflow_vit
from .harness import Job
from .vit_jobs import hyperparameters


def build(job: Job) -> Any:
    """Builds the network of a job; its random weights depend on the job's seed alone."""
    numbers = precision.parse(job.precision)
    built = models.build_model(
        job.model,
        image_shape=tuple(job.config["image"]),
        outputs=job.config["classes"],
        seed=job.seed,
        dtype=numbers.variables,
        compute=numbers.compute,
    )
    return built.network


class Engine(tensorflow_vit.Engine):
    """engine.TrainStep on the network."""

    def build(self, job: Job) -> Any:
        return build(job)


class Keras(keras_vit.Keras):
    """Keras' own train_step of the network; its layers are frozen as the selection says."""

    def build(self, job: Job) -> Any:
        network = build(job)
        chosen = selection.select(network, job.train, statistics=job.statistics)
        keras_runner.freeze(network, chosen)
        own = {id(variable.value): variable for variable in network.weights}
        undecayed = [own[id(entry.variable)] for entry in chosen.trained if entry.path not in set(job.decayed)]
        keras_vit.compile_model(network, job, undecayed=undecayed)
        return network


def build_jobs(
    *, model: str, image_size: int, classes: int, train: Sequence[str], batch_size: int, seed: int
) -> list[Job]:
    """Builds one job per filter in ``train``. The arguments are as in ``vit_jobs.build_jobs``."""
    shape = (image_size, image_size, 3)
    built = models.build_model(model, image_shape=shape, outputs=classes, seed=seed)
    if built.outputs < 2:
        raise InputError(f"model={model!r}: classes={built.outputs}: a softmax needs at least 2 classes")
    variables = name_variables(built.network)
    settings, decays = hyperparameters()
    jobs = []
    for text in train:
        try:
            chosen = selection.select(variables, text, statistics=built.statistics)
        except FilterError as error:
            raise FilterError(f"train={text!r}: {error}") from None
        jobs.append(
            Job(
                model=model,
                config={"image": list(shape), "classes": built.outputs},
                train=text,
                trained=[entry.path for entry in chosen.trained],
                decayed=[entry.path for entry in chosen.trained if decays(entry)],
                weights="",
                batch_size=batch_size,
                warmup=0,
                steps=1,
                adamw=settings,
                seed=seed,
                statistics=built.statistics,
            )
        )
    return jobs
