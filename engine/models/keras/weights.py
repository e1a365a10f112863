"""What ``--weights`` means for a Keras model: its own weights, ImageNet's, random ones or a file (file_weights)."""

from __future__ import annotations

import hashlib
import pathlib
import socket
import urllib.request
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.data import Normalise
from engine.files import FileError, PathLike
from engine.models.keras import file_weights
from engine.models.keras.file_values import unchanged_by_errors
from engine.porting import PortError
from engine.porting.readers.h5_trial import check_ends
from engine.reading import check_regular
from engine.selection.variables import name_variables

TIMEOUT = 20.0  # seconds after which a server that does not answer counts as no network


@dataclass(frozen=True)
class ImagenetFile:
    """The file of an application's ImageNet weights: name, address, and SHA-256 or MD5 (None if Keras has none)."""

    name: str
    origin: str
    digest: str | None

    @property
    def path(self) -> pathlib.Path:
        """Where Keras stores it: ``models/`` in $KERAS_HOME, or in ``.keras`` in the home directory."""
        return keras_private.home() / "models" / self.name


def load_weights(
    weights: str,
    *,
    spec: str,
    network: Any,
    backbone: Any | None = None,
    imagenet: ImagenetFile | str = "",
    own: str = "",
    hint: str = "",
    images: Normalise | None = None,
) -> str | None:
    """Loads weights into a Keras model and describes what it loaded; None if the file is not in a format of Keras.

    Args:
        weights: "auto", "none", "imagenet", or a file.
        spec: the model as given, for messages.
        network, backbone: the whole model, and its backbone if it has one; a file may hold that alone.
        imagenet: the file of its ImageNet weights, or the reason why there is none.
        hint: a way to build the model with another graph, for the message about a file that was made for one.
        images: how the network's images are prepared.
        own: where the weights that the model already has come from ("" for random ones).

    Raises:
        PortError: the file cannot be downloaded, is damaged or does not fit.
    """
    if weights == "none":
        if own:
            raise PortError(f"weights='none': {spec} comes with its own weights; --weights=auto keeps them")
        return "random" + _statistics(network)
    if weights == "imagenet":
        if isinstance(imagenet, str):
            reason = f": {imagenet}" if imagenet else ""
            raise PortError(f"weights='imagenet': {spec} has no ImageNet weights{reason}")
        return _load_imagenet(imagenet, spec, backbone)
    if weights == "auto":
        if own:
            return own
        if isinstance(imagenet, str):
            return "random" + _statistics(network)
        if not imagenet.path.is_file():
            return f"random; --weights=imagenet downloads {imagenet.name}" + _statistics(network)
        return _load_imagenet(imagenet, spec, backbone)
    name = weights.lower()
    if name.endswith((".h5", ".hdf5", ".keras")):
        try:
            check_regular(weights)
        except FileError as error:
            raise PortError(f"weights={weights!r}{str(error).removeprefix(weights)}") from None
    if isinstance(imagenet, ImagenetFile) and _is_imagenet(weights, imagenet):
        _load_backbone(pathlib.Path(weights), backbone)
        return f"ImageNet ({imagenet.name}); new head"
    return file_weights.load_file(weights, network, backbone=backbone, hint=hint, images=images)


def _is_imagenet(path: str, file: ImagenetFile) -> bool:
    """Whether a file is that of the ImageNet weights, byte for byte. Keras made it, for all versions of the network."""
    place = pathlib.Path(path)
    return place.name == file.name and file.digest is not None and _digest(place, file.digest) == file.digest


def _statistics(network: Any) -> str:
    follows = any(entry.kind == "statistic" for entry in name_variables(network))
    return "; statistics stay as they are too, unless the filter contains @stats" if follows else ""


def _load_imagenet(file: ImagenetFile, spec: str, backbone: Any) -> str:
    path = file.path
    if not path.is_file():
        path = _download(file, spec)
    elif file.digest is not None and _digest(path, file.digest) != file.digest:
        raise PortError(
            f"weights='imagenet': {path} is damaged, or another file of that name: its digest is "
            f"{_digest(path, file.digest)}; expected {file.digest}. Delete it, or download {file.origin}"
        )
    if file.digest is None:
        try:
            check_ends(path)
        except FileError as error:
            raise PortError(str(error)) from None
    _load_backbone(path, backbone)
    return f"ImageNet ({file.name}); new head"


def _download(file: ImagenetFile, spec: str) -> pathlib.Path:
    """Keras' own download, but with a timeout: by default it would wait forever."""
    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with urllib.request.urlopen(file.origin, timeout=TIMEOUT):
            pass
        return pathlib.Path(keras.utils.get_file(file.name, file.origin, cache_subdir="models", file_hash=file.digest))
    except Exception as error:  # Keras raises bare Exceptions of its own
        why = getattr(error, "reason", None) or error
        raise PortError(
            f"weights='imagenet': {file.name} for {spec} cannot be downloaded ({why}). Without a network, download\n"
            f"  {file.origin}\nelsewhere and copy it to\n  {file.path}\n(or start from random weights with --weights=none)"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _digest(path: pathlib.Path, like: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256" if len(like) == 64 else "md5").hexdigest()


def _load_backbone(path: PathLike, model: Any) -> None:
    """Loads a file of keras.applications as Keras does, in the order of the layers: nothing is nested or frozen yet."""
    try:
        with unchanged_by_errors(model):
            model.load_weights(str(path))
    except Exception as error:  # h5py and Keras raise many kinds on a damaged file
        raise PortError(f"{path} does not fit {model.name}, or is damaged: {_short(error)}") from None


def _short(error: Exception) -> str:
    """The beginning of an error's text: Keras' can go on for pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
