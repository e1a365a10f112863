"""Checkpoints as TensorFlow 1 wrote them, made by its own Saver."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
v1 = tf.compat.v1


@pytest.fixture(scope="session")
def real() -> pathlib.Path:
    """The folder of real legacy checkpoints."""
    found = pathlib.Path(os.environ.get("FROSTLINE_SHARED", ROOT.parent / "shared")) / "tf1_checkpoints"
    if not found.is_dir():
        pytest.skip("the real checkpoints (tf1_checkpoints) are neither in $FROSTLINE_SHARED nor in ../shared")
    return found


@pytest.fixture(scope="session")
def save() -> Callable[..., pathlib.Path]:
    """save(prefix, arrays, **saver) writes a name-based checkpoint of these values and returns its path."""

    def write(prefix: pathlib.Path | str, arrays: Mapping[str, np.ndarray], **saver: Any) -> pathlib.Path:
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        with tf.Graph().as_default(), v1.Session() as session:
            variables = {
                name: v1.get_variable(f"v{number}", initializer=tf.constant(array), use_resource=True)
                for number, (name, array) in enumerate(arrays.items())
            }
            session.run(v1.global_variables_initializer())
            return pathlib.Path(v1.train.Saver(variables, **saver).save(session, str(prefix)))

    return write
