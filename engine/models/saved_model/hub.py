"""Finds the folder of a model of TensorFlow Hub, without the package tensorflow_hub and without a network."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from urllib.parse import urlsplit

from engine.models.spec import ModelSpecError

_CACHE = "TFHUB_CACHE_DIR"
_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")


def resolve_handle(handle: str, *, spec: str) -> pathlib.Path:
    """The folder of a handle: the folder itself, or that in the cache of tensorflow_hub for an ``http(s)://`` address.

    The cache is the folder in the environment variable TFHUB_CACHE_DIR, or else ``tfhub_modules`` among temporary files;
    the folder of a model in it is called by the SHA-1 of its address, as tensorflow_hub does. Nothing is downloaded.

    Raises:
        ModelSpecError: there is no such folder, the model is not in the cache, or the handle is of another kind.
    """
    if not handle:
        raise ModelSpecError(f"model={spec!r}: expected hub:HANDLE, the address of a model or a folder")
    kind = urlsplit(handle).scheme if "://" in handle else ""
    if not kind:
        folder = pathlib.Path(handle).expanduser()
        if not folder.is_dir():
            raise ModelSpecError(
                f"model={spec!r}: {folder}: there is no such folder; a handle is a folder with a SavedModel, or the address of "
                "a model, which begins with https://"
            )
        return folder
    if kind not in ("http", "https"):
        raise ModelSpecError(
            f"model={spec!r}: {handle}: an address of the kind {kind}:// cannot be read here; download the folder and give it as "
            "savedmodel:DIR"
        )
    cache = os.environ.get(_CACHE) or os.path.join(tempfile.gettempdir(), "tfhub_modules")
    folder = pathlib.Path(cache) / hashlib.sha1(handle.encode("utf-8"), usedforsecurity=False).hexdigest()
    if not any((folder / name).is_file() for name in _GRAPHS):
        state = "holds no SavedModel" if folder.is_dir() else "is not there"
        raise ModelSpecError(
            f"model={spec!r}: {handle} is not in the cache of TensorFlow Hub, and nothing is downloaded here: {folder} {state}. "
            f"Unpack the model there, set {_CACHE} to the cache that has it, or give its folder as savedmodel:DIR"
        )
    return folder
