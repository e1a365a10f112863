"""Finds the checkpoint that a path means: by a prefix, one of its files, a folder or a ``checkpoint`` file."""

from __future__ import annotations

import os
import pathlib
import re
from typing import NamedTuple

from engine.files import FileError, PathLike
from engine.porting.readers.bundle_index import MAGIC
from engine.reading import open_file
from engine.text import join_some

_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_STATE = re.compile(r'^model_checkpoint_path: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_LFS = b"version https://git-lfs"


class Found(NamedTuple):
    """The place of a checkpoint.

    The prefix is as TensorFlow expects it, and ends in ``/`` if the checkpoint has no name. ``files`` are all shards in
    order for the V1 format, () for V2.
    """

    prefix: str
    files: tuple[pathlib.Path, ...] = ()


def locate(path: PathLike) -> Found | None:
    """Finds the checkpoint that a path means; None if there is none.

    The path is a prefix (also ``DIR/`` for a checkpoint without a name); a file of a checkpoint (index, data, meta or
    V1 shard); a folder with a single checkpoint, or with one that its ``checkpoint`` file chooses; the folder of a
    SavedModel; or a ``checkpoint`` file. If that file names a folder, which may be its author's, only the last
    component counts. Raises FileError if there are several checkpoints and no choice, V1 shards are missing, or a
    checkpoint is damaged.
    """
    text = os.fspath(path)
    if text.endswith("/") and pathlib.Path(f"{text}.index").is_file():
        return Found(text)
    place = pathlib.Path(text)
    if place.is_dir():
        return _in_folder(place)
    if place.name == "checkpoint" and place.is_file() and read_state(place.parent) is not None:
        return _in_folder(place.parent)
    found = _at(text) or _at(_PART.sub("", text))
    if found is None:
        _check_damage(place)
    return found


def _at(prefix: str) -> Found | None:
    """Returns the checkpoint with exactly this prefix."""
    file = pathlib.Path(prefix)
    if pathlib.Path(f"{prefix}.index").is_file():  # the newer format first, as in TensorFlow
        return Found(prefix)
    name = _SHARD.sub("", file.name)
    shards = _shards(file.parent, name)
    if shards and (name == file.name or file in shards) and all(map(_is_table, shards)):
        return Found(str(file.parent / name), shards)
    return Found(prefix, (file,)) if _is_table(file) and not _PART.search(prefix) else None


def _shards(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, ...]:
    """Returns the files of a sharded V1 checkpoint, () if there are none. Raises FileError if some are missing."""
    numbers: dict[int, set[int]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        match = _SHARD.search(file.name)
        if match and file.name[: match.start()] == name:
            numbers.setdefault(int(match[2]), set()).add(int(match[1]))
    if not numbers:
        return ()
    if len(numbers) > 1:
        raise FileError(
            f"{folder / name}: the folder has shards of checkpoints with {' and '.join(map(str, sorted(numbers)))} shards"
        )
    ((count, present),) = numbers.items()
    if missing := [number for number in range(count) if number not in present]:
        raise FileError(
            f"{folder / name}: {len(missing)} of its {count} shards are missing, such as "
            f"{name}-{missing[0]:05d}-of-{count:05d}"
        )
    return tuple(folder / f"{name}-{number:05d}-of-{count:05d}" for number in range(count))


def _in_folder(folder: pathlib.Path) -> Found | None:
    for place in (folder, folder / "variables"):  # a SavedModel has the second
        if not place.is_dir():
            continue
        prefixes = list_prefixes(place)
        chosen = read_state(place)
        if chosen is not None:
            chosen = re.split(r"[/\\]", chosen)[-1]  # its folder may be its author's
            prefixes = [prefix for prefix in prefixes if os.path.basename(prefix) == chosen] or prefixes
        if len(prefixes) == 1 and (found := _at(prefixes[0])) is not None:
            return found
        if prefixes:
            names = join_some([os.path.basename(prefix) or ".index" for prefix in prefixes])
            hint = f"; its file `checkpoint` names {chosen}, which is not there" if chosen else ""
            raise FileError(f"{folder}: the folder holds {len(prefixes)} checkpoints ({names}){hint}; name one of them")
    return None


def list_prefixes(folder: pathlib.Path) -> list[str]:
    """Returns the prefixes of the checkpoints in a folder, of both formats, sorted by name."""
    prefixes: dict[str, None] = {}
    for file in sorted(folder.iterdir()):
        if file.name.endswith(".index") and file.is_file():
            prefixes[f"{folder}/{file.name.removesuffix('.index')}"] = None
        elif not _PART.search(file.name) and _is_table(file):
            prefixes[f"{folder}/{_SHARD.sub('', file.name)}"] = None
    return list(prefixes)


def read_state(folder: pathlib.Path) -> str | None:
    """Returns the prefix in the ``checkpoint`` file of a folder as it is written there."""
    try:
        with open_file(folder / "checkpoint") as file:
            match = _STATE.search(file.read(4096).decode(errors="replace"))
    except (OSError, FileError):
        return None
    return match[1] if match else None


def _is_table(file: pathlib.Path) -> bool:
    """Whether a file ends as TensorFlow's tables do."""
    try:
        with open_file(file) as opened:
            opened.seek(-len(MAGIC), os.SEEK_END)
            return opened.read() == MAGIC
    except (OSError, FileError):
        return False


def _check_damage(file: pathlib.Path) -> None:
    """Raises FileError for a file that is not a checkpoint but seems to have been one."""
    try:
        with open_file(file) as opened:
            start = opened.read(64)
    except (OSError, FileError):
        return
    if start.startswith(_LFS):
        raise FileError(f"{file}: this is a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`")
    if start[:2] == b"\0\0" and (_SHARD.search(file.name) or ".ckpt" in file.name):
        raise FileError(f"{file}: this is a V1 checkpoint without its end; it is truncated")
