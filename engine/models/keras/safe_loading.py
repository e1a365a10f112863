"""Keras imported as the engine wants it, and model files read in safe mode: no code from a file is run."""

from __future__ import annotations

import pathlib
import warnings
import zipfile
from typing import Any

from engine.models.spec import ModelSpecError

SUFFIXES = (".keras", ".h5", ".hdf5")


def import_keras() -> Any:
    """Keras, on TensorFlow and with channels last.

    Raises:
        ModelSpecError: it is set up in another way.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelSpecError(f"KERAS_BACKEND={keras.backend.backend()}: Keras models train here on tensorflow")
    if keras.config.image_data_format() != "channels_last":
        raise ModelSpecError("image_data_format=channels_first (in keras.json): channels_last is wanted")
    return keras


def load_model(path: str, flag: str) -> Any:
    """A Keras model from a file, uncompiled, in safe mode.

    Raises:
        ModelSpecError: names the flag, the file and what is wrong.
    """
    keras = import_keras()
    name = f"{flag}={path!r}"
    if not path.lower().endswith(SUFFIXES):
        raise ModelSpecError(f"{name}: a Keras model file ends in {', '.join(SUFFIXES)}")
    if not pathlib.Path(path).is_file():
        raise ModelSpecError(f"{name}: there is no such file")
    if path.lower().endswith(".weights.h5"):
        raise ModelSpecError(
            f"{name}: it holds weights without a model; --model=keras:NAME --weights={path} loads them"
        )
    if path.lower().endswith(".keras") and not zipfile.is_zipfile(path):
        raise ModelSpecError(f"{name}: it is no Keras model, or damaged: a .keras file is a zip archive")
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
            "it holds Python code (a Lambda layer, or the like), which is not run: a file is not trusted; "
            "py:module:factory builds such a model from source"
        )
    if "Could not locate" in text or "Unknown layer" in text or "custom" in text:
        return f"it needs code that is not in it ({text[:200]}); py:module:factory builds such a model"
    return f"it is no Keras model, or damaged ({type(error).__name__}: {text[:200] or 'no more is known'})"
