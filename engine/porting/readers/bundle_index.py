"""Parses the index of a V2 checkpoint, which says where the bytes of each tensor lie in which data file.

So a slice is one plain read (TensorFlow's reader returns whole tensors), and missing or short data files are found
early. TensorFlow's reader ends the process at a shape that cannot be, or takes the memory that an index asks for, so it
is given only files that have passed here. Formats: tensorflow/core/lib/io/format.cc, tensor_bundle.proto, and lib/strings/ordered_code.cc (keys of slices).
The checksums of the table are verified by TensorFlow's reader, which the caller opens next.
"""

from __future__ import annotations

import itertools
import mmap
import pathlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from engine.files import FileError
from engine.reading import check_names, open_file, read_file

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last 8 bytes of every table
_FOOTER = 48
_MOST_BYTES = 1 << 30  # the index of a million tensors takes some 50 MB
_MOST_RANK = 254  # of TensorFlow
_MOST_SLICES = 1024  # of one tensor that is cut along several axes


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
        rows = _sorted_rows(_table(read_file(path, _MOST_BYTES)))
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(rows.pop(b"", b""))
        found = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in rows.items()}
        for key, entry in found.items():
            _check_tensor(key, entry.shape, entry.dtype)
        entries = {
            key.decode(): _entry(prefix, key, entry, found, header.num_shards)
            for key, entry in found.items()
            if not key.startswith(b"\0")  # slices are found through their tensors
        }
        check_names(path, entries)
        _check_places(entries)
    except FileError:
        raise
    except Exception as error:  # struct, protobuf, unicode and index errors, depending on the damage
        raise FileError(f"{path}: the index is damaged ({str(error)[:200] or type(error).__name__})") from None
    return Index(entries, header.endianness == tensor_bundle_pb2.BundleHeaderProto.BIG)


def _entry(prefix: str, key: bytes, entry: Any, found: dict[bytes, Any], shards: int) -> Entry:
    shape = tuple(int(dim.size) for dim in entry.shape.dim)
    pieces: list[Piece] = []
    for part in entry.slices or [None]:
        begin, lengths, stored = (0,) * len(shape), shape, entry
        if part is not None:
            begin = tuple(int(extent.start) for extent in part.extent)
            lengths = tuple(
                int(extent.length) if extent.HasField("length") else full
                for extent, full in zip(part.extent, shape, strict=True)
            )
            stored = found[_slice_key(key, part)]
            if tuple(int(dim.size) for dim in stored.shape.dim) != lengths or stored.dtype != entry.dtype:
                raise ValueError(f"{key.decode()}: the slice of {list(lengths)} is stored as another tensor")
        if any(low < 0 or n < 0 or low + n > full for low, n, full in zip(begin, lengths, shape, strict=True)):
            raise ValueError(f"{key.decode()}: a slice of {list(lengths)} at {list(begin)} in {list(shape)}")
        if not 0 <= stored.shard_id < shards or stored.offset < 0 or stored.size < 0:
            raise ValueError(f"{key.decode()}: shard {stored.shard_id} of {shards}, {stored.size} bytes")
        file = pathlib.Path(f"{prefix}.data-{stored.shard_id:05d}-of-{shards:05d}")
        pieces.append(Piece(file, int(stored.offset), int(stored.size), begin, lengths))
    _check_cover(key.decode(), shape, pieces)
    return Entry(tf.as_dtype(entry.dtype), shape, tuple(pieces))


def check_v1(path: pathlib.Path) -> None:
    """Raises FileError unless the shapes and dtypes in a file of a V1 checkpoint are some that TensorFlow can hold."""
    from tensorflow.core.util import saved_tensor_slice_pb2

    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            key, value = next(_table(content))
        if key:
            raise ValueError("it does not begin with the description of its tensors")
        tensors = saved_tensor_slice_pb2.SavedTensorSlices.FromString(value).meta.tensor
        for tensor in tensors:
            _check_tensor(tensor.name.encode(), tensor.shape, tensor.type)
            for part in tensor.slice:
                if any(extent.start < 0 or extent.length < 0 for extent in part.extent):
                    raise ValueError(f"{tensor.name}: a slice begins or ends before the tensor")
        check_names(path, (tensor.name for tensor in tensors))
    except FileError:
        raise
    except Exception as error:  # struct, protobuf, StopIteration and index errors, depending on the damage
        raise FileError(f"{path}: damaged or truncated ({str(error)[:200] or type(error).__name__})") from None


