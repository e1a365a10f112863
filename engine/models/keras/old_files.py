"""Builds whole models from ``.h5`` files, and from ``.keras`` files of Keras 2, and gives every layer its weights by name."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

from engine import keras_private
from engine.files import FileError
from engine.models.keras import file_leaves, file_values
from engine.models.keras.leaves import Leaves, describe_model, is_graph, with_modern_names
from engine.models.keras.matching import map_arrays, match_leaves
from engine.models.keras.old_config import is_old, rename_layers, unsupported_layers, update_config
from engine.models.spec import ModelSpecError
from engine.porting.readers.h5_file import KerasH5
from engine.porting.readers.h5_trial import check_ends
from engine.reading import check_total, open_archive
from engine.selection.variables import name_variables
from engine.text import join_some

_WEIGHTS = "model.weights.h5"
_MOST_TEXT = 1 << 28  # bytes of configuration


def load_h5_model(path: str) -> Any:
    """Builds the model in an ``.h5`` file, in safe mode; its configuration is brought up to date if Keras 2 wrote it.

    Raises FileError if the file cannot be read, ModelSpecError if it holds no model or not all of its weights, and whatever
    Keras raises.
    """
    with KerasH5(path) as file:
        text = file.text("model_config")
        if not text:
            raise ModelSpecError(f"it holds weights without a model; --weights={path} loads them into one")
        old = is_old(file.text("keras_version") or "".join(file.strings("", "keras_version")) or "1.0")
        model = _build(text, old=old)
        if not model.weights:
            return model
        ours = describe_model(model) if is_graph(model) else Leaves(())
        _fill(path, model, ours, file_leaves.read_old_h5(file, ours), file_values.copy_tensors(file))
        return model


def check_archive(path: str) -> None:
    """Raises FileError unless a ``.keras`` file is a whole archive that fits in memory, and HDF5 can read its weights."""
    with open_archive(path, "a Keras model") as archive:
        check_total(path, (info.file_size for info in archive.infolist()))
        if _WEIGHTS in archive.namelist():
            with _extracted(archive, _WEIGHTS) as weights:
                try:
                    check_ends(weights)
                except FileError as error:
                    raise FileError(f"{path}: {_WEIGHTS}{str(error).removeprefix(str(weights))}") from None


def is_old_archive(path: str) -> bool:
    """Whether a ``.keras`` file was written by Keras 2."""
    try:
        with zipfile.ZipFile(path) as archive:
            return is_old(str(json.loads(_read(archive, "metadata.json")).get("keras_version", "")))
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, FileError):
        return False  # for Keras to say


def load_old_archive(path: str) -> Any:
    """Builds the model in a ``.keras`` file of Keras 2, in safe mode, with its configuration brought up to date.

    Raises FileError or ModelSpecError as ``load_h5_model`` does, and whatever Keras raises.
    """
    with zipfile.ZipFile(path) as archive:
        model = _build(_read(archive, "config.json").decode(), old=True)
        if not model.weights:
            return model
        with (
            _extracted(archive, _WEIGHTS) as weights,
            KerasH5(weights) as file,
            file_values.written_layout(model) as layout,
        ):
            ours = file_values.with_layout(describe_model(model), layout)
            theirs = file_leaves.read_weights_h5(file)
            _fill(path, model, ours, theirs, file_values.through_layout(file, model, layout))
    return model


def _build(text: str, *, old: bool) -> Any:
    config = json.loads(text)
    if old:
        config = rename_layers(update_config(config))
    if found := unsupported_layers(config):
        raise ModelSpecError(
            f"it computes with operations of TensorFlow between its layers ({join_some(found, most=3)}), for which Keras 3 "
            "has no layer"
        )
    return keras_private.model_from_old_config(json.dumps(config) if old else text)


def _fill(path: str, model: Any, ours: Leaves, theirs: Leaves, assign: file_values.Assign) -> None:
    theirs = with_modern_names(theirs, ours)
    match = match_leaves(ours.weighted, theirs, same_model=True)
    pairs = match.pairs(ours.weighted)
    lost = [leaf.full_name for leaf in ours.weighted if id(leaf) not in match.found]
    lost += [mine.full_name for mine, leaf in pairs if map_arrays(mine, leaf)[0] is None]
    if lost or match.problems:
        raise ModelSpecError(
            f"its weights do not belong to its configuration: {'; '.join(match.problems) or join_some(lost, most=3)}"
        )
    assign(pairs)
    name_variables(model).refresh()


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MOST_TEXT:
        raise FileError(f"{name} is larger than any that Keras writes")
    return archive.read(name)


@contextlib.contextmanager
def _extracted(archive: zipfile.ZipFile, name: str) -> Iterator[pathlib.Path]:
    """A member of an archive as a file; it is not written if the disk would not hold what it says that it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / _WEIGHTS
        with archive.open(name) as source, path.open("wb") as target:
            left = archive.getinfo(name).file_size
            while left > 0 and (chunk := source.read(min(left, 1 << 20))):
                target.write(chunk)
                left -= len(chunk)
        yield path
