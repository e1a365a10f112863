"""An index whose checksums are right, but which asks for what TensorFlow's reader ends the process at."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import tensor_bundle_pb2, trackable_object_graph_pb2
from tensorflow.core.util import saved_tensor_slice_pb2

from compat_v1.checkpoints.reader import open_checkpoint
from engine.files import FileError
from engine.porting import PortError
from engine.porting.readers import bundle_index
from engine.porting.readers.source import open_tensors
from engine.porting.tf_checkpoint import restore_strict

Entry = tensor_bundle_pb2.BundleEntryProto
_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ 0x82F63B78 * (_byte & 1)
    _TABLE.append(_byte)


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated as TensorFlow stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def table(rows: list[tuple[bytes, bytes]]) -> bytes:
    """A table in LevelDB's format with one block of rows, as TensorFlow writes it, with valid checksums."""
    content = b""

    def block(entries: list[tuple[bytes, bytes]]) -> bytes:
        nonlocal content
        body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
        body += struct.pack("<II", 0, 1)
        handle = varint(len(content)) + varint(len(body))
        content += body + b"\0" + struct.pack("<I", masked_crc(body + b"\0"))
        return handle

    data = block(rows)
    meta, index = block([]), block([(rows[-1][0] + b"z", data)])
    return content + (meta + index).ljust(40, b"\0") + bundle_index.MAGIC


def entry(shape: list[int], *, dtype: int = types_pb2.DT_FLOAT, size: int = 8, offset: int = 0, **other: Any) -> Any:
    made = Entry(dtype=dtype, size=size, offset=offset, **other)  # type: ignore[arg-type]
    for length in shape:
        made.shape.dim.add(size=length)
    return made


def write(folder: pathlib.Path, entries: dict[bytes, Any], data: bytes = bytes(64)) -> str:
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    rows = {b"": header.SerializeToString()} | {key: each.SerializeToString() for key, each in entries.items()}
    (folder / "m.index").write_bytes(table(sorted(rows.items())))
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return str(folder / "m")


def sliced(shape: list[int], places: list[tuple[int, int]], *, offsets: list[int], size: int) -> dict[bytes, Any]:
    """A variable ``w`` in slices along its first axis, with the keys of the slices."""
    whole, entries = entry(shape, size=0), {}
    for (start, length), offset in zip(places, offsets, strict=True):
        part = whole.slices.add()
        part.extent.add(start=start, length=length)
        for _ in shape[1:]:
            part.extent.add()
        entries[bundle_index._slice_key(b"w", part)] = entry([length, *shape[1:]], size=size, offset=offset)
    return {b"w": whole} | entries


HOSTILE: dict[str, Callable[[], dict[bytes, Any]]] = {
    "too large for any number": lambda: {b"w": entry([1 << 40, 1 << 40])},
    "too large before a zero": lambda: {b"w": entry([1 << 40, 1 << 40, 0], size=0)},
    "negative": lambda: {b"w": entry([-1, 2])},
    "two negatives": lambda: {b"w": entry([-1, -2])},
    "too many axes": lambda: {b"w": entry([1] * 300, size=4)},
    "a slice that cannot be": lambda: {b"\0w": entry([1 << 40, 1 << 40])},
    "a reference": lambda: {b"w": entry([2], dtype=101)},
    "a handle": lambda: {b"w": entry([2], dtype=types_pb2.DT_RESOURCE)},
    "numbers said to be texts": lambda: {b"w": entry([2], dtype=types_pb2.DT_STRING)},
    "numbers said to be variants": lambda: {b"w": entry([2], dtype=types_pb2.DT_VARIANT)},
    "an unknown dtype": lambda: {b"w": entry([2], dtype=77)},
    "no dtype": lambda: {b"w": entry([2], dtype=0)},
    "overlapping tensors": lambda: {b"v": entry([2]), b"w": entry([2], offset=4)},
    "slices at the same bytes": lambda: sliced([4], [(0, 2), (2, 2)], offsets=[0, 0], size=8),
    "slices over each other": lambda: sliced([4], [(0, 2), (1, 2)], offsets=[0, 8], size=8),
    "a text of any length": lambda: {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry([], dtype=types_pb2.DT_STRING, size=64)},
    "a graph of numbers": lambda: {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry([2])},
    "many texts": lambda: {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry([1 << 40], dtype=types_pb2.DT_STRING, size=64)},
}


