"""Weights of training examples, which a file gives beside the data (``--sample_weights``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from engine.data.batch_names import WEIGHT
from engine.data.named_weights import read_sample_weights
from engine.data.part import DataError, Part, Source
from engine.errors import InputError
from engine.files import PathLike
from engine.training.loss_names import OF_GRAPH


def find_weights(path: PathLike | None, source: Source, loss: str, say: Callable[[str], None]) -> np.ndarray | None:
    """The weights of the training examples of a source, float32 [m]; None if no file gives them.

    Raises InputError if there is no such file, it does not fit the data, the loss takes no weights and the data have some,
    or by all weights together no example of a part counts.
    """
    part = source.train
    if loss.startswith(OF_GRAPH) and (path is not None or WEIGHT in part.columns):
        what = "the data have weights of examples, or missing labels" if path is None else f"sample_weights={path}"
        raise InputError(f"{what}: --loss={loss} is computed by the graph, which takes no weights")
    weights = None
    if path is not None:
        weights, text = read_sample_weights(path, part)
        say(f"data:    weights of {path}: {text}")
    _check_counting(source, weights)
    return weights


def _check_counting(source: Source, weights: np.ndarray | None) -> None:
    """Raises DataError if no example of a part counts: nothing would train, or every evaluation would seem perfect."""
    for name, part in (("train", weigh_part(source.train, weights)), ("eval", source.eval), ("test", source.test)):
        if part is not None and WEIGHT in part.columns and not part.columns[WEIGHT].any():
            raise DataError(
                f"data={source.name}: all weights of the {name} part are 0; expected an example that counts"
            )


def weigh_part(part: Part, weights: np.ndarray | None) -> Part:
    """The part whose examples also count by these weights, float32 [m], times those that the data have."""
    if weights is None:
        return part
    own = part.columns.get(WEIGHT, np.float32(1)) * weights
    return dataclasses.replace(part, columns=dict(part.columns) | {WEIGHT: own})
