"""Imports Keras with the settings that the engine requires, and loads model files without running code from them."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from engine import keras_private
from engine.files import FileError
from engine.models.spec import ModelSpecError
from engine.reading import check_memory, check_regular

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
    try:
        check_regular(path)
    except FileError as error:
        raise ModelSpecError(f"{name}{str(error).removeprefix(path)}") from None
    if path.lower().endswith(".weights.h5"):
        raise ModelSpecError(
            f"{name}: it holds weights without a model; --model=keras:NAME --weights={path} loads them"
        )
    if path.lower().endswith(".keras") and not zipfile.is_zipfile(path):
        raise ModelSpecError(f"{name}: it is not a Keras model, or damaged; a .keras file is a zip archive")
    from engine.models.keras import old_files  # imported here, since it imports this module's neighbours

    try:
        with warnings.catch_warnings(), _within_memory(path):
            warnings.simplefilter("ignore")
            if path.lower().endswith(".keras"):
                old_files.check_archive(path)
            if not path.lower().endswith(".keras"):
                return old_files.load_h5_model(path)
            if old_files.is_old_archive(path):
                return old_files.load_old_archive(path)
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except ModelSpecError as error:
        raise ModelSpecError(f"{name}: {error}; {_WAY_OUT}") from None
    except FileError as error:
        raise ModelSpecError(
            f"{name}: it is not a Keras model, or damaged: {str(error).removeprefix(f'{path}: ')}"
        ) from None
    except Exception as error:  # a file can make Keras raise nearly anything
        raise ModelSpecError(f"{name}: {_reason(error)}") from None


@contextlib.contextmanager
def _within_memory(path: str) -> Iterator[None]:
    """Raises FileError when the variables that a file declares take more than the memory, before they are made."""
    total, problem = 0, list[FileError]()

    def check(shape: Any, dtype: str) -> None:
        nonlocal total
        total += math.prod(shape) * (8 if dtype.endswith("64") else 4 if dtype.endswith("32") else 2)
        if total > 1 << 20:  # the limit is not asked for what is small
            try:
                check_memory(path, total, "its model")
            except FileError as error:
                problem.append(error)
                raise

    try:
        with keras_private.watched_variables(check):
            yield
    except Exception:
        if problem:  # Keras wraps it into a description of the layer
            raise problem[0] from None
        raise


_WAY_OUT = "py:module:factory builds such a model from source"


def _reason(error: Exception) -> str:
    """The reason why Keras cannot load a file, without the configurations that it prints before it."""
    text = " ".join(str(error).split())
    if "arbitrary code execution" in text or "Lambda" in text or "safe_mode" in text:
        return f"it contains Python code (such as a Lambda layer), which is never run from a file; {_WAY_OUT}"
    why = text.rpartition("Exception encountered: ")[2]
    if layer := re.search(r"deserializing class '(\w+)'", text):
        why = f"{layer.group(1)}: {why}"
    if missing := re.search(r"(?:Could not locate (?:class|function)|Unknown layer:) '?([\w>.]+)'?", text):
        return f"it needs {missing.group(1)}, whose code the file does not contain; {_WAY_OUT}"
    if "custom" in why:
        return f"it needs code that the file does not contain ({_shorten(why)}); {_WAY_OUT}"
    kind = f"{type(error).__name__}: {_shorten(why)}" if why else type(error).__name__
    return f"it is not a Keras model, or damaged, or of another version of Keras ({kind}); {_WAY_OUT}"


def _shorten(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