def check_graph(where: str, nodes: Sequence[Any]) -> None:
    """Raises FileError if a node of a saved object graph refers to one that is not there."""
    for node in nodes:
        for child in node.children:
            if not 0 <= child.node_id < len(nodes):
                raise FileError(f"{where}: the object graph refers to node {child.node_id} of {len(nodes)}")


def _sorted_rows(rows: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    found = dict[bytes, bytes]()
    before = None
    for key, value in rows:
        if before is not None and key <= before:  # a search would find another row than a walk
            raise ValueError("its keys are not in order")
        found[key] = value
        before = key
    return found


def _check_tensor(key: bytes, shape: Any, dtype: int) -> None:
    """Raises ValueError for a shape or dtype at which TensorFlow would end the process."""
    lengths, elements = [int(dim.size) for dim in shape.dim], 1
    name = key.decode(errors="replace")[:100]
    if shape.unknown_rank or len(lengths) > _MOST_RANK:
        raise ValueError(f"{name}: a shape of {'unknown rank' if shape.unknown_rank else f'{len(lengths)} axes'}")
    for length in lengths:
        elements *= length
        if length < 0 or elements >= 1 << 63:
            raise ValueError(f"{name}: {str(lengths)[:100]} is not a possible shape")
    if dtype > 100 or tf.as_dtype(dtype) == tf.resource:  # a reference to a variable, or a handle
        raise ValueError(f"{name}: {dtype} is not the number of a dtype that a file can hold")


def _check_cover(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Raises ValueError if two slices of a tensor overlap."""
    axes = [axis for axis in range(len(shape)) if any(piece.shape[axis] != shape[axis] for piece in pieces)]
    if len(axes) <= 1:
        axis = axes[0] if axes else 0
        spans = sorted((piece.start[axis], piece.start[axis] + piece.shape[axis]) for piece in pieces) if shape else []
        overlap = any(stop > start for (_, stop), (start, _) in itertools.pairwise(spans))
    elif len(pieces) > _MOST_SLICES:
        raise ValueError(f"{name}: {len(pieces):,} slices along several axes; the limit is {_MOST_SLICES:,}")
    else:
        overlap = any(
            all(
                low < other + n and other < low + m
                for low, m, other, n in zip(one.start, one.shape, two.start, two.shape, strict=True)
            )
            for one, two in itertools.combinations(pieces, 2)
        )
    if overlap:
        raise ValueError(f"{name}: two of its slices overlap")


def _check_places(entries: dict[str, Entry]) -> None:
    """Raises ValueError if two tensors, or slices, lie at the same bytes of a data file."""
    places = sorted(
        (str(piece.file), piece.offset, piece.offset + piece.size, name)
        for name, entry in entries.items()
        for piece in entry.pieces
        if piece.size
    )
    for (file, _, stop, one), (other, start, _, two) in itertools.pairwise(places):
        if file == other and start < stop:
            raise ValueError(f"{one} and {two} lie at the same bytes")


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


def _table(content: bytes | mmap.mmap) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table in LevelDB's format."""
    if len(content) < _FOOTER or content[-8:] != MAGIC:
        raise ValueError("the magic number at its end is missing; the file is truncated or of another kind")
    footer = content[-_FOOTER:]
    _, at = read_varint(footer, 0)
    _, at = read_varint(footer, at)
    for _, handle in _block(content, footer, at):
        yield from _block(content, handle, 0)


def _block(content: bytes | mmap.mmap, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    offset, at = read_varint(handle, at)
    size, _ = read_varint(handle, at)
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
        shared, at = read_varint(rows, at)
        rest, at = read_varint(rows, at)
        length, at = read_varint(rows, at)
        if shared > len(key) or at + rest + length > end:
            raise ValueError("a row lies outside its block")
        key = key[:shared] + rows[at : at + rest]
        yield key, rows[at + rest : at + rest + length]
        at += rest + length


def _unpacked(packed: bytes) -> bytes:
    """Unpacks a Snappy block (github.com/google/snappy, format_description.txt)."""
    size, at = read_varint(packed, 0)
    if size > 64 * len(packed):
        raise ValueError("a packed block declares more bytes than it can hold")
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
        if len(content) + length > size:
            break  # longer than it declares
        for _ in range(length):  # source and destination may overlap
            content.append(content[-back])
    if len(content) != size:
        raise ValueError("a packed block does not have the size that it declares")
    return bytes(content)


def read_varint(content: bytes, at: int = 0) -> tuple[int, int]:
    """Decodes a number of protocol buffers; returns it and the place after it."""
    number = 0
    for shift in range(0, 64, 7):
        byte = content[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")
