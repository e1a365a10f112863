"""Parses the index of a V2 checkpoint, which says where the bytes of each tensor lie in which data file.

So a slice is one plain read (TensorFlow's reader returns whole tensors), and missing or short data files are found
early. Formats: tensorflow/core/lib/io/format.cc, tensor_bundle.proto, and lib/strings/ordered_code.cc (keys of slices).
The checksums of the table are verified by TensorFlow's reader, which the caller opens first.
"""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from engine.files import FileError

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last 8 bytes of every table
_FOOTER = 48
_MOST_BYTES = 1 << 30  # the index of a million tensors takes some 50 MB


class Piece(NamedTuple):
    """A stretch of bytes: a tensor, or the slice of one that begins at ``start`` in it and has ``shape``."""

    file: pathlib.Path
    offset: int
    size: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """One tensor of the index, with its whole shape; ``pieces`` are several for a partitioned variable."""

    dtype: tf.DType
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Index(NamedTuple):
    """The parsed index: ``entries`` by key, in the order of keys, and whether the data files are ``big_endian``."""

    entries: dict[str, Entry]
    big_endian: bool


def read_index(prefix: str) -> Index:
    """Parses ``PREFIX.index``; raises FileError if the file is not an index, or is inconsistent."""
    from tensorflow.core.protobuf import tensor_bundle_pb2

    path = pathlib.Path(f"{prefix}.index")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileError(
                f"{path}: {path.stat().st_size:,} bytes are too many for an index; it is limited to {_MOST_BYTES:,}"
            )
        rows = dict(_table(path.read_bytes()))
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(rows.pop(b"", b""))
        found = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in rows.items()}
        entries = {
            key.decode(): _entry(prefix, key, entry, found, header.num_shards)
            for key, entry in found.items()
            if not key.startswith(b"\0")  # slices are found through their tensors
        }
    except FileError:
        raise
    except Exception as error:  # struct, protobuf, unicode and index errors, depending on the damage
        raise FileError(f"{path}: the index is damaged ({str(error)[:200] or type(error).__name__})") from None
    return Index(entries, header.endianness == tensor_bundle_pb2.BundleHeaderProto.BIG)


def _entry(prefix: str, key: bytes, entry: Any, found: dict[bytes, Any], shards: int) -> Entry:
    shape = tuple(int(dim.size) for dim in entry.shape.dim)
    if any(length < 0 for length in shape):
        raise ValueError(f"{key.decode()}: shape {list(shape)}")
    pieces = []
    for part in entry.slices or [None]:
        begin, lengths, stored = (0,) * len(shape), shape, entry
        if part is not None:
            begin = tuple(int(extent.start) for extent in part.extent)
            lengths = tuple(
                int(extent.length) if extent.HasField("length") else full
                for extent, full in zip(part.extent, shape, strict=True)
            )
            stored = found[_slice_key(key, part)]
        if any(low < 0 or n < 0 or low + n > full for low, n, full in zip(begin, lengths, shape, strict=True)):
            raise ValueError(f"{key.decode()}: a slice of {list(lengths)} at {list(begin)} in {list(shape)}")
        if not 0 <= stored.shard_id < shards or stored.offset < 0 or stored.size < 0:
            raise ValueError(f"{key.decode()}: shard {stored.shard_id} of {shards}, {stored.size} bytes")
        file = pathlib.Path(f"{prefix}.data-{stored.shard_id:05d}-of-{shards:05d}")
        pieces.append(Piece(file, int(stored.offset), int(stored.size), begin, lengths))
    return Entry(tf.as_dtype(entry.dtype), shape, tuple(pieces))


def _slice_key(name: bytes, part: Any) -> bytes:
    """Encodes the key of a slice (EncodeTensorNameSlice): 0, the name, the rank, then start and length of each axis."""
    key = b"\0" + name.replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0") + b"\0\1"
    rank = len(part.extent)
    key += bytes([1, rank]) if rank else b"\0"
    for extent in part.extent:
        key += _signed(extent.start) + _signed(extent.length if extent.HasField("length") else -1)
    return key


def _signed(number: int) -> bytes:
    """Encodes a number of at least -1 (OrderedCode::WriteSignedNumIncreasing)."""
    if number == -1:
        return b"\x7f"
    width = next(n for n in range(1, 11) if number < 1 << (7 * n - 1))
    return (number | ((1 << width) - 1) << (7 * width)).to_bytes(width, "big")


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table in LevelDB's format."""
    if len(content) < _FOOTER or content[-8:] != MAGIC:
        raise ValueError("the magic number at its end is missing; the file is truncated or of another kind")
    footer = content[-_FOOTER:]
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    for _, handle in _block(content, footer, at):
        yield from _block(content, handle, 0)


def _block(content: bytes, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    offset, at = _varint(handle, at)
    size, _ = _varint(handle, at)
    if offset + size + 5 > len(content) or size < 4:
        raise ValueError("a block lies outside the file")
    rows, kind = content[offset : offset + size], content[offset + size]
    if kind == 1:  # compressed with Snappy, as some TensorFlow builds write it
        rows = _unpacked(rows)
    elif kind != 0:
        raise ValueError(f"a block has the unknown compression {kind}")
    (restarts,) = struct.unpack_from("<I", rows, len(rows) - 4)
    end, at, key = len(rows) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _varint(rows, at)
        rest, at = _varint(rows, at)
        length, at = _varint(rows, at)
        if shared > len(key) or at + rest + length > end:
            raise ValueError("a row lies outside its block")
        key = key[:shared] + rows[at : at + rest]
        yield key, rows[at + rest : at + rest + length]
        at += rest + length


def _unpacked(packed: bytes) -> bytes:
    """Unpacks a Snappy block (github.com/google/snappy, format_description.txt)."""
    size, at = _varint(packed, 0)
    content = bytearray()
    while at < len(packed):
        tag = packed[at]
        at += 1
        if tag & 3 == 0:  # bytes as they are
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length, at = int.from_bytes(packed[at : at + width], "little"), at + width
            content += packed[at : at + length + 1]
            at += length + 1
            continue
        if tag & 3 == 1:
            length, back, at = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | packed[at], at + 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, back, at = (tag >> 2) + 1, int.from_bytes(packed[at : at + width], "little"), at + width
        if not 0 < back <= len(content):
            raise ValueError("a packed block refers to bytes before its beginning")
        for _ in range(length):  # source and destination may overlap
            content.append(content[-back])
    if len(content) != size:
        raise ValueError("a packed block does not have the size that it declares")
    return bytes(content)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        byte = content[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")
