"""The config of a run that is resumed: its own flags, and what a resume may change."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from engine import writing
from engine.data.source import find_place
from engine.errors import InputError
from engine.files import PathLike
from engine.recipes.config import FREE, FinetuneConfig
from engine.runs.saved_flags import read_flags
from engine.text import nearest
from engine.training.checkpoint_names import list_checkpoints

# Fields about a way to distribute a run, which a resume may leave, and the ways that each of them is about
_OF_DISTRIBUTION = {
    "logical_devices": ("mirrored",),
    "sync_batch_norm": ("mirrored", "multiworker"),
    "worker_timeout": ("multiworker",),
}


def resume_config(out: PathLike, given: Mapping[str, Any]) -> FinetuneConfig:
    """The config that goes on with the run in a folder.

    Args:
        out: the run directory. Without a checkpoint and with other fields than before, it begins with those given.
        given: the fields that the user gave. A run may have other data, if their content is the same; that is checked
            when they are opened.

    Raises:
        InputError: the path is not valid, a field contradicts the run's (all of them are listed, with both values), the folder does not say
            what the run was and nothing is given either, or the run's data are no longer where they were.

    Example:
        >>> import tempfile
        >>> from engine.recipes.resuming import resume_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     resume_config(folder, {"train": "@head"}).train
        '@head'
    """
    writing.check_folder(out, attempt=False)
    folder = pathlib.Path(out)
    given = {name: _plain(value) for name, value in given.items() if name not in ("out", "resume")}
    here: dict[str, Any] = {"out": str(folder), "resume": True}
    saved = read_flags(folder)
    if saved is None:
        if not set(given) - FREE:
            near = [path.name for path in folder.parent.glob("*") if path.is_dir() and path.name != folder.name]
            found = "the folder holds no run (neither flags.json nor a checkpoint)"
            raise InputError(
                f"out={folder}: {found if folder.exists() else 'there is no such folder'}{nearest(folder.name, near)}; --resume "
                "goes on with the run in --out, so name the folder of one, or give the flags of a new run"
            )
        return FinetuneConfig(**given, **here)
    known = {field.name for field in dataclasses.fields(FinetuneConfig)}
    if unknown := sorted(set(saved) - known):
        raise InputError(
            f"resume={folder}: {', '.join(unknown)}: this version has no such flag; another one wrote the run"
        )
    wrong = [
        f"  --{name}: {saved[name]!r} in the checkpoint, {value!r} now"
        for name, value in given.items()
        if name in saved and name not in (*FREE, "data") and saved[name] != value
    ]
    if wrong and not list_checkpoints(folder / "checkpoints"):
        return FinetuneConfig(**given, **here)  # nothing is trained yet, so this is a new run
    if wrong:
        raise InputError(f"resume={folder}: these flags contradict those of the run:\n" + "\n".join(wrong))
    if (kind := given.get("distribute")) is not None:
        left = [name for name, kinds in _OF_DISTRIBUTION.items() if kind not in kinds]
        saved = {name: value for name, value in saved.items() if name not in left}
    config = FinetuneConfig(**(saved | given | here))
    place = find_place(config.data)
    if "data" not in given and place is not None and not place.exists():
        raise InputError(
            f"resume={folder}: the data of the run, {config.data}, are not there; --data says where they are now"
        )
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
