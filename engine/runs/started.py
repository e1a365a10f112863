"""The file start.json: digests of the values from which a run started, for the variables that it may change.

A delta keeps them (engine.porting.deltas.record), also if the run was resumed by another process in between.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection

from engine.files import write_json
from engine.porting.deltas.record import find_digits
from engine.reading import read_file
from engine.selection.variables import ModelVariables

NAME = "start.json"
_FORMAT = 1
_LARGEST = 1 << 26  # bytes


def write_start(out: pathlib.Path, variables: ModelVariables, changing: Collection[str]) -> None:
    """Writes the digests of the present values of the variables with these paths."""
    digits = {entry.path: find_digits(entry) for entry in variables if entry.path in changing}
    write_json(out / NAME, {"format": _FORMAT, "digests": digits})


def read_start(out: pathlib.Path) -> dict[str, str]:
    """The digests by path; empty for a run that an older version started, or whose file is damaged."""
    try:
        found = json.loads(read_file(out / NAME, _LARGEST))
        if found["format"] != _FORMAT:
            return {}
        return {str(path): str(digits) for path, digits in found["digests"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
