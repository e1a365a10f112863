"""Writes weights to a name-based TF1 checkpoint that the Saver of the old graph restores.

With a base, the output has every tensor of the base, stored as it was (order, slices, data files): new values where
there are any, and otherwise the same bits. So an unchanged round trip results in the same bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.checkpoints import writer
from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.checkpoints.writer import Entry, ExportError, Version
from compat_v1.graphs.saver_keys import Slice, Wanted
from engine.files import FileError, PathLike
from engine.porting.outward import Values
from engine.porting.readers import bundle_index, partitions
from engine.porting.readers.checkpoint_file import explaining_damage
from engine.porting.readers.locate import locate
from engine.porting.readers.source import TensorSource
from engine.text import join_some, nearest

_SLICED = 1 << 30  # bytes; a larger tensor of a base is written in slices
_CAN_SLICE = ("float32", "float64", "int32", "int64")  # what RestoreV2 can join from slices


@dataclass(frozen=True)
class Exported:
    """What was written: the files, data first; the tensors with new values, and those copied from the base."""

    files: tuple[str, ...]
    written: tuple[str, ...]
    copied: tuple[str, ...]


def export_checkpoint(
    values: Values | Mapping[str, np.ndarray],
    prefix: PathLike,
    *,
    base: PathLike | None = None,
    wanted: Sequence[Wanted] = (),
    version: Version = "V2",
) -> Exported:
    """Writes a checkpoint. Takes about 256 MiB of memory, or as much as the largest tensor and its copy.

    Raises ExportError if a wanted key is missing, a value differs from the base in shape or dtype, or writing fails;
    and FileError if the base cannot be read or is damaged. Nothing is written then.

    Args:
        values: the new values, named as by ``open_checkpoint(base)``, with partitioned variables whole.
        prefix: the prefix of the new checkpoint, without ``.index``.
        base: a checkpoint that has all other tensors.
        wanted: what the Saver of the old graph restores (``saver_keys.list_wanted``); none of it may be missing.
    """
    given = _Arrays(values) if isinstance(values, Mapping) else values
    if version not in ("V1", "V2"):
        raise ExportError(f"version={version!r} is not a valid version; expected V1 or V2")
    entries, written, copied = _without_base(given) if base is None else _with_base(given, base)
    keys = [*written, *copied]
    _check_wanted(wanted, keys, base)
    files = writer.write_checkpoint(prefix, entries, version=version)
    return Exported(tuple(map(str, files)), tuple(written), tuple(copied))


class _Arrays:
    """Arrays by name as ``Values``."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}

    def names(self) -> list[str]:
        return list(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._arrays[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


class _Given:
    """The new values, cut as the keys of the base are; the last one is kept for its next part."""

    def __init__(self, values: Values, base: TensorSource | None) -> None:
        self.values = values
        self._names = set(values.names())
        self._last: tuple[str, np.ndarray] | None = None
        self._parts: dict[str, tuple[str, tuple[slice, ...]]] = {}
        if base is None:
            return
        for merged, parts in partitions.find_parts(base).items():
            at = 0
            for name in parts.names:
                length = base.shape(name)[parts.axis]
                self._parts[name] = merged, (slice(None),) * parts.axis + (slice(at, at + length),)
                at += length

    def name_of(self, key: str) -> str | None:
        """Returns the value that a key of the base is or is a part of."""
        if key in self._names:
            return key
        merged, _ = self._parts.get(key, ("", ()))
        return merged if merged in self._names else None

    def check(self, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        name = self.name_of(key)
        if name is None:
            return
        have, kind = self.values.shape(name), self.values.dtype(name)
        part = np.broadcast_to(np.zeros((), bool), have)[self._place(key, name)].shape if have else ()
        if part != shape or kind != dtype:
            raise ExportError(
                f"{name}: got {list(have)} {kind.name}, but the base has {key} {list(shape)} {dtype.name}"
            )

    def read(self, key: str, within: tuple[slice, ...]) -> np.ndarray:
        name = self.name_of(key)
        assert name is not None
        if self._last is None or self._last[0] != name:
            self._last = None  # free the old value before the new one is read
            self._last = name, self.values.read(name)
        part = self._last[1][self._place(key, name)][within]
        return np.asarray(part, order="C")  # ascontiguousarray makes a scalar a vector

    def _place(self, key: str, name: str) -> tuple[slice, ...]:
        return () if key == name else self._parts[key][1]


def _without_base(values: Values) -> tuple[list[Entry], list[str], list[str]]:
    given = _Given(values, None)
    names = sorted(values.names())
    return [_new(given, name) for name in names], names, []


def _new(given: _Given, name: str) -> Entry:
    size = math.prod(given.values.shape(name)) * given.values.dtype(name).itemsize
    return Entry(name, "", size, 0, lambda: given.read(name, ()))


def _with_base(values: Values, base: PathLike) -> tuple[list[Entry], list[str], list[str]]:
    found = locate(base)
    if found is None:
        raise FileError(f"base={os.fspath(base)}: there is no such checkpoint")
    source = open_checkpoint(base, merge_parts=False)
    given = _Given(values, source)
    entries = _v1_entries(given, source) if found.files else _v2_entries(given, source, found.prefix)
    keys = list(dict.fromkeys(entry.key for entry in entries))
    written = [key for key in keys if given.name_of(key) is not None]
    used = {given.name_of(key) for key in written}
    more = sorted(name for name in values.names() if name not in used)
    entries += [_new(given, name) for name in more]
    return entries, [*written, *more], [key for key in keys if given.name_of(key) is None]


def _v1_entries(given: _Given, source: TensorSource) -> list[Entry]:
    entries = []
    for name in sorted(source.names()):
        shape, dtype = source.shape(name), source.dtype(name)
        given.check(name, shape, dtype)
        new = given.name_of(name) is not None
        make = partial(given.read, name, ()) if new else partial(source.read, name)
        entries.append(Entry(name, "", math.prod(shape) * dtype.itemsize, 0, make))
    return entries


def _v2_entries(given: _Given, source: TensorSource, prefix: str) -> list[Entry]:
    """Returns the tensors and slices of the base in the order of its data files."""
    placed = []
    for key, entry in bundle_index.read_index(prefix).entries.items():
        if key in source.names():
            given.check(key, entry.shape, source.dtype(key))
        pieces = entry.pieces
        if len(pieces) == 1 and pieces[0].size > _SLICED and entry.dtype.name in _CAN_SLICE and entry.shape[0] > 1:
            pieces = tuple(_cut(pieces[0]))
        for piece in pieces:
            part = Slice(entry.shape, piece.start, piece.shape)
            spec = "" if piece.shape == entry.shape and len(entry.pieces) == 1 else part.spec
            within = tuple(slice(start, start + n) for start, n in zip(piece.start, piece.shape, strict=True))
            if given.name_of(key) is not None:
                make = partial(given.read, key, within)
            elif pieces is not entry.pieces:
                make = partial(source.read_slice, key, within[0].start, within[0].stop)
            else:
                make = partial(_restore, prefix, key, spec, entry.dtype)
            place = piece.file.name, piece.offset, piece.size > 0  # an empty tensor has the offset of its successor
            placed.append((place, key, spec, piece.size, make))
    placed.sort(key=lambda each: (each[0], each[1]))
    groups = {file: number for number, file in enumerate(dict.fromkeys(each[0][0] for each in placed))}
    return [Entry(key, spec, size, groups[place[0]], make) for place, key, spec, size, make in placed]


def _cut(piece: bundle_index.Piece) -> list[bundle_index.Piece]:
    """Cuts a large tensor along its first axis into slices of the size of a shard."""
    rows, row = piece.shape[0], piece.size // piece.shape[0]
    each = max(1, writer.SHARD_BYTES // row)
    return [
        piece._replace(
            offset=piece.offset + start * row,
            size=min(each, rows - start) * row,
            start=(start, *piece.start[1:]),
            shape=(min(each, rows - start), *piece.shape[1:]),
        )
        for start in range(0, rows, each)
    ]


def _restore(prefix: str, key: str, spec: str, dtype: tf.DType) -> Any:
    """Reads one stored piece and verifies its checksum."""
    with explaining_damage(prefix, key), tf.device("CPU:0"):
        return tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[key], shape_and_slices=[spec], dtypes=[dtype])[0]


def _check_wanted(wanted: Sequence[Wanted], keys: Sequence[str], base: PathLike | None) -> None:
    missing = list(dict.fromkeys(each.key for each in wanted if each.key not in set(keys)))
    if missing:
        some = join_some(missing, most=8)
        hint = "; give a base that has them" if base is None else nearest(missing[0], list(keys))
        raise ExportError(f"the Saver of the old graph restores {len(missing)} tensors that are missing: {some}{hint}")
