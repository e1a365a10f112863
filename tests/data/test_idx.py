"""The idx format: read whole, gzipped or not, and not believed."""

from __future__ import annotations

import gzip
import pathlib
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.idx import read_idx
from engine.files import FileError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
Pack = Callable[[bytes], bytes]
packings = pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])


def idx(array: np.ndarray, *, kind: int = 8, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.tobytes()


def written(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    path = folder / "images-idx3-ubyte"
    path.write_bytes(content)
    return path


@packings
@pytest.mark.parametrize("shape", [(24,), (2, 12), (2, 3, 4), (2, 3, 2, 2), (0,), (0, 28, 28)])
def test_an_array_reads_back_with_its_shape(tmp_path: pathlib.Path, pack: Pack, shape: tuple[int, ...]) -> None:
    array = IMAGES.reshape(shape) if 0 not in shape else np.zeros(shape, np.uint8)
    found = read_idx(written(tmp_path, pack(idx(array))))
    assert found.dtype == np.uint8
    assert found.shape == shape
    np.testing.assert_array_equal(found, array)


def test_gzip_is_known_by_its_content_not_by_its_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plain.gz"
    path.write_bytes(idx(IMAGES))
    np.testing.assert_array_equal(read_idx(path), IMAGES)


@packings
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack(">HBB", 1, 8, 1) + bytes(8), "not an idx file of unsigned bytes"),
        (idx(IMAGES, kind=13), "not an idx file of unsigned bytes"),
        (struct.pack(">HBB", 0, 8, 0) + b"\0", "not an idx file of unsigned bytes"),
        (struct.pack(">HBB5I", 0, 8, 5, 1, 1, 1, 1, 1) + b"\0", "not an idx file of unsigned bytes"),
        (idx(IMAGES, shape=(2, 3, 5)), "the header claims 30 bytes, but the file has 24"),
        (idx(IMAGES, shape=(2, 3, 3)), "the header claims 18 bytes, but the file has more"),
        (idx(IMAGES, shape=(0,)), "the header claims 0 bytes, but the file has more"),
        (idx(IMAGES, shape=(2**32 - 1,) * 4), "more than the file can hold"),
        (idx(np.zeros(0, np.uint8), shape=(0, 2**32 - 1, 2**32 - 1, 2**32 - 1)), "damaged"),
        (b"", "damaged or truncated"),
        (b"\0\0\x08", "damaged or truncated"),
        (struct.pack(">HBBI", 0, 8, 3, 7), "damaged or truncated"),
        (b"<!DOCTYPE html><html>not found</html>", "not an idx file of unsigned bytes"),
    ],
)
def test_a_hostile_header_is_an_error(tmp_path: pathlib.Path, pack: Pack, content: bytes, message: str) -> None:
    with pytest.raises(FileError, match=rf"images-idx3-ubyte: .*{message}"):
        read_idx(written(tmp_path, pack(content)))


def test_a_short_file_that_promises_gigabytes_is_refused_before_memory_is_taken(tmp_path: pathlib.Path) -> None:
    for pack in (bytes, gzip.compress):
        with pytest.raises(FileError, match="claims 1073741824 bytes, more than the file can hold"):
            read_idx(written(tmp_path, pack(idx(IMAGES, shape=(2**30,)))))


@packings
def test_a_file_cut_at_any_length_is_an_error(tmp_path: pathlib.Path, pack: Pack) -> None:
    whole = pack(idx(IMAGES))
    for length in range(len(whole)):
        with pytest.raises(FileError, match="images-idx3-ubyte"):
            read_idx(written(tmp_path, whole[:length]))


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_gzip_file_is_an_error_or_right(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    content = bytearray(gzip.compress(idx(IMAGES), mtime=0))
    place = data.draw(st.integers(2, len(content) - 1))  # the first two bytes say that it is gzip
    content[place] ^= data.draw(st.integers(1, 255))
    path = written(tmp_path, bytes(content))
    try:
        found = read_idx(path)
    except FileError:
        return
    np.testing.assert_array_equal(found, IMAGES)


def test_bytes_after_a_gzip_stream_are_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileError, match="damaged"):
        read_idx(written(tmp_path, gzip.compress(idx(IMAGES)) + b"tail"))


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileError, match=r"there is no such file|it is a folder"):
            read_idx(path)
