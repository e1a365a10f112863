"""Puts the files of a checkpoint in the place of an older one of the same name, which is whole at any moment: old or new.

The index of a V2 checkpoint says how many data files there are, and that number is in their names. So new data files can
lie beside the old ones as long as their number is another one, and renaming the index decides. If the numbers are equal,
the new checkpoint first appears with the number of one file more (an empty one), and then under its own names.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import struct
from collections.abc import Sequence

from engine import writing
from engine.errors import InputError
from engine.files import FileError
from engine.porting.readers import bundle_index

_UNCOMPRESSED, _SHORT, _FOOTER = 0, 0x7F, 48  # no compression; the largest varint of one byte; bytes


class InTheWayError(InputError):
    """A checkpoint of this name cannot be replaced as a whole. The message says what is in the way."""


def check_form(prefix: str, *, version: str, shards: int = 1) -> None:
    """Raises InTheWayError if a new checkpoint and one that exists under the prefix would be taken for one another.

    A reader prefers the V2 format, and takes all files of a V1 checkpoint together.
    """
    if version == "V2":
        return
    folder, name = pathlib.Path(os.path.dirname(prefix) or "."), os.path.basename(prefix)
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    parts = re.compile(rf"{re.escape(name)}-\d{{5}}-of-\d{{5}}")
    wrong = [each for each in there if each == f"{name}.index" or parts.fullmatch(each)]
    if wrong or (shards > 1 and name in there):
        raise InTheWayError(
            f"{prefix}: {(wrong or [name])[0]} belongs to another checkpoint of this name, which a V1 checkpoint cannot "
            "replace as a whole; remove it, or choose another prefix"
        )


def move_in(
    made: Sequence[tuple[pathlib.Path, str]], folder: pathlib.Path, name: str, *, place: pathlib.Path
) -> list[pathlib.Path]:
    """Renames files that are on disk already to their final names in ``folder``; returns these, in the same order.

    Args:
        made: each file with its final name; the data files in order, and then the index of a V2 checkpoint.
        name: the name of the checkpoint. Data files of an older one are removed at the end.
        place: a temporary folder on the same disk.
    """
    for _, final in made:
        writing.check_target(folder / final)
    *data, (index, index_name) = made
    if index_name == f"{name}.index":
        if _count_shards(folder, name) == len(data):
            _move_in_between([file for file, _ in data], index, folder, name, place)
        _rename([*data, (index, index_name)], folder)
        _remove_others(folder, name, keep={final for _, final in data})
    else:
        _rename(made, folder)
    return [folder / final for _, final in made]


def renumber_shards(index: bytes, shards: int) -> bytes:
    """The bytes of an index as if there were so many data files; ValueError if its header is not as TensorFlow writes it."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import tensor_bundle_pb2

    # the first row: 0 bytes shared, 0 bytes of key, the length of the value, the value
    length = index[2]
    try:
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(index[3 : 3 + length])
    except DecodeError as error:
        raise ValueError(f"the header of the index is damaged ({error})") from None
    header.num_shards = shards
    changed, size = header.SerializeToString(), _first_block_size(index)
    if index[:2] != b"\0\0" or length > _SHORT or len(changed) != length or index[size] != _UNCOMPRESSED:
        raise ValueError("the header of the index cannot be changed in place")
    block = index[:3] + changed + index[3 + length : size + 1]
    return block + struct.pack("<I", _mask(_crc32c(block))) + index[size + 5 :]


def _move_in_between(
    data: Sequence[pathlib.Path], index: pathlib.Path, folder: pathlib.Path, name: str, place: pathlib.Path
) -> None:
    """Makes the new checkpoint valid with a number of data files that the old one does not have."""
    count = len(data) + 1
    moved = [(place / f"link{number}", f"{name}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    for file, (link, _) in zip(data, moved, strict=False):
        try:
            os.link(file, link)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, link)
            writing.flush(link)
    moved[-1][0].touch()
    other = place / "other.index"
    try:
        other.write_bytes(renumber_shards(index.read_bytes(), count))
    except ValueError as error:
        raise InTheWayError(f"{folder / name}: {error}; choose another prefix") from None
    writing.flush(other)
    for _, final in moved:
        writing.check_target(folder / final)
    _rename([*moved, (other, f"{name}.index")], folder)


def _rename(made: Sequence[tuple[pathlib.Path, str]], folder: pathlib.Path) -> None:
    """Renames files, the last one when all others are on disk under their names."""
    for file, final in made[:-1]:
        os.replace(file, folder / final)
    writing.flush(folder)
    file, final = made[-1]
    os.replace(file, folder / final)
    writing.flush(folder)


def _remove_others(folder: pathlib.Path, name: str, *, keep: set[str]) -> None:
    ours = re.compile(rf"{re.escape(name)}\.data-\d{{5}}-of-\d{{5}}")
    for old in folder.iterdir():
        if ours.fullmatch(old.name) and old.name not in keep:
            with contextlib.suppress(OSError):  # a folder of that name is not ours
                old.unlink()


def _count_shards(folder: pathlib.Path, name: str) -> int | None:
    """The number of data files that an existing index names; None if there is none, or it is damaged."""
    try:
        entries = bundle_index.read_index(f"{folder}/{name}").entries
    except FileError:
        return None
    pieces = [piece for entry in entries.values() for piece in entry.pieces]
    return int(pieces[0].file.name.rpartition("-of-")[2]) if pieces else None


def _first_block_size(index: bytes) -> int:
    """The size of the first block of a table in LevelDB's format: its rows and restarts, without type and checksum."""
    *_, at, _ = _read_varints(index[-_FOOTER:], 0, 4)  # the blocks of metadata and of handles, each (offset, size)
    *_, rest, _ = _read_varints(index, at, 3)
    offset, size = _read_varints(index, at + 3 + rest, 2)
    if offset or rest > _SHORT:
        raise ValueError("the index does not begin with its first block")
    return size


def _read_varints(content: bytes, at: int, count: int) -> list[int]:
    found = []
    for _ in range(count):
        value = shift = 0
        while True:
            byte = content[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        found.append(value)
    return found


def _crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_table_entry(value) for value in range(256)]


def _mask(checksum: int) -> int:
    """A checksum as LevelDB stores it (util/crc32c.h)."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
