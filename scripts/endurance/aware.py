"""Damage that knows a format: it leaves the rest of the file valid, and where it can, the checksums right."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

_EXTREMES: tuple[Any, ...] = (
    0,
    1,
    -1,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    10**30,
    1.5,
    "1",
    None,
    True,
    [],
    {},
    "x" * 300,
)


def edit_zip_directory(data: bytes, rng: random.Random) -> bytes:
    """Changes a field of a local header, of the central directory or of the end record of a zip archive."""
    kind, fields = rng.choice(
        [
            (b"PK\x05\x06", [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]),
            (b"PK\x01\x02", [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)]),
            (b"PK\x03\x04", [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]),
        ]
    )
    places = [match.start() for match in re.finditer(re.escape(kind), data)]
    if not places:
        return data
    at, (offset, width) = rng.choice(places), rng.choice(fields)
    if len(data) < at + offset + width:
        return data
    letter = {2: "<H", 4: "<I"}[width]
    (value,) = struct.unpack_from(letter, data, at + offset)
    most = (1 << 8 * width) - 1
    value = rng.choice([0, 1, value + 1, value - 1, value ^ 1 << rng.randrange(8 * width), most, most - 1]) & most
    return data[: at + offset] + struct.pack(letter, value) + data[at + offset + width :]


def edit_safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """Changes the length of the header, or a value in it."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack_from("<Q", data)
    if rng.random() < 0.3:
        return struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])) + data[8:]
    header = edit_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def edit_json(data: bytes, rng: random.Random) -> bytes:
    """Puts a value of another type or size, a missing or a second key, or deep nesting into a JSON text."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    if rng.random() < 0.05:
        return b"[" * 100_000 + b"]" * 100_000
    places = list(_places(value))
    if not places:
        return data
    owner, key = rng.choice(places)
    what = rng.randrange(4)
    if what == 0 and isinstance(owner, dict):
        del owner[key]
    elif what == 1 and isinstance(owner, dict):
        owner[f"{key}{rng.randrange(9)}"] = owner.pop(key)
    else:
        owner[key] = rng.choice(_EXTREMES)
    return json.dumps(value).encode()


def edit_index(data: bytes, rng: random.Random) -> bytes:
    """Writes the index of a TensorFlow checkpoint again, with right checksums and a wrong dtype, shape, offset or size."""
    from tensorflow.core.protobuf import tensor_bundle_pb2

    try:
        entries = list(_read_table(data))
    except (IndexError, struct.error):
        return data
    chosen = rng.randrange(len(entries))
    key, value = entries[chosen]
    huge = rng.choice([0, 1, 2**20, 2**31, 2**40, 2**62, 2**63 - 1])
    if key:
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
        change = rng.randrange(6)
        if change == 0:
            entry.dtype = rng.choice([1, 2, 3, 7, 9, 10, 14, 20, 21, 22, 101])
        elif change == 1:
            for _ in range(rng.choice([1, 2, 8, 300])):
                entry.shape.dim.add(size=rng.choice([huge, -1, 2**16]))
        elif change == 2 and entry.shape.dim:
            entry.shape.dim[0].size = rng.choice([huge, -1, -(2**63)])
        elif change == 3:
            entry.offset = huge
        elif change == 4:
            entry.size = huge
        else:
            entry.shard_id = rng.choice([1, 7, 2**31 - 1])
        if rng.random() < 0.2:
            part = entry.slices.add()
            part.extent.add(start=rng.choice([0, huge, -1]), length=rng.choice([1, huge]))
        entries[chosen] = key, entry.SerializeToString()
    else:
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
        header.num_shards = rng.choice([0, 2, 1000, 2**31 - 1])
        header.endianness = rng.choice([0, 1])  # type: ignore[assignment]
        entries[chosen] = key, header.SerializeToString()
    return _write_table(entries)


def edit_h5(data: bytes, rng: random.Random) -> bytes:
    """Changes a byte beside a signature of HDF5's structures: trees, heaps, symbol tables, object headers, datatypes."""
    marks = [b"\x89HDF", b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"FRHP", b"BTHD"]
    places = [match.start() for mark in marks for match in re.finditer(re.escape(mark), data)]
    if not places:
        return data
    at = rng.choice(places) + rng.randrange(4, 96)
    if at + 8 > len(data):
        return data
    new = rng.choice([b"\0" * 8, b"\xff" * 8, struct.pack("<Q", rng.choice(places)), struct.pack("<Q", len(data))])
    width = rng.choice([1, 2, 4, 8])
    return data[:at] + new[:width] + data[at + width :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _packed(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of an uncompressed LevelDB table."""
    at = len(data) - 48
    for _ in range(2):
        _, at = _varint(data, at)
    start, at = _varint(data, at)
    size, _ = _varint(data, at)
    for _, handle in _read_block(data[start : start + size]):
        begin, after = _varint(handle, 0)
        length, _ = _varint(handle, after)
        yield from _read_block(data[begin : begin + length])


def _read_block(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    at, key = 0, b""
    while at < len(block) - 4 - 4 * restarts:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _write_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    blocks, handles = b"", list[bytes]()
    for pairs in (entries, [], None):
        if pairs is None:  # the index of the one block of entries
            pairs = [(entries[-1][0] + b"\xff", handles[0])]
        body = b"".join(b"\0" + _packed(len(k)) + _packed(len(v)) + k + v for k, v in pairs)
        body += struct.pack("<II", 0, 1) + b"\0"
        handles.append(_packed(len(blocks)) + _packed(len(body) - 1))
        blocks += body + struct.pack("<I", _masked_crc(body))
    footer = (handles[1] + handles[2]).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return blocks + footer


def _masked_crc(data: bytes) -> int:
    """CRC-32C, masked as LevelDB does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
