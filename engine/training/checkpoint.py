"""Checkpoints: everything that is state, in one file each, written atomically and checked by digest.

``checkpoints/step-00000120.npz`` holds every variable under its path, optimizer slots under
``optimizer/<path>/<slot>``, averages under ``ema/<path>`` and the text member ``state.json``; so it is a weights file too. A
damaged newest one is named and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.digests import digest
from engine.errors import InputError
from engine.files import Npz, PathLike, write_npz
from engine.selection.variables import ModelVariables

_NAME = re.compile(r"step-(\d{8,})\.npz")
_FORMAT = 2  # 1 counted "windows"


class CheckpointError(InputError):
    """No checkpoint can be used, or one does not fit the model."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and verified.

    Attributes:
        path: its file.
        step: steps trained.
        state: what the run saved beside arrays.
        arrays: every array by name.
    """

    path: pathlib.Path
    step: int
    state: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def save(
    folder: PathLike,
    step: int,
    *,
    variables: ModelVariables,
    arrays: Callable[[], Iterable[tuple[str, np.ndarray]]],
    state: Mapping[str, Any],
    name: str | None = None,
) -> pathlib.Path:
    """Writes ``step-N.npz`` (or ``name``) into a folder and returns its path.

    Args:
        arrays: called for the (name, array) pairs to save beside the variables: ``TrainStep.arrays``.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}

    def everything() -> Iterator[tuple[str, np.ndarray]]:  # one at a time: together they may not fit
        for entry in variables:
            yield entry.path, entry.variable.numpy()
        for path, generator in variables.generators.items():
            yield f"generator/{path}", generator.numpy()
        yield from arrays()

    for key, array in everything():
        digests[key] = digest(key, array)
    body = {"format": _FORMAT, "step": step, "digests": digests, "state": dict(state)}
    text = json.dumps(body, sort_keys=True)
    signed = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text})
    target = folder / (name or f"step-{step:08d}.npz")
    write_npz(target, everything(), texts={"state.json": signed})
    return target


def prune(folder: PathLike, keep: int) -> None:
    """Deletes all but the newest ``keep`` numbered checkpoints."""
    for path in listed(folder)[keep:]:
        path.unlink(missing_ok=True)


def listed(folder: PathLike) -> list[pathlib.Path]:
    """Numbered checkpoints in a folder, newest first."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: PathLike, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; each damaged one before it is named through ``warn``.

    Returns None when there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    paths = listed(folder)
    for path in paths:
        try:
            return read(path)
        except CheckpointError as error:
            warn(f"checkpoint {error}; trying the one before it")
    if paths:
        raise CheckpointError(f"{folder}: all {len(paths)} checkpoints are damaged; start again in another folder")
    return None


def read(path: PathLike) -> Checkpoint:
    """Reads one checkpoint and verifies every array.

    Raises:
        CheckpointError: damaged, or written by another version.
    """
    try:
        with Npz(path) as npz:
            signed = json.loads(npz.text("state.json"))
            if hashlib.sha256(signed["body"].encode()).hexdigest() != signed["sha256"]:
                raise CheckpointError(f"{path}: its state does not match its digest")
            body = json.loads(signed["body"])
            if body["format"] != _FORMAT:
                raise CheckpointError(f"{path}: format {body['format']}; this version reads format {_FORMAT}")
            arrays = {name: npz.read(name) for name in body["digests"]}
            for name, array in arrays.items():
                if digest(name, array) != body["digests"][name]:
                    raise CheckpointError(f"{path}: {name} does not match its digest")
            return Checkpoint(pathlib.Path(path), int(body["step"]), body["state"], arrays)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: damaged ({error})") from None


def restore(checkpoint: Checkpoint, variables: ModelVariables) -> None:
    """Assigns every variable and generator state of a model.

    Raises:
        CheckpointError: a variable is missing or has another shape, or arrays are left over.
    """
    wanted = {entry.path: entry.variable for entry in variables}
    wanted |= {f"generator/{path}": state for path, state in variables.generators.items()}
    have = {name for name in checkpoint.arrays if not name.startswith(("optimizer/", "ema/"))}
    if have != set(wanted):
        odd = sorted(have ^ set(wanted))
        raise CheckpointError(
            f"{checkpoint.path}: it is of another model; {len(odd)} variables differ, such as {odd[0]}"
        )
    for name, variable in wanted.items():
        array = checkpoint.arrays[name]
        if tuple(array.shape) != tuple(variable.shape) or array.dtype != variable.dtype.as_numpy_dtype:
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {array.dtype.name} {list(array.shape)}, "
                f"the model's {variable.dtype.name} {list(variable.shape)}"
            )
    for name, variable in wanted.items():
        variable.assign(checkpoint.arrays[name])
    variables.refresh()
