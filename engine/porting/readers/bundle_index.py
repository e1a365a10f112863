"""The index of a V2 checkpoint: where in which data file the bytes of each tensor lie.

TensorFlow's reader gives whole tensors; a slice costs it the whole tensor too. Knowing the places, a
slice is one plain read, the parts of a partitioned variable can be told, and a data file that is
missing or too short is found without reading it. Formats: tensorflow/core/lib/io/format.cc (the table),
tensor_bundle.proto (its values), lib/strings/ordered_code.cc (keys of slices). Checksums of the table
are left to TensorFlow's reader, which the caller opens first.
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
_MOST_BYTES = 1 << 30  # an index of a million tensors has some 50 MB


class Piece(NamedTuple):
    """One stretch of bytes: a whole tensor, or a slice of one.

    Attributes:
        file: the data file.
        offset, size: in bytes.
        start, shape: where in the tensor its elements lie.
    """

    file: pathlib.Path
    offset: int
    size: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """One tensor of the index.

    Attributes:
        dtype, shape: of the whole tensor.
        pieces: what it is stored as; several for a partitioned variable.
    """

    dtype: tf.DType
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Index(NamedTuple):
    """Attributes: entries: key -> entry, in the order of keys. big_endian: byte order of the data files."""

    entries: dict[str, Entry]
    big_endian: bool


def read(prefix: str) -> Index:
    """Parses ``PREFIX.index``.

    Raises:
        FileError: it is no index, or says what cannot be.
    """
    from tensorflow.core.protobuf import tensor_bundle_pb2

    path = pathlib.Path(f"{prefix}.index")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileError(f"{path}: {path.stat().st_size:,} bytes are not believable for an index")
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
    except Exception as error:  # struct, protobuf, unicode and index errors: by the kind of damage
        raise FileError(f"{path}: a damaged index ({str(error)[:200] or type(error).__name__})") from None
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
    """The key of a slice (EncodeTensorNameSlice): 0, the name, the rank, then start and length of each axis."""
    key = b"\0" + name.replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0") + b"\0\1"
    rank = len(part.extent)
    key += bytes([1, rank]) if rank else b"\0"
    for extent in part.extent:
        key += _signed(extent.start) + _signed(extent.length if extent.HasField("length") else -1)
    return key


def _signed(number: int) -> bytes:
    """OrderedCode::WriteSignedNumIncreasing for -1 and up."""
    if number == -1:
        return b"\x7f"
    width = next(n for n in range(1, 11) if number < 1 << (7 * n - 1))
    return (number | ((1 << width) - 1) << (7 * width)).to_bytes(width, "big")


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table (LevelDB's format)."""
    if len(content) < _FOOTER or content[-8:] != MAGIC:
        raise ValueError("the magic number at its end is missing; it is truncated, or something else")
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
    if kind == 1:  # as Google's own machines write it
        rows = _unpacked(rows)
    elif kind != 0:
        raise ValueError(f"a block of an unknown kind ({kind})")
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
    """The content of a Snappy block (github.com/google/snappy, format_description.txt)."""
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
            raise ValueError("a packed block that refers to what is not there")
        for _ in range(length):  # what is copied may overlap what it makes
            content.append(content[-back])
    if len(content) != size:
        raise ValueError("a packed block of another size than it says")
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
