"""The flags of a run, kept in its folder from the start, so that a resume need not be told them again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from engine.errors import InputError
from engine.files import FileError, Npz, write_json
from engine.reading import read_file
from engine.training.checkpoint_names import list_checkpoints

NAME = "flags.json"
FINGERPRINT = "data (SHA-256)"  # among the settings of a run: the digest of its data
_FORMAT = 1
_LARGEST = 1 << 24  # bytes
_HERE_ONLY = ("out", "resume")  # about a call, not about the run


def write_flags(out: pathlib.Path, flags: Mapping[str, Any]) -> None:
    """Writes the flags of a run, as JSON values, into its folder."""
    kept = {name: value for name, value in flags.items() if name not in _HERE_ONLY}
    write_json(out / NAME, {"format": _FORMAT, "flags": kept})


def read_flags(out: pathlib.Path) -> dict[str, Any] | None:
    """The flags of the run in a folder; None if it holds none.

    A run of an earlier version has no file for them; the settings in its checkpoints are those that decide its course.
    Raises InputError if the file cannot be read.
    """
    path = out / NAME
    if path.is_file():
        try:
            found = json.loads(read_file(path, _LARGEST))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']!r}; expected {_FORMAT}")
            return {str(name): value for name, value in found["flags"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: damaged, or of another version ({error}); delete it and give the flags"
            ) from None
    for each in list_checkpoints(out / "checkpoints"):
        try:
            with Npz(each) as npz:
                body = json.loads(json.loads(npz.text("state.json"))["body"])
            return {name: value for name, value in body["state"]["settings"].items() if name != FINGERPRINT}
        except (FileError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # the resume itself says of a damaged checkpoint that it is
    return None


def list_contradictions(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a run and those of its resume, a line each.

    Data with the same fingerprint are the same wherever they lie.
    """
    lines = []
    for name in dict.fromkeys((*saved, *now)):
        one, other = saved.get(name), now.get(name)
        if one == other or (name == "data" and saved.get(FINGERPRINT) == now.get(FINGERPRINT) is not None):
            continue
        what = f"{name}, so the data have changed" if name == FINGERPRINT else f"--{name}"
        lines.append(f"  {what}: {one!r} in the checkpoint, {other!r} now")
    return lines
