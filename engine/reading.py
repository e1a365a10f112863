"""What every reader of files asks first: is it a regular file, is what it declares small enough, is its archive whole?"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

from engine import host
from engine.errors import FileError
from engine.sizes import format_bytes

PathLike = str | os.PathLike[str]
_SMALL = 1 << 16  # bytes for which nobody asks what is free
MOST_NAME = 4096  # characters in the name of a tensor
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LOCAL = struct.Struct(
    "<4s2xHH4xIIIHH"
)  # signature, flags, method, CRC, sizes, lengths of the name and of extra fields


def describe_kind(mode: int) -> str:
    """What a file is by its mode (``os.stat_result.st_mode``), such as "a named pipe"."""
    return _KINDS.get(stat.S_IFMT(mode), "of another kind")


def check_regular(path: PathLike) -> None:
    """Raises FileError unless a path, after its links, is a regular file; it says what the path is instead."""
    if problem := _describe_problem(path):
        raise FileError(f"{os.fspath(path)}: {problem}")


def open_file(path: PathLike) -> io.BufferedReader[io.FileIO]:
    """Opens a regular file for reading; anything else, which might block or never end, is a FileError.

    Raises OSError if there is no such file, or it may not be read.
    """
    if stat.S_ISREG(os.stat(path).st_mode):
        file = io.BufferedReader(io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise FileError(f"{os.fspath(path)}: {_describe_problem(path) or 'it is not a regular file'}")


def read_file(path: PathLike, most: int) -> bytes:
    """Reads a regular file of at most ``most`` bytes. Raises FileError if it is larger, else as ``open_file``."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FileError(f"{os.fspath(path)}: the file is larger than {most:,} bytes, the limit for files of its kind")
    return content


def read_json(path: PathLike, most: int) -> Any:
    """Reads a JSON file of at most ``most`` bytes. Raises FileError if it is missing, larger or not valid."""
    try:
        return json.loads(read_file(path, most))
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: {error.strerror or error}") from None
    except FileError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise FileError(f"{os.fspath(path)}: the file is not valid JSON ({error})") from None


def check_memory(path: PathLike, size: int, what: str = "what it declares") -> None:
    """Raises FileError if so many bytes are more than this process may use (``engine.host.memory_limit``)."""
    if size > _SMALL and size > (limit := host.memory_limit()):
        raise FileError(
            f"{os.fspath(path)}: {what} takes {format_bytes(size)}, more than the {format_bytes(limit)} that may be used; "
            "--memory_limit sets another limit"
        )


def check_total(path: PathLike, sizes: Iterable[int]) -> None:
    """Raises FileError if a file's tensors together take more than its own bytes and more than this process may use.

    A file that is larger than the memory is read one tensor at a time; only one that grows as it is read may be a trap.
    """
    total = sum(sizes)
    if total > os.stat(path).st_size:
        check_memory(path, total, "all that it holds")


def check_names(path: PathLike, names: Iterable[str]) -> None:
    """Raises FileError if the name of a tensor is longer than any real one."""
    for name in names:
        if len(name) > MOST_NAME:
            raise FileError(
                f"{os.fspath(path)}: the name {name[:60]}... has {len(name):,} characters of at most {MOST_NAME:,}"
            )


def open_archive(path: PathLike, kind: str = "a zip archive") -> zipfile.ZipFile:
    """Opens a zip archive whose members fill it without a gap, each with its own header that says the same as the index.

    So no member is lost by a damaged index. Raises FileError if the file is not such an archive.
    """
    check_regular(path)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises half a dozen types on damaged bytes
        raise FileError(f"{os.fspath(path)}: not {kind}, or truncated ({error})") from None
    try:
        problem = _find_gap(archive)
    except Exception as error:
        problem = f"it is damaged ({str(error) or type(error).__name__})"
    if problem:
        archive.close()
        raise FileError(f"{os.fspath(path)}: {problem}")
    return archive


def _describe_problem(path: PathLike) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return (
            f"a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "there is no such file"
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode):
        return ""
    return f"it is {describe_kind(mode)}; expected a regular file"


def _find_gap(archive: zipfile.ZipFile) -> str:
    """What is wrong with the places and the own headers of the members; "" if nothing."""
    file, place = archive.fp, 0
    assert file is not None
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset != place:
            return f"{place:,} bytes from its start, no member of its index begins; members are lost or damaged"
        file.seek(place)
        mark, flags, method, crc, packed, size, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
        name, extra = file.read(name_length), file.read(extra_length)
        text = name.decode("utf-8" if flags & 0x800 else "cp437")
        if 0xFFFFFFFF in (packed, size):
            size, packed = _long_sizes(extra, size, packed)
        described_later = bool(flags & 8)
        same = described_later or (crc, packed, size) == (info.CRC, info.compress_size, info.file_size)
        if mark != b"PK\x03\x04" or text != info.orig_filename or method != info.compress_type or not same:
            return f"{info.filename}: its own header and the index of the archive differ; the file is damaged"
        place += _LOCAL.size + name_length + extra_length + info.compress_size
        if described_later:
            file.seek(place)
            marked = file.read(4) == b"PK\x07\x08"
            lengths = {marked * 4 + 12, marked * 4 + 20}
            starts = {each.header_offset for each in archive.infolist()} | {archive.start_dir}
            place = next((place + length for length in sorted(lengths) if place + length in starts), place)
    if place != archive.start_dir:
        return f"its index names no member at byte {place:,}; members are lost or damaged"
    return ""


def _long_sizes(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """The sizes in the extra field of a large member, where those in its header are all ones."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size = next(numbers, size) if size == 0xFFFFFFFF else size
            packed = next(numbers, packed) if packed == 0xFFFFFFFF else packed
        at += 4 + length
    return size, packed
