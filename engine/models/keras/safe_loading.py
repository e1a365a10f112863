"""Imports Keras with the settings that the engine requires, and loads model files without running code from them."""

from __future__ import annotations

import pathlib
import warnings
import zipfile
from typing import Any

from engine.models.spec import ModelSpecError

SUFFIXES = (".keras", ".h5", ".hdf5")


def import_keras() -> Any:
    """Imports Keras, which must use TensorFlow and channels last; ModelSpecError if it is configured otherwise."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelSpecError(f"KERAS_BACKEND={keras.backend.backend()} is not supported; expected tensorflow")
    if keras.config.image_data_format() != "channels_last":
        raise ModelSpecError(
            "image_data_format=channels_first (in keras.json) is not supported; expected channels_last"
        )
    return keras


def load_model(path: str, flag: str) -> Any:
    """Loads a Keras model from a file, uncompiled and in safe mode.

    If that fails, a ModelSpecError names the flag that named the file, the file and the reason.
    """
    keras = import_keras()
    name = f"{flag}={path!r}"
    if not path.lower().endswith(SUFFIXES):
        raise ModelSpecError(f"{name} is not a Keras model file; expected a name ending in {', '.join(SUFFIXES)}")
    if not pathlib.Path(path).is_file():
        raise ModelSpecError(f"{name}: there is no such file")
    if path.lower().endswith(".weights.h5"):
        raise ModelSpecError(
            f"{name}: it holds weights without a model; --model=keras:NAME --weights={path} loads them"
        )
    if path.lower().endswith(".keras") and not zipfile.is_zipfile(path):
        raise ModelSpecError(f"{name}: it is not a Keras model, or damaged; a .keras file is a zip archive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a file can make Keras raise nearly anything
        raise ModelSpecError(f"{name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "arbitrary code execution" in text or "Lambda" in text or "safe_mode" in text:
        return (
            "it contains Python code (such as a Lambda layer), which is never run from a file; py:module:factory builds such "
            "a model from source"
        )
    if "Could not locate" in text or "Unknown layer" in text or "custom" in text:
        return f"it needs code that the file does not contain ({text[:200]}); py:module:factory builds such a model"
    return f"it is not a Keras model, or damaged ({type(error).__name__}: {text[:200] or 'no details'})"
