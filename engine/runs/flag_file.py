"""The file flags.cfg: a run's flags as ``--flagfile`` reads them, which give the same bits again."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from engine.files import write_bytes

NAME = "flags.cfg"
_NOT_KEPT = ("out", "resume", "dry_run")  # about a call, not about what is trained
_FILTERS = ("train", "phase", "rates", "decay", "decays")  # in which a line break is a space


def write_flag_file(out: pathlib.Path, flags: Mapping[str, Any]) -> None:
    """Writes all flags of a run into its folder, those with default values too, so that a later version repeats it."""
    lines = [
        f"# This run again, to the same bits: frostline finetune --flagfile={out / NAME} --out=NEW_FOLDER",
        f"# Relative paths start from {pathlib.Path.cwd()}.",
    ]
    for name, value in flags.items():
        if name not in _NOT_KEPT:
            lines += as_lines(name, value)
    write_bytes(out / NAME, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


def as_lines(name: str, value: Any) -> list[str]:
    """The lines for a flag; none for None. A value that a line cannot hold becomes a comment.

    Example:
        >>> as_lines("steps", 3), as_lines("keep_best", False), as_lines("phase", ["steps=1", "steps=2"])
        (['--steps=3'], ['--nokeep_best'], ['--phase=steps=1', '--phase=steps=2'])
    """
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no{name}"]
    if isinstance(value, (list, tuple)):
        return [line for each in value for line in as_lines(name, each)]
    text = str(value)
    if name in _FILTERS:
        text = " ".join(text.splitlines()).strip()
    if text != text.strip() or len(text.splitlines()) > 1:
        return [f"# --{name}={text!r} cannot be written here; give it on the command line"]
    return [f"--{name}={text}"]
