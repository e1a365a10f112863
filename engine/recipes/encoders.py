"""What a model is given to predict from: images, texts or vectors, and what turns the last two into its inputs."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from engine import models
from engine.data.features import find_features, name_moments
from engine.data.part import ArraySpec, Source
from engine.data.source import find_place, find_standardise
from engine.data.text_encoder import TextEncoder, choose_files
from engine.data.text_name import parse_text_name
from engine.data.vector_encoder import VectorEncoder
from engine.errors import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.own_data import open_own
from engine.recipes.task import Task, other_inputs
from engine.runs.saved_flags import DataFacts

Kind = Literal["images", "texts", "table"]  # also the flags of predict


class Encoder(Protocol):
    """Turns examples that are not images into the inputs of a network, by name."""

    @property
    def specs(self) -> Mapping[str, ArraySpec]:
        """The shape and dtype of each input."""

    def __call__(self, examples: Any, /) -> Mapping[str, np.ndarray]:
        """The inputs of some examples; DataError if they are not what the encoder takes."""


def find_kind(config: FinetuneConfig, facts: DataFacts) -> Kind | None:
    """What the model of a run is given to predict from; None where that is several things, or none of these.

    ``facts`` of a model that no run has made, which reads tokens, are those of texts.
    """
    inputs, rank = facts.inputs, len(facts.image_shape)
    of_tokens = set(inputs) <= {"tokens", "types"} and rank == 1
    alone = of_tokens and facts.fingerprint is None
    if of_tokens and (config.data.startswith("text:") or (alone and models.find_tokenizer(config.model) is not None)):
        return "texts"
    if len(inputs) > 1:
        return None
    if rank == 3:
        return "images"
    _, dtype = next(iter(inputs.values()), (None, facts.image_dtype))
    return "table" if rank == 1 and dtype == "float32" else None


def find_encoder(path: pathlib.Path | None, config: FinetuneConfig, facts: DataFacts, loss: str) -> Encoder | None:
    """What turns texts or vectors into the inputs of the model of a run; None for a model of anything else.

    Nothing is opened before it is called. ``loss`` is what the outputs mean (``OpenedRun.loss``).
    """
    kind = find_kind(config, facts)
    if kind == "texts":
        name = parse_text_name(config.data) if config.data.startswith("text:") else None
        own = models.find_tokenizer(config.model)
        files = own if name is None else choose_files(name, own)
        if files is None:
            return None
        count = 2 if "types" in facts.inputs or (name is not None and name.columns.text_b is not None) else 1
        files = dataclasses.replace(files, max_tokens=facts.image_shape[0])
        return TextEncoder(files=files, facts=facts.texts, count=count)
    if kind != "table":
        return None
    moments: Any = None if facts.moments is None else np.array(facts.moments)
    if moments is None and find_standardise(config.data) is not None:
        moments = functools.partial(_find_moments, path, config, facts, loss)
    return VectorEncoder(
        name=next(iter(facts.inputs), "features"),
        columns=facts.features or (),
        count=facts.image_shape[0],
        moments=moments,
        nan=config.nan,
    )


def find_task_encoder(task: Task) -> Encoder | None:
    """What turns texts or vectors into the inputs of the model of a task; None for a model of anything else."""
    source, inputs = task.source, other_inputs(task.source) or {}
    if source.texts is not None:
        found: TextEncoder = source.texts
        return found
    if len(inputs) != 1 or len(source.image_shape) != 1 or source.train.image_dtype != np.float32:
        return None
    own, moments = find_features(source.train), name_moments(source)
    return VectorEncoder(
        name=source.train.input_name,
        columns=own.columns if own is not None and own.named else (),
        count=source.image_shape[0],
        moments=None if moments is None else np.array(moments),
        nan=task.image_options.nan,
    )


def _find_moments(path: pathlib.Path | None, config: FinetuneConfig, facts: DataFacts, loss: str) -> np.ndarray:
    """The moments of a run that did not record them, from its data; InputError if these are gone, or have changed."""
    about = (
        f"run={path}: an earlier version wrote the run, and did not record by which mean its features were standardised"
    )
    place = find_place(config.data)
    if place is not None and not place.exists():
        raise InputError(
            f"{about}; its data, {config.data}, are not there to tell. Put them back, and --resume --out={path} records it"
        )
    given: dict[str, Any] = {"images": config.image_options(), "say": lambda line: None}
    source: Source | None = open_own(config, facts, None, given, kind=loss)
    moments = None if source is None else name_moments(source)
    if source is None or moments is None or source.fingerprint() != facts.fingerprint:
        raise InputError(
            f"{about}; its data, {config.data}, have changed since, so their mean is another one. Put the run's own back"
        )
    return np.array(moments)
