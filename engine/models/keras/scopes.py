"""Scopes in which Keras layers are made: seeds and dtype policies."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from engine.models.keras.safe_loading import import_keras


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Keras draws the seeds of its initialisers and dropouts from Python's generator."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Keras layers made inside compute by the policy of that name."""
    keras = import_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
