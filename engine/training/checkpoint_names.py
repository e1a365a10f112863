"""The checkpoints in a run directory by their names, without TensorFlow."""

from __future__ import annotations

import pathlib
import re

from engine.files import PathLike
from engine.text import join_words

_NAME = re.compile(r"step-(\d{8,})\.npz")


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name in the folder of checkpoints is one."""
    return name == "best.npz" or _NAME.fullmatch(name) is not None


def list_checkpoints(folder: PathLike) -> list[pathlib.Path]:
    """Lists the numbered checkpoints in a folder, the newest first."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def list_whole_files(run: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of a run directory, each a whole model: the best one first, then the newest."""
    folder = run / "checkpoints"
    best = folder / "best.npz"
    return [*([best] if best.is_file() else []), *list_checkpoints(folder)]


def describe_whole_files(run: pathlib.Path) -> str:
    """The names of a run's checkpoints for a sentence, or how they are named where there are none."""
    found = list_whole_files(run)
    return join_words(found, most=3) if found else "RUN/checkpoints/step-N.npz, or best.npz there with --keep_best"
