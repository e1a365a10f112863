"""Checks, by running it, that a trace for training computes as inference does once all of its layers are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import GraphError
from engine.frostline.row_independence import find_mixing

_CLOSE = 1e-4  # relative to the largest feature: other operations, other rounding


def check_held(
    held: Callable[[Any], Any],
    inference: Callable[[Any], Any] | None,
    statistics: Mapping[int, tf.Variable],
    images: tf.TensorSpec,
    *,
    where: str,
) -> None:
    """Raises GraphError if held layers still use their batch, or compute other features than inference.

    It runs on noise, with statistics that are not those of noise, and leaves the variables as they were. Without
    ``inference``, as where dropout scales what it keeps, only the first is checked.
    """
    rng = np.random.default_rng(0)
    before = {number: variable.numpy() for number, variable in statistics.items()}
    try:
        for number, variable in statistics.items():
            value = before[number]
            if variable.dtype.is_floating:
                noise = rng.uniform(0.8, 1.25, value.shape)
                variable.assign(tf.cast(value * noise + 0.01, variable.dtype))
        mixing = find_mixing(lambda given: [held(given)], [1], [images])
        probe = tf.constant(rng.standard_normal([2, *images.shape[1:]]), tf.float32)
        expected = None if inference is None else np.asarray(inference(probe), np.float64)
        found = np.asarray(held(probe), np.float64)
    finally:
        for number, variable in statistics.items():
            variable.assign(before[number])
    if mixing:
        raise _refusal(where, "the features of an example still depend on the others of its batch")
    if expected is not None:
        difference = float(np.abs(found - expected).max())
        if not difference <= _CLOSE * float(np.abs(expected).max()):
            raise _refusal(where, f"its features differ from those of inference by {difference:.3g}")


def _refusal(where: str, what: str) -> GraphError:
    return GraphError(
        f"{where}: layers of its trace for training cannot be put into inference mode: {what}. Let all statistics move "
        "(@stats), or none (!@stats) where nothing is dropped"
    )
