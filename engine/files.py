"""Reading and writing files so that nothing is half written and nothing hostile is believed.

Writes go to a temporary name in the same folder, are flushed to disk and renamed. Reads of ``.npz``
check every size against the file before memory is allocated, and refuse pickled objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from engine.errors import InputError

PathLike = str | os.PathLike[str]
_BFLOAT16 = ":bfloat16"


class FileError(InputError):
    """A file that is missing, damaged or not what it should be. The message names it."""


def write_atomically(path: PathLike, write: Callable[[IO[bytes]], None]) -> None:
    """Calls ``write`` with a binary file; ``path`` appears whole, or stays as it was."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_bytes(path: PathLike, content: bytes) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomically(path, write)


def write_json(path: PathLike, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_npz(
    path: PathLike, arrays: Iterable[tuple[str, np.ndarray]], *, texts: Mapping[str, str] | None = None
) -> None:
    """Writes arrays one at a time. bfloat16 is stored as uint16 under ``name:bfloat16``.

    ``texts`` are further members of the archive (name -> text), such as a checkpoint's state.
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

    write_atomically(path, write)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # equal content gives equal bytes


class Npz:
    """An ``.npz`` file, opened for reading one array at a time. A TensorSource (engine.porting.readers.source).

    Raises:
        FileError: not there, no zip archive, truncated, an array with Python objects, or a header
            that promises another size than the file has.
    """

    checksums = True

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileError(f"{self.path}: there is no such file")
        try:
            self._archive = zipfile.ZipFile(self.path)
        except Exception as error:  # zipfile raises half a dozen types on damaged bytes
            raise FileError(f"{self.path}: no .npz file, or a truncated one ({error})") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        try:
            for info in self._archive.infolist():
                if info.filename.endswith(".npy"):
                    name = info.filename.removesuffix(".npy").removesuffix(_BFLOAT16)
                    if name in self._members:
                        raise FileError(f"{self.path}: {name}: the file holds it twice")
                    self._members[name] = info
                    self._headers[name] = self._header(name)
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
        with self._damage(name), self._archive.open(self._members[name]) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):
                raise FileError(f"{self.path}: {name}: bytes follow the array")
        return array.view(self.dtype(name)) if self.dtype(name) != array.dtype else array

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` along axis 0. Not checked against the archive's checksum."""
        with self._damage(name):
            shape, stored = self._headers[name]
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        row = stored.itemsize
        for length in shape[1:]:
            row *= length
        with self._damage(name), self._archive.open(self._members[name]) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if read(member)[1] and len(shape) > 1:  # Fortran order: rows do not lie together
                return self.read(name)[start:stop].copy()
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
        """Members that are no arrays."""
        return [info.filename for info in self._archive.infolist() if not info.filename.endswith(".npy")]

    def text(self, name: str) -> str:
        with self._damage(name):
            info = self._archive.getinfo(name)
            if info.file_size > 1 << 28:
                raise FileError(f"{self.path}: {name}: {info.file_size} bytes of text are not believable")
            return self._archive.read(info).decode()

    def close(self) -> None:
        self._archive.close()

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array, believed only when they agree with the size in the archive."""
        info = self._members[name]
        if info.compress_size > self.path.stat().st_size:
            raise FileError(f"{self.path}: {name}: its {info.compress_size} bytes are more than the file has")
        with self._damage(name), self._archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            offset = member.tell()
        if dtype.hasobject:
            raise FileError(f"{self.path}: {name}: holds pickled Python objects; these are never loaded")
        if dtype.itemsize == 0:  # any number of these fits into no bytes at all
            raise FileError(f"{self.path}: {name}: is of {dtype.str}, elements without bytes")
        size = dtype.itemsize
        for length in shape:
            size *= int(length)
        if size != info.file_size - offset:
            raise FileError(
                f"{self.path}: {name}: its header says shape {list(shape)} {dtype.name} ({size} bytes), "
                f"the file has {info.file_size - offset} bytes of it"
            )
        if info.file_size > info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else 1032):
            raise FileError(f"{self.path}: {name}: unpacks to more than deflate can hold; the file is damaged")
        return tuple(int(length) for length in shape), dtype

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except KeyError:
            raise FileError(f"{self.path}: it has no {name}") from None
        except Exception as error:  # zipfile, its decompressors and numpy raise a dozen types on damaged bytes
            raise FileError(
                f"{self.path}: {name}: damaged or truncated ({str(error) or type(error).__name__})"
            ) from None
