"""Which inputs the export of a run has: those that its network takes, as their user has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from engine.data.features import NAME, find_features
from engine.data.part import ArraySpec
from engine.data.source import find_standardise
from engine.data.text_name import parse_text_name
from engine.data.tokens import Tokenizer, TokenizerFiles
from engine.errors import InputError
from engine.export.inputs import Images, Inputs, Texts, Vectors
from engine.recipes.evaluation_data import Examples
from engine.recipes.one_output import check_images
from engine.recipes.reopen import OpenedRun
from engine.recipes.task import find_tokenizer
from engine.text import join_words

_TOKENS = ("tokens", "types")


def check_inputs(opened: OpenedRun) -> None:
    """Raises InputError if a run takes inputs that no export has."""
    if not (_takes_texts(opened) or _takes_vectors(opened)):
        inputs = list(opened.data.inputs)
        if set(inputs) & set(_TOKENS):
            raise InputError(
                f"run={opened.path}: it takes {join_words(inputs)} of {opened.config.data}, and who uses an export of tokens needs "
                "their tokenizer, which only --data=text:... has; open_run(RUN).network takes a batch of them in Python"
            )
        check_images(opened, "an export")


def choose_inputs(opened: OpenedRun, examples: Examples) -> Inputs:
    """The inputs of a run that ``check_inputs`` has passed, given its examples.

    Raises InputError if its vectors are standardised, and the examples do not say by which moments.
    """
    if _takes_texts(opened):
        own = {name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in opened.data.inputs.items()}
        return Texts(own=own, tokenizer=_open_tokenizer(opened))
    if not _takes_vectors(opened):
        return Images(shape=opened.image_shape, normalise=opened.normalise)
    features = find_features(examples.part)
    data: str = opened.config.data
    moments: Any = opened.data.moments
    if moments is None and find_standardise(data) is not None:  # an earlier version did not record them
        if not examples.own:
            raise InputError(
                f"data={examples.source.name}: the run standardised its features ({data}), and the mean and the deviation belong "
                "into the export, so it needs the run's own data, unchanged; --data says where they are now, with the run's options"
            )
        moments = None if features is None else features.moments
    columns = opened.data.features
    if columns is None and features is not None and features.named:  # a run that did not record them
        columns = features.columns
    return Vectors(
        name=next(iter(opened.data.inputs), NAME),
        size=opened.image_shape[0],
        columns=columns or None,
        moments=None if moments is None else np.array(moments),
        missing=features is not None and opened.config.image_options().nan == "zero",
    )


def _takes_texts(opened: OpenedRun) -> bool:
    inputs = tuple(opened.data.inputs)
    return opened.config.data.startswith("text:") and inputs in (_TOKENS, _TOKENS[:1])


def _takes_vectors(opened: OpenedRun) -> bool:
    shapes = list(opened.data.inputs.values())
    return len(shapes) == 1 and len(shapes[0][0]) == 1 and np.dtype(shapes[0][1]).kind == "f"


def _open_tokenizer(opened: OpenedRun) -> Tokenizer:
    """The tokenizer of a run on texts, whatever other texts the export is checked on."""
    config, length = opened.config, opened.image_shape[0]
    files: Any = find_tokenizer(config.model, config.data, length)
    if (folder := parse_text_name(config.data).tokenizer) is not None:
        files = replace(files or TokenizerFiles(folder=folder, max_tokens=length), folder=folder)
    return Tokenizer(files, say=lambda line: None)
