"""Keras' own weights files (.weights.h5), loaded into and saved from a model of the same architecture."""

from __future__ import annotations

import os
import pathlib
from dataclasses import replace
from typing import Any

from engine.files import FileError, PathLike
from engine.models.keras import file_values, file_weights
from engine.models.keras.file_leaves import read_weights_h5
from engine.models.keras.file_values import unchanged_by_errors
from engine.models.keras.leaves import Leaf, is_graph
from engine.porting import PortError
from engine.porting.readers.h5_file import KerasH5
from engine.porting.readers.h5_trial import check_ends
from engine.selection.variables import is_keras, name_variables
from engine.text import listed
from engine.writing import check_target, explain_no_space, flush, temporary_folder


def load_weights_file(model: Any, path: PathLike) -> str:
    """Loads all weights of a Keras model from a .weights.h5 file and describes what it loaded.

    Layers are matched by their names where the file has them. Keras itself goes by class and order, which is what remains
    for a file without names, and for a model that is not a graph of layers by the names of its attributes.

    Raises FileError if the model is not a Keras model, or the file does not belong to it; the model has not changed.
    """
    name = os.fspath(path)
    if not is_keras(model):
        raise FileError(f"{path}: only a Keras model can load a .weights.h5 file; expected an .npz file")
    check_ends(path)
    if is_graph(model):
        try:
            return file_weights.load_file(name, model, whole=True) or ""
        except PortError as error:
            raise FileError(str(error)) from None
    with file_values.written_layout(model) as layout, KerasH5(layout) as mine, KerasH5(name) as given:
        own, theirs = ({leaf.key: _named(leaf, file) for leaf in read_weights_h5(file)} for file in (mine, given))
    problems = [f"{key}: only in the {'model' if key in own else 'file'}" for key in sorted(own.keys() ^ theirs.keys())]
    for key in own.keys() & theirs.keys():
        here, there = own[key], theirs[key]
        if dict(here.arrays) != dict(there.arrays):
            problems.append(f"{key}: {dict(here.arrays)} in the model, {dict(there.arrays)} in the file")
        elif here.name != there.name and there.name and (here.rank is None or there.rank is None):
            problems.append(f"{key}: {here.name} in the model, {there.name} in the file")
    if problems:
        raise FileError(f"{path} does not fit the model:{listed('layers that differ', problems)}")
    try:
        with unchanged_by_errors(model):
            model.load_weights(name)
    except Exception as error:  # Keras raises many kinds
        raise FileError(f"{path}: Keras cannot load it ({' '.join(str(error).split())[:300]})") from None
    name_variables(model).refresh()
    return f"{pathlib.Path(name).name}, all of the model, by the names of its attributes"


def _named(leaf: Leaf, file: KerasH5) -> Leaf:
    """A leaf with the name of its layer instead of that of the attribute that holds it, where the file says the former."""
    return replace(leaf, name="".join(file.strings(f"{leaf.key}/vars", "name")) or leaf.name)


def save_weights_file(model: Any, path: PathLike) -> None:
    """Saves a .weights.h5 file, which is then complete or unchanged; FileError if it is not a Keras model.

    Raises TargetError or NoSpaceError as ``engine.writing.write_atomically``.
    """
    _save(model, path, "save_weights", ".weights.h5")


def save_model_file(model: Any, path: PathLike) -> None:
    """Saves a whole Keras model as a .keras file, which is then complete or unchanged; raises as ``save_weights_file``."""
    _save(model, path, "save", ".keras")


def _save(model: Any, path: PathLike, method: str, kind: str) -> None:
    path = pathlib.Path(path)
    if not is_keras(model):
        raise FileError(f"{path}: only a Keras model can be saved as {kind}; use the name of an .npz file")
    check_target(path)
    wanted = sum(entry.size * entry.variable.dtype.size for entry in name_variables(model))
    with explain_no_space(path, wanted), temporary_folder(path) as place:
        made = place / path.name
        getattr(model, method)(made)
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        os.replace(made, path)
        flush(path.parent)
