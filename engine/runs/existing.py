"""Whether a folder can hold a run, and that one run at a time works in it.

The former is asked first of all, before TensorFlow is imported or data are opened.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
from collections.abc import Callable, Iterator

from engine import writing
from engine.errors import InputError
from engine.files import PathLike
from engine.locks import hold_folder
from engine.text import join_words
from engine.training.checkpoint_names import is_checkpoint

_FOLDERS = ("checkpoints", "tensorboard")
_FILES = ("run.json", "flags.json", "flags.cfg", "start.json", "card.md", "metrics.jsonl", "trained.npz", "ledger.json", "ema.npz", "curves.png", "frostline.png", "predictions.png")  # fmt: skip


class RunDirectoryError(InputError):
    """A folder that cannot hold a run, or a resume that contradicts the run in it."""


def check_out(out: PathLike, *, resume: bool) -> None:
    """Raises InputError if ``out`` cannot be written, or holds a run and ``resume`` is False."""
    folder = pathlib.Path(out)
    writing.check_folder(out, attempt=False)
    held = [name for name in (*_FILES, *_FOLDERS) if os.path.lexists(folder / name)]
    if held and not resume:
        raise RunDirectoryError(
            f"out={out}: it holds a run ({', '.join(held)}); continue it with --resume, or choose another folder"
        )
    writing.check_folder(out)
    for name in held:
        if name in _FILES:
            writing.check_target(folder / name)
        else:
            writing.check_folder(folder / name)


def check_apart(out: PathLike, *, data: PathLike | None, model: PathLike | None) -> None:
    """Raises RunDirectoryError if a run would write among the files that it reads, or that the next run reads.

    ``data`` is a folder all of whose folders are read, and ``model`` that of a model; None where there is none.
    """
    folder = pathlib.Path(os.path.realpath(out))
    if data is not None and (place := pathlib.Path(os.path.realpath(data))) in (folder, *folder.parents):
        raise RunDirectoryError(
            f"out={out}: {'it is' if folder == place else 'it lies in'} the folder of the data, {data}, where the files of the run "
            "would be taken for data; choose a folder outside"
        )
    if model is not None and folder == pathlib.Path(os.path.realpath(model)):
        raise RunDirectoryError(f"out={out}: it is the folder of the model; choose another folder")


def check_no_run(out: PathLike) -> None:
    """Raises RunDirectoryError if a folder is that of a run, some of whose files would be replaced."""
    if any((pathlib.Path(out) / each).exists() for each in ("run.json", "flags.json")):
        raise RunDirectoryError(f"out={out}: it holds a run, whose files would be replaced; choose another folder")


def check_not_of_run(path: PathLike, *, name: str) -> None:
    """Raises RunDirectoryError, which names the argument ``name``, if a path is that of a file of a run."""
    path = pathlib.Path(path)
    folder = path.parent
    known = path.name in _FILES and any((folder / each).exists() for each in ("run.json", "flags.json"))
    if known or (folder.name == "checkpoints" and is_checkpoint(path.name)):
        raise RunDirectoryError(f"{name}={path}: it is a file of a run, and is not overwritten; choose another name")


def choose_out(model: str) -> pathlib.Path:
    """The folder of a run for which none is given: runs/DATE-TIME-MODEL, or the first name like it that is not taken."""
    name = model.replace(":", "-").replace("/", "-").split(",")[0]
    path = pathlib.Path(f"runs/{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}")
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.removesuffix(f'-{number - 1}')}-{number}")
    return path


@contextlib.contextmanager
def hold_run(out: pathlib.Path, *, resume: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Within this scope no other process can write this run; what killed ones left half written is removed.

    Raises:
        InUseError: another process writes it.
        InputError: as ``check_out``.
    """
    writing.check_folder(out)
    with hold_folder(out):
        check_out(out, resume=resume)
        swept = writing.sweep(out, _FILES.__contains__)
        if not (out / "checkpoints").is_symlink():
            swept += writing.sweep(out / "checkpoints", is_checkpoint)
        if swept:
            say(f"out: removed what a killed process had not finished: {join_words(swept)}")
        yield
