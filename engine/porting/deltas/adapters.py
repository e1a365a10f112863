"""What a delta says of the adapters of its model (engine.models.adapters), in the text ``adapters.json`` beside its arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass

from engine.files import FileError, Npz, PathLike

_MEMBER = "adapters.json"
_FORMAT = 1


@dataclass(frozen=True)
class AdaptersRecord:
    """The adapters of a run: their text form, and the seed of their first values."""

    text: str
    seed: int


def as_texts(record: AdaptersRecord | None) -> dict[str, str]:
    """The text for ``engine.files.write_npz`` that keeps the record; empty without adapters."""
    if record is None:
        return {}
    return {_MEMBER: json.dumps({"format": _FORMAT, "adapt": record.text, "seed": record.seed}, ensure_ascii=False)}


def read(npz: Npz) -> AdaptersRecord | None:
    """What a file says of adapters; None if it says nothing. Raises FileError if that is damaged, or of another version."""
    if _MEMBER not in npz.others():
        return None
    try:
        body = json.loads(npz.text(_MEMBER))
        if body["format"] != _FORMAT:
            raise FileError(f"{npz.path}: {_MEMBER} has format {body['format']!r}; this version reads {_FORMAT}")
        text, seed = str(body["adapt"]), int(body["seed"])
        return AdaptersRecord(text, seed)
    except FileError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{npz.path}: {_MEMBER}: damaged ({str(error)[:100]})") from None


def read_at(path: PathLike) -> AdaptersRecord | None:
    """What a delta at a path says of adapters; raises as ``read``, or FileError if it is not an .npz file."""
    with Npz(path) as npz:
        return read(npz)
