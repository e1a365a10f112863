"""Copies values from a file, or from a model that was built from one, into the layers that they belong to."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.models.keras import file_leaves
from engine.models.keras.leaves import Leaves
from engine.models.keras.matching import Pairs, map_arrays
from engine.porting import PortError
from engine.porting.readers.h5_file import KerasH5

Assign = Callable[[Pairs], None]


def copy_variables(pairs: Pairs) -> None:
    """Assigns the variables of one model to those of another."""
    for mine, theirs in pairs:
        names = map_arrays(mine, theirs)[0] or {}
        for name, variable in mine.values.items():
            variable.assign(theirs.values[names[name]])


@contextlib.contextmanager
def unchanged_by_errors(model: Any) -> Iterator[None]:
    """Gives the variables of a model their values back if the block raises, as Keras does when it has loaded a part."""
    before = [(variable, variable.numpy()) for variable in model.variables]
    try:
        yield
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise


def copy_tensors(source: Any) -> Assign:
    """Assigns the tensors of a file, which are all read before the first variable changes."""

    def assign(pairs: Pairs) -> None:
        read: list[tuple[Any, np.ndarray]] = []
        for mine, theirs in pairs:
            names = map_arrays(mine, theirs)[0] or {}
            read += [(mine.values[name], source.read(theirs.values[names[name]])) for name in mine.arrays]
        for variable, value in read:
            variable.assign(value.astype(variable.dtype.as_numpy_dtype, copy=False))

    return assign


@contextlib.contextmanager
def written_layout(network: Any) -> Iterator[pathlib.Path]:
    """The model's own ``.weights.h5`` file, until the end of the block: only a file that Keras writes tells its places."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "layout.weights.h5"
        network.save_weights(path)
        yield path


def with_layout(ours: Leaves, layout: pathlib.Path) -> Leaves:
    """The model's leaves with the arrays that Keras writes for them."""
    with KerasH5(layout, own=True) as file:
        by_key = {leaf.key: leaf for leaf in file_leaves.read_weights_h5(file)}
    if lost := [leaf.full_name for leaf in ours.weighted if leaf.key not in by_key]:
        raise PortError(f"a .weights.h5 file cannot be loaded into this model: Keras stores {lost[0]} elsewhere")
    given = {id(leaf): by_key[leaf.key] for leaf in ours.weighted}
    found = [
        replace(leaf, arrays=given[id(leaf)].arrays, values=given[id(leaf)].values) if leaf.arrays else leaf
        for leaf in ours
    ]
    return Leaves(tuple(found))


def through_layout(source: KerasH5, network: Any, layout: pathlib.Path) -> Assign:
    """Writes the values of a ``.weights.h5`` file into the model's own one, which Keras then loads."""

    def assign(pairs: Pairs) -> None:
        import h5py

        with h5py.File(layout, "r+") as file:
            for mine, theirs in pairs:
                names: Mapping[str, str] = map_arrays(mine, theirs)[0] or {}
                for name, other in names.items():
                    _write(file, mine.values[name], source.read(theirs.values[other]))
        with unchanged_by_errors(network):
            network.load_weights(layout)

    return assign


def _write(file: Any, place: str, value: np.ndarray) -> None:
    data = file[place]
    value = value.astype(np.float32) if value.dtype.name == "bfloat16" and data.dtype.kind != "V" else value
    data[...] = value if data.dtype.kind != "V" else value.view(data.dtype)
