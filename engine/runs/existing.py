"""Whether a folder can hold a new run: asked first of all, before TensorFlow is imported or data are opened."""

from __future__ import annotations

import pathlib

from engine.errors import InputError
from engine.files import PathLike

_OURS = ("run.json", "flags.json", "metrics.jsonl", "checkpoints", "trained.npz", "ledger.json", "ema.npz",
         "curves.png", "frostline.png", "tensorboard")  # fmt: skip


class RunDirectoryError(InputError):
    """A folder that cannot hold a run, or a resume that contradicts the run in it."""


def check_out(out: PathLike, *, resume: bool) -> None:
    """Raises RunDirectoryError if ``out`` is a file, or holds a run and ``resume`` is False."""
    folder = pathlib.Path(out)
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"out={out}: expected a folder, but this is a file")
    held = [name for name in _OURS if (folder / name).exists()]
    if held and not resume:
        raise RunDirectoryError(
            f"out={out}: it holds a run ({', '.join(held)}); continue it with --resume, or choose another folder"
        )
