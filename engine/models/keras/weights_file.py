"""Keras' own weights files (.weights.h5), loaded into and saved from a model of the same architecture."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from engine.files import FileError, PathLike
from engine.selection.variables import is_keras


def load_weights_file(model: Any, path: PathLike) -> None:
    """Loads a .weights.h5 file; FileError if the model is not a Keras model, or Keras cannot load the file into it."""
    if not is_keras(model):
        raise FileError(f"{path}: only a Keras model can load a .weights.h5 file; expected an .npz file")
    try:
        model.load_weights(os.fspath(path))
    except Exception as error:  # Keras raises many kinds
        raise FileError(f"{path}: Keras cannot load it ({' '.join(str(error).split())[:300]})") from None


def save_weights_file(model: Any, path: PathLike) -> None:
    """Saves a .weights.h5 file under a temporary name, which is then replaced; FileError if it is not a Keras model."""
    path = pathlib.Path(path)
    if not is_keras(model):
        raise FileError(f"{path}: only a Keras model can be saved as .weights.h5; use the name of an .npz file")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        model.save_weights(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