def read_all(prefix: str, opener: Callable[[str], Any]) -> None:
    with opener(prefix) as source:
        getattr(getattr(source, "source", source), "object_graph", list)()
        for name in source.names():
            source.read(name)


@pytest.mark.parametrize("opener", [open_tensors, open_checkpoint])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_with_valid_checksums_is_told(case: str, opener: Any, tmp_path: pathlib.Path) -> None:
    data = varint(1 << 50) + bytes(64)
    prefix = write(tmp_path, HOSTILE[case](), data)
    with pytest.raises(FileError):
        read_all(prefix, opener)
    with pytest.raises(PortError):
        restore_strict({"w": tf.Variable(tf.zeros([2]))}, prefix)


def test_a_partitioned_index_is_held_against_the_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sliced([1 << 21, 1 << 12], [(0, 1 << 20), (1 << 20, 1 << 20)], offsets=[0, 1 << 34], size=1 << 34)
    prefix = write(tmp_path, whole)
    with (tmp_path / "m.data-00000-of-00001").open("r+b") as file:
        file.truncate(1 << 35)  # of which the disk holds nothing
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(1 << 30))
    with open_checkpoint(prefix) as source:
        assert source.shape("w") == (1 << 21, 1 << 12)
        with pytest.raises(FileError, match=r"w takes 32 GiB, more than the 1 GiB"):
            source.read("w")
        with pytest.raises(FileError, match=r"w takes 16 GiB"):
            source.read_slice("w", 0, 1 << 20)


@pytest.mark.parametrize("packed", [b"\xff\xff\xff\x7f\x00a", b"\x04\x00a" + b"\xfe\x01\x00" * 9])
def test_a_packed_block_is_held_against_the_size_that_it_declares(packed: bytes) -> None:
    with pytest.raises(ValueError, match="packed block"):
        bundle_index._unpacked(packed)


def test_the_files_of_this_test_are_valid_otherwise(tmp_path: pathlib.Path) -> None:
    values = np.arange(4, dtype=np.float32).tobytes()
    made = sliced([4], [(0, 2), (2, 2)], offsets=[0, 8], size=8)
    for key, each in made.items():
        if key != b"w":
            each.crc32c = masked_crc(values[each.offset : each.offset + 8])
    with open_tensors(write(tmp_path, made, values)) as source:
        assert source.read("w").tolist() == [0, 1, 2, 3]


def test_an_object_graph_that_refers_to_what_is_not_there_is_told(tmp_path: pathlib.Path) -> None:
    for number in (7, -1):
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.nodes.add().children.add(node_id=number, local_name="w")
        text = graph.SerializeToString()
        length = varint(len(text))
        check = struct.pack("<I", masked_crc(struct.pack("<I", len(text))))
        data = length + check + text
        inner = struct.pack("<I", len(text)) + check + text
        made = entry([], dtype=types_pb2.DT_STRING, size=len(data), crc32c=masked_crc(inner))
        prefix = write(tmp_path, {b"_CHECKPOINTABLE_OBJECT_GRAPH": made}, data)
        with pytest.raises(PortError, match=f"refers to node {number} of 1"):
            restore_strict({"w": tf.Variable(0.0)}, prefix)


@pytest.mark.parametrize("shape", [[-1], [1 << 40, 1 << 40], [1] * 300, [1 << 62, 4, 0]])
def test_a_hostile_v1_file_is_told(shape: list[int], tmp_path: pathlib.Path) -> None:
    made = saved_tensor_slice_pb2.SavedTensorSlices()
    tensor = made.meta.tensor.add(name="w", type=types_pb2.DT_FLOAT)
    for length in shape:
        tensor.shape.dim.add(size=length)
    tensor.slice.add().extent.add()
    (tmp_path / "old.ckpt").write_bytes(table([(b"", made.SerializeToString())]))
    with pytest.raises(FileError):
        read_all(str(tmp_path / "old.ckpt"), open_checkpoint)


def test_valid_texts_and_variants_are_set_aside_and_the_numbers_are_read(tmp_path: pathlib.Path) -> None:
    lists = tf.raw_ops.TensorListReserve(element_shape=[2], num_elements=3, element_dtype=tf.float32)
    tensors = {
        "v": tf.constant([1.0, 2.0]),
        "lists": tf.stack([lists, lists]),
        "texts": tf.constant(["x" * 300, "", "y"]),
    }
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * 3,
        tensors=list(tensors.values()),
    )
    with open_tensors(tmp_path / "m") as source:
        assert source.names() == ["v"]
        assert source.read("v").tolist() == [1, 2]
