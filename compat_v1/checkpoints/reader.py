"""Opens legacy checkpoints as a TensorSource, also those of which data files are missing or damaged."""

from __future__ import annotations

import pathlib

from engine.files import FileError, PathLike
from engine.porting.frozen_writer import SUFFIXES
from engine.porting.readers.locate import locate
from engine.porting.readers.source import TensorSource, open_found, open_tensors


def open_checkpoint(path: PathLike, *, merge_parts: bool = True) -> TensorSource:
    """Opens a checkpoint of TensorFlow 1 (or 2), by any path that means one (engine.porting.readers.locate).

    Names, shapes and dtypes are available even if data files are missing or damaged: the error comes when a tensor is
    read, and ``engine.porting.readers.verify.find_damage`` finds all such tensors. ``merge_parts`` joins
    ``NAME/part_0``, ``NAME/part_1`` and so on into one tensor NAME (engine.porting.readers.partitions); False leaves
    every key as it is stored. Raises FileError if there is no checkpoint, there are several without a choice, or the
    index is damaged.
    """
    found = locate(path)
    if found is None:
        place = pathlib.Path(path)
        name = place.name
        raise FileError(
            f"{place}: the folder holds no checkpoint"
            if place.is_dir()
            else f"{place}: there is no checkpoint; expected {name}.index (V2), or {name} or {name}-00000-of-NNNNN (V1)"
        )
    return open_found(found, whole=False, merge_parts=merge_parts)


def open_base(path: PathLike) -> TensorSource:
    """Opens what weights are written back to: a checkpoint as ``open_checkpoint`` does, or a frozen graph."""
    place = pathlib.Path(path)
    return open_tensors(place) if place.suffix in SUFFIXES and place.is_file() else open_checkpoint(path)


def open_source(path: PathLike, *, merge_parts: bool = True) -> TensorSource:
    """Opens weights of any kind: a checkpoint as ``open_checkpoint`` does, else as ``engine.porting.open_tensors``."""
    return open_tensors(path, whole=False, merge_parts=merge_parts)
