"""Loads a weights file of our own format (``.npz``: variable path -> array) into a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.files import FileError, Npz, PathLike
from engine.variables import NamedVariable, name_variables


class PortError(InputError):
    """Weights that cannot be read, or do not fit the model."""


@dataclass(frozen=True)
class Ledger:
    """What a load did.

    Attributes:
        loaded: paths that got their values from the file.
        fresh: head variables that the file lacks or has for other outputs, with the reason.
    """

    loaded: tuple[str, ...]
    fresh: dict[str, str]


def load_npz(model: Any, path: PathLike) -> Ledger:
    """Assigns every variable of a model from a file, one tensor at a time.

    Every variable must be in the file with its shape, and every array of the file in the model;
    only variables of the head may be missing or have another shape, as with other classes: they
    keep their initial values. ``optimizer/...`` and ``generator/...`` arrays (of a
    checkpoint) are not weights and are left alone. Nothing
    is assigned unless everything fits.

    Raises:
        PortError: the file cannot be read, or does not fit; lists both sides.
    """
    try:
        with Npz(path) as npz:
            return _load(model, path, npz)
    except FileError as error:
        raise PortError(str(error)) from None


def _load(model: Any, path: PathLike, npz: Npz) -> Ledger:
    variables = name_variables(model)
    names = {name for name in npz.names() if not name.startswith(("optimizer/", "generator/"))}
    fresh: dict[str, str] = {}
    missing, wrong, wanted = [], [], []
    for entry in variables:
        name = next((p for p in entry.paths if p in names), None)
        shape = list(entry.variable.shape)
        if name is None:
            if "head" in entry.groups:
                fresh[entry.path] = "not in the file"
            else:
                missing.append(f"{entry.path} {shape}")
        elif list(npz.shape(name)) != shape:
            if "head" in entry.groups:
                fresh[entry.path] = f"{list(npz.shape(name))} in the file, {shape} in the model"
            else:
                wrong.append(f"{entry.path}: {list(npz.shape(name))} in the file, {shape} in the model")
        elif not _castable(npz.dtype(name), entry):
            wrong.append(f"{entry.path}: {npz.dtype(name).name} in the file, {entry.variable.dtype.name} in the model")
        else:
            wanted.append((entry, name))
    known = {p for entry in variables for p in entry.paths}
    unused = sorted(names - known)
    if missing or wrong or unused:
        raise PortError(
            f"{path}: it does not fit the model"
            + _listed("in the model, not in the file", missing)
            + _listed("in the file, not in the model", unused)
            + _listed("of another shape or type", wrong)
        )
    for _, name in wanted:  # a first pass, so that a damaged file changes nothing
        npz.read(name)
    for entry, name in wanted:
        entry.variable.assign(npz.read(name).astype(entry.variable.dtype.as_numpy_dtype, copy=False))
    variables.refresh()
    return Ledger(tuple(entry.path for entry, _ in wanted), fresh)


def _castable(dtype: np.dtype[Any], entry: NamedVariable) -> bool:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return floating if entry.variable.dtype.is_floating else dtype == entry.variable.dtype.as_numpy_dtype


def _listed(title: str, lines: list[str], *, most: int = 8) -> str:
    if not lines:
        return ""
    rest = f"\n    ... and {len(lines) - most} more" if len(lines) > most else ""
    return f"\n  {title} ({len(lines)}):\n    " + "\n    ".join(lines[:most]) + rest
