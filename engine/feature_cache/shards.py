"""Tables of arrays in shards: files of a fixed number of rows, each written atomically and with its own checksum.

A shard consists of

    128 bytes   b"FRSTLINE", format u32, shard u32, bytes of the payload u64, key (SHA-256), SHA-256 of the payload, zeros
    payload     for each array the shard's rows [rows, *shape], little-endian, padded to 64 bytes

Opening a table verifies the checksums, which reads every file once. Rows are then read through memory maps, whose pages are
released at once, so the process stays small however many rows there are.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import files, writing
from engine.errors import FileError, InputError
from engine.reading import open_file

FORMAT = 1  # the format of the files, and part of a cache's key
_MAGIC, _HEADER, _ALIGN = b"FRSTLINE", 128, 64
_FIELDS = struct.Struct("<8sIIQ32s32s")
_CHECKSUM_AT = _FIELDS.size - 32


class ShardError(InputError):
    """A shard that is missing or damaged."""


@dataclass(frozen=True)
class Column:
    """One array of a shard: the ``shape`` and ``dtype`` of a row."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row(self) -> int:
        """The bytes of a row."""
        return int(self.dtype.itemsize * math.prod(self.shape))

    def bytes(self, rows: int) -> int:
        """The bytes of a number of rows in a file, with padding."""
        return -(-self.row * rows // _ALIGN) * _ALIGN


class Shards:
    """All shards of one table.

    Args:
        folder: the folder of the files; created when the first is written.
        key: 64 hexadecimal digits; shards of another key are rejected.
        columns: the arrays of a row.
        rows, each: the number of rows in the table, and in each shard but the last.

    Attributes:
        sums: shard -> the SHA-256 of its payload, for those that exist and are intact.
        damaged: the files that exist but were rejected, each with the reason.
    """

    def __init__(self, folder: pathlib.Path, key: str, columns: Sequence[Column], *, rows: int, each: int) -> None:
        self.folder, self.key, self.columns = folder, key, tuple(columns)
        self.rows, self.each = rows, each
        self.sums: dict[int, str] = {}
        self.damaged: list[str] = []
        self._maps: dict[int, mmap.mmap] = {}
        for shard in range(len(self)):
            self._verify(shard)

    def __len__(self) -> int:
        return -(-self.rows // self.each)

    def rows_of(self, shard: int) -> int:
        """The number of rows in a shard."""
        return min(self.each, self.rows - shard * self.each)

    def bytes_of(self, shard: int) -> int:
        """The size of a shard's file."""
        return _HEADER + sum(column.bytes(self.rows_of(shard)) for column in self.columns)

    @property
    def missing(self) -> list[int]:
        """The shards that do not exist or are damaged."""
        return [shard for shard in range(len(self)) if shard not in self.sums]

    def forget(self, shards: Iterable[int]) -> None:
        """Takes these shards for missing."""
        for shard in shards:
            self.sums.pop(shard, None)
            self._maps.pop(shard, None)

    def look_again(self) -> None:
        """Accepts the missing shards that other processes have written meanwhile."""
        for shard in self.missing:
            self._verify(shard)

    def write(self, shard: int, arrays: Sequence[np.ndarray]) -> None:
        """Writes a shard from one array [rows, *shape] per column."""
        rows, blocks = self.rows_of(shard), []
        for column, array in zip(self.columns, arrays, strict=True):
            little = np.ascontiguousarray(array, column.dtype.newbyteorder("<"))
            blocks += [little.reshape(-1).view(np.uint8).tobytes(), bytes(column.bytes(rows) - column.row * rows)]
        hasher = hashlib.sha256()
        for block in blocks:
            hasher.update(block)

        def write(file: Any) -> None:
            file.write(self._header(shard, hasher.digest()))
            for block in blocks:
                file.write(block)

        files.write_atomically(self._path(shard), write)
        self.sums[shard] = hasher.hexdigest()

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Reads rows by number, as one array [len(rows), *shape] per column; ShardError if their shard is missing."""
        shards, inside = np.divmod(rows, self.each)
        needed = np.unique(shards)
        if len(needed) == 1:  # one copy, not two
            return self._read(int(needed[0]), inside)
        found = [np.empty((len(rows), *column.shape), column.dtype) for column in self.columns]
        for shard in needed:
            here = np.flatnonzero(shards == shard)
            for array, values in zip(found, self._read(int(shard), inside[here]), strict=True):
                array[here] = values
        return found

    def sweep(self) -> None:
        """Removes the unfinished files of killed processes."""
        writing.sweep(self.folder, re.compile(r"shard-\d{6}|manifest\.json").fullmatch)

    def _header(self, shard: int, checksum: bytes) -> bytes:
        fields = (_MAGIC, FORMAT, shard, self.bytes_of(shard) - _HEADER, bytes.fromhex(self.key), checksum)
        return _FIELDS.pack(*fields).ljust(_HEADER, b"\0")

    def _path(self, shard: int) -> pathlib.Path:
        return self.folder / f"shard-{shard:06d}"

    def _verify(self, shard: int) -> None:
        """Accepts a shard whose size, header and checksum are right, or records why it is rejected."""
        path = self._path(shard)
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size != self.bytes_of(shard):
                    raise ShardError(f"it has {size} bytes instead of {self.bytes_of(shard)}")
                header, hasher = file.read(_HEADER), hashlib.sha256()
                magic, number, *_ = _FIELDS.unpack_from(header)
                if magic == _MAGIC and number != FORMAT:
                    raise ShardError(f"it has format {number}; this version of Frostline reads format {FORMAT}")
                while block := file.read(4 << 20):
                    hasher.update(block)
            right = self._header(shard, hasher.digest())
            if header[:_CHECKSUM_AT] != right[:_CHECKSUM_AT]:
                raise ShardError("its header belongs to another cache")
            if header != right:
                raise ShardError("its content does not match its checksum")
        except FileNotFoundError:
            return
        except (OSError, FileError, ShardError) as error:
            self.damaged.append(f"{path}: {error}")
            return
        self.sums[shard] = hasher.hexdigest()

    def _read(self, shard: int, rows: np.ndarray) -> list[np.ndarray]:
        """Copies a shard's rows and releases their pages: the kernel maps up to 64 KiB around each row."""
        found = [values[rows] for values in self._arrays(shard)]
        if hasattr(mmap, "MADV_DONTNEED"):
            self._maps[shard].madvise(mmap.MADV_DONTNEED)
        return found

    def _arrays(self, shard: int) -> list[np.ndarray]:
        """A shard's columns, as memory maps."""
        if shard not in self._maps:
            if shard not in self.sums:
                raise ShardError(f"{self._path(shard)} does not exist yet, or is damaged")
            with open_file(self._path(shard)) as file:
                if os.fstat(file.fileno()).st_size != self.bytes_of(shard):
                    raise ShardError(f"{self._path(shard)}: its size has changed since it was verified")
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows, offset, found = self.rows_of(shard), _HEADER, []
        for column in self.columns:
            count = rows * math.prod(column.shape)
            flat = np.frombuffer(self._maps[shard], column.dtype, count, offset)
            found.append(flat.reshape(rows, *column.shape))
            offset += column.bytes(rows)
        return found
