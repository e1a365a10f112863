"""Reads and writes files so that no file is ever half written and no hostile file is trusted.

engine.writing replaces files. Before an array of an ``.npz`` file is read, its size is checked against the file; pickled
objects are refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from engine.errors import FileError as FileError
from engine.reading import PathLike as PathLike
from engine.reading import check_memory, check_names, check_total, open_archive
from engine.writing import write_atomically as write_atomically

_BFLOAT16 = ":bfloat16"
_MOST_MEMBERS = 100_000


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: PathLike, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_npz(
    path: PathLike,
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    texts: Mapping[str, str] | None = None,
    packed: Mapping[str, str] | None = None,
) -> None:
    """Writes (name, array) pairs one at a time. A bfloat16 array is stored as uint16 under ``name:bfloat16``.

    ``texts`` are further members of the archive by name, such as a checkpoint's state; those of ``packed`` are compressed.
    """

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays:
                array = np.asarray(array)
                if array.dtype == ml_dtypes.bfloat16:
                    name, array = name + _BFLOAT16, array.view(np.uint16)
                with archive.open(_member(name + ".npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, text in (texts or {}).items():
                archive.writestr(_member(name), text)
            for name, text in (packed or {}).items():
                archive.writestr(_member(name), text, zipfile.ZIP_DEFLATED)

    write_atomically(path, write)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # a fixed date, so equal content gives equal bytes


class Npz:
    """An ``.npz`` file that is read one array at a time. It is a TensorSource (engine.porting.readers.source).

    Raises:
        FileError: the file does not exist, is not a zip archive or is truncated; or an array holds Python objects, or
            its header disagrees with the size of its data.
    """

    checksums = True

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        self._archive = open_archive(self.path, "an .npz file")
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        try:
            if (count := len(self._archive.infolist())) > _MOST_MEMBERS:
                raise FileError(f"{self.path}: {count:,} arrays are too many; the limit is {_MOST_MEMBERS:,}")
            for info in self._archive.infolist():
                if info.filename.endswith(".npy"):
                    name = info.filename.removesuffix(".npy").removesuffix(_BFLOAT16)
                    if name in self._members:
                        raise FileError(f"{self.path}: {name}: the file holds this array twice")
                    self._members[name] = info
                    self._headers[name] = self._header(name)
            check_names(self.path, self._members)
            check_total(self.path, (self._members[name].file_size for name in self._members))
        except FileError:
            self._archive.close()
            raise

    def names(self) -> list[str]:
        return list(self._members)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][0]

    def dtype(self, name: str) -> np.dtype[Any]:
        bfloat16 = self._members[name].filename.endswith(_BFLOAT16 + ".npy")
        return np.dtype(ml_dtypes.bfloat16) if bfloat16 else self._headers[name][1]

    def read(self, name: str) -> np.ndarray:
        with self._damage(name):
            check_memory(self.path, self._members[name].file_size, name)
        with self._damage(name), self._archive.open(self._members[name]) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):
                raise FileError(f"{self.path}: {name}: there are bytes after the end of the array")
        return array.view(self.dtype(name)) if self.dtype(name) != array.dtype else array

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Reads rows ``start`` to ``stop`` (exclusive) along axis 0, without checking the archive's checksum."""
        with self._damage(name):
            shape, stored = self._headers[name]
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: cannot read rows {start} to {stop} of shape {list(shape)}")
        row = math.prod(shape[1:], start=stored.itemsize)
        with self._damage(name), self._archive.open(self._members[name]) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if read(member)[1] and len(shape) > 1:  # Fortran order: rows are not contiguous
                return self.read(name)[start:stop].copy()
            check_memory(self.path, row * (stop - start), name)
            member.seek(start * row, os.SEEK_CUR)
            content = bytearray(row * (stop - start))
            done = 0
            while done < len(content):
                piece = member.read(min(1 << 20, len(content) - done))
                if not piece:
                    raise FileError(f"{self.path}: {name}: truncated")
                content[done : done + len(piece)] = piece
                done += len(piece)
        return np.frombuffer(content, stored).reshape(stop - start, *shape[1:]).view(self.dtype(name))

    def others(self) -> list[str]:
        """Returns the names of members that are not arrays."""
        return [info.filename for info in self._archive.infolist() if not info.filename.endswith(".npy")]

    def text(self, name: str) -> str:
        with self._damage(name):
            info = self._archive.getinfo(name)
            if info.file_size > 1 << 28:
                raise FileError(f"{self.path}: {name}: {info.file_size} bytes of text; the limit is {1 << 28}")
            return self._archive.read(info).decode()

    def close(self) -> None:
        self._archive.close()

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Reads an array's shape and dtype, and checks them against its size in the archive."""
        info = self._members[name]
        if info.compress_size > self.path.stat().st_size:
            raise FileError(f"{self.path}: {name}: claims {info.compress_size} bytes, more than the file has")
        with self._damage(name), self._archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            offset = member.tell()
        if dtype.hasobject:
            raise FileError(f"{self.path}: {name}: holds pickled Python objects, which are never loaded")
        if dtype.itemsize == 0:  # a header could claim any number of these
            raise FileError(f"{self.path}: {name}: its dtype {dtype.str} has elements of 0 bytes")
        if info.filename.endswith(_BFLOAT16 + ".npy") and dtype != np.dtype("<u2"):
            raise FileError(f"{self.path}: {name}{_BFLOAT16}: expected uint16 for bfloat16, but it holds {dtype.name}")
        size = math.prod(map(int, shape), start=dtype.itemsize)
        if size != info.file_size - offset:
            raise FileError(
                f"{self.path}: {name}: its header says shape {list(shape)} {dtype.name} ({size} bytes), "
                f"but the file holds {info.file_size - offset} bytes of data"
            )
        if info.file_size > info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else 1032):
            raise FileError(f"{self.path}: {name}: claims to unpack to more than deflate allows; the file is damaged")
        return tuple(int(length) for length in shape), dtype

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except KeyError:
            raise FileError(f"{self.path}: the file has no {name}") from None
        except MemoryError:
            raise FileError(f"{self.path}: {name}: there is not enough memory to read it") from None
        except Exception as error:  # zipfile, its decompressors and numpy raise a dozen types on damaged bytes
            raise FileError(
                f"{self.path}: {name}: damaged or truncated ({str(error) or type(error).__name__})"
            ) from None
