"""Loads weights into Keras models: ImageNet's, ``.weights.h5``, legacy ``.h5`` and ``.keras`` files.

Loading is strict: the file and the model (or its backbone) must match completely; otherwise the error lists the differences
on both sides.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import socket
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.files import PathLike
from engine.models.keras import safe_loading
from engine.porting import PortError
from engine.porting.both_sides import Differences, compare_shapes
from engine.selection.variables import ModelVariables, name_variables

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
) -> str | None:
    """Loads weights into a Keras model and describes what it loaded; None if the file is not in a format of Keras.

    Args:
        weights: "auto", "none", "imagenet", or a file.
        spec: the model as given, for messages.
        network, backbone: the whole model, and its backbone if it has one; a file may hold that alone.
        imagenet: the file of its ImageNet weights, or the reason why there is none.
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
    parts = {"the backbone": backbone, "the model": network} if backbone is not None else {"the model": network}
    name = weights.lower()
    if name.endswith((".h5", ".hdf5", ".keras")) and not pathlib.Path(weights).is_file():
        raise PortError(f"weights={weights!r}: there is no such file")
    if name.endswith(".keras"):
        return _load_model_file(weights, parts)
    if name.endswith(".weights.h5"):
        return _load_weights_file(weights, parts)
    if name.endswith((".h5", ".hdf5")):
        return _load_legacy(weights, parts)
    return None


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
    _legacy(path, backbone)
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


def _legacy(path: PathLike, model: Any) -> None:
    """Loads a file in the layout from before Keras 3: layers in order, each with its list of weights."""
    try:
        model.load_weights(str(path))
    except Exception as error:  # h5py and Keras raise many kinds on a damaged file
        raise PortError(f"{path} does not fit {model.name}, or is damaged: {_short(error)}") from None


def _load_legacy(path: str, parts: dict[str, Any]) -> str:
    errors = []
    for what, model in parts.items():
        try:
            _legacy(path, model)
            return _describe(path, what)
        except PortError as error:
            errors.append(f"\n  {what}: {error}")
    raise PortError(f"weights={path!r} fits neither the backbone nor the model" + "".join(errors))


def _load_weights_file(path: str, parts: dict[str, Any]) -> str:
    """Loads a ``.weights.h5`` of Keras 3 into the part whose arrays match it."""
    given = _arrays(path)

    def assign(model: Any) -> None:
        try:
            model.load_weights(path)
        except Exception as error:
            raise PortError(f"weights={path!r}: {_short(error)}") from None

    fits: dict[str, tuple[Differences, Callable[[], None]]] = {
        what: (compare_shapes(_layout(model), given), functools.partial(assign, model)) for what, model in parts.items()
    }
    return _first_fit(path, fits)


def _arrays(path: PathLike) -> dict[str, list[int]]:
    """Array -> shape in a ``.weights.h5``, without the optimizer's arrays and the states of dropouts."""
    import h5py

    found: dict[str, list[int]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/") and "seed_generator" not in name:
            found[name] = list(item.shape)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise PortError(f"weights={str(path)!r} is not an HDF5 file, or is damaged: {_short(error)}") from None
    return found


def _layout(model: Any) -> dict[str, list[int]]:
    """The arrays that Keras writes for a model; one file is written, since there is no other way to learn their names."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "layout.weights.h5"
        model.save_weights(path)
        return _arrays(path)


def _load_model_file(path: str, parts: dict[str, Any]) -> str:
    """Loads a ``.keras`` file by the paths of its variables, from the whole model in it or from a model inside that."""
    loaded = safe_loading.load_model(path, "weights")
    sources = [loaded, *(layer for layer in loaded.layers if hasattr(layer, "layers"))]
    fits: dict[str, tuple[Differences, Callable[[], None]]] = {}
    for what, model in reversed(parts.items()):  # the whole model first, so that its head is loaded too
        for source in sources:
            ours, theirs = name_variables(model), name_variables(source)
            difference = compare_shapes(_shapes(ours), _shapes(theirs))
            if what not in fits or len(difference) < len(fits[what][0]):
                fits[what] = (difference, functools.partial(_copy, theirs, ours))
    return _first_fit(path, fits)


def _shapes(variables: ModelVariables) -> dict[str, list[int]]:
    return {entry.path: list(entry.variable.shape) for entry in variables}


def _copy(source: ModelVariables, target: ModelVariables) -> None:
    values = source.by_path()
    for entry in target:
        entry.variable.assign(values[entry.path].variable)
    target.refresh()


def _first_fit(path: str, fits: dict[str, tuple[Differences, Callable[[], None]]]) -> str:
    for what, (difference, assign) in fits.items():
        if not difference:
            assign()
            return _describe(path, what)
    what = min(fits, key=lambda each: len(fits[each][0]))
    raise PortError(f"weights={path!r} does not fit; the nearest match is {what}:{fits[what][0]}")


def _describe(path: str, what: str) -> str:
    return f"{pathlib.Path(path).name}, all of {what}" + ("; new head" if what == "the backbone" else "")


def _short(error: Exception) -> str:
    """The beginning of an error's text: Keras' can go on for pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
