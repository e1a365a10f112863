"""Which checkpoint of a run holds the weights that are asked for."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from engine.errors import InputError
from engine.files import PathLike
from engine.text import join_words
from engine.training.checkpoint_names import list_checkpoints


def choose_checkpoint(folder: pathlib.Path, run: Mapping[str, Any], asked: PathLike | None) -> pathlib.Path | None:
    """The checkpoint to read; None if the run is done and its last one is gone.

    Raises InputError if the run has not finished and no checkpoint is asked for, or the one that is asked for is missing.
    """
    found = list_checkpoints(folder / "checkpoints")
    if asked is None:
        _check_finished(folder, run, found)
        ends = [path for path in found if path.name == f"step-{run['steps']:08d}.npz"]
        return ends[0] if ends else None
    if str(asked) == "last":
        if not found:
            raise InputError(f"checkpoint=last: {folder}/checkpoints holds none")
        return found[0]
    path = folder / "checkpoints/best.npz" if str(asked) == "best" else pathlib.Path(asked)
    if not path.is_file() and (folder / "checkpoints" / path).is_file():
        path = folder / "checkpoints" / path
    if not path.is_file():
        reason = "the run kept none (--keep_best of finetune)" if str(asked) == "best" else "there is no such file"
        known = join_words([each.name for each in found]) or "none"
        raise InputError(f"checkpoint={asked}: {reason}; the checkpoints of {folder}: {known}")
    return path


def _check_finished(folder: pathlib.Path, run: Mapping[str, Any], found: list[pathlib.Path]) -> None:
    """Raises InputError, which offers the last checkpoint, unless a run is done."""
    if run and run["exit"]["code"] == 0:
        return
    state = f"it ended with exit code {run['exit']['code']} ({run['exit']['reason']})" if run else "it has no run.json"
    offer = f"--checkpoint=last takes its last checkpoint, {found[0]}" if found else "it has no checkpoint yet"
    raise InputError(
        f"run={folder}: the run has not finished: {state}. {offer}; --resume --out={folder} goes on with it"
    )
