"""Scopes for building Keras layers: seeds and dtype policies."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from engine.models.keras.safe_loading import import_keras


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's generator, from which Keras draws the seeds of its initialisers and dropouts."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets the dtype policy of the Keras layers that are built inside."""
    keras = import_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
