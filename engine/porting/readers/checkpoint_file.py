"""Reads the tensors of a TensorFlow checkpoint in the V2 format (``PREFIX.index``, ``PREFIX.data-...``)."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.files import FileError, PathLike
from engine.porting.readers import bundle_index
from engine.porting.readers.bundle_index import Piece
from engine.porting.readers.closing import Closing
from engine.reading import check_memory, open_file

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_LFS = b"version https://git-lfs"


class DataFileError(FileError):
    """A tensor whose bytes are not there. ``cause`` is the same for all tensors of a file that is missing or too short."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class Checkpoint(Closing):  # TensorFlow's reader closes its files when it is garbage-collected
    """A checkpoint as a TensorSource (engine.porting.readers.source).

    In object-based checkpoints, names lose ``/.ATTRIBUTES/VARIABLE_VALUE``, and an escaped ``/`` or ``.`` inside a key
    (TensorFlow writes ``.S`` and ``..``) is restored; names in name-based ones are unchanged. Strings and resources
    (the object graph) do not count as tensors. A partitioned variable that is stored in slices is one tensor.
    ``read_slice`` reads the data files directly and verifies no checksums.

    The prefix is without ``.index``, and ``DIR/`` for a checkpoint without a name. Raises FileError if there is none,
    its index is damaged, or its data files are shorter than the index says. ``whole=False`` also opens one whose data
    files are missing or too short, for its names and shapes and for the tensors that are complete.
    """

    checksums = True

    def __init__(self, prefix: PathLike, *, whole: bool = True) -> None:
        self._prefix = str(prefix)
        self.path = pathlib.Path(prefix)
        self._keys: dict[str, str] = {}
        self._others: list[str] = []
        _check_kind(pathlib.Path(f"{self._prefix}.index"))
        self._entries, self._big_endian = bundle_index.read_index(self._prefix)
        with self._damage(""):  # TensorFlow's reader verifies the checksums of the index
            self._reader = tf.compat.v1.train.NewCheckpointReader(self._prefix)
            self._reader.get_variable_to_shape_map()
        for key in sorted(self._entries):
            dtype = self._entries[key].dtype
            name = readable_name(key)
            if not (dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex):
                self._others.append(name)
                if dtype in (tf.string, tf.variant) and all(_is_held(piece) for piece in self._entries[key].pieces):
                    self._check_texts(name, self._entries[key])
            elif name in self._keys:
                raise FileError(f"{self.path}: {name}: the checkpoint has two tensors of this name")
            else:
                self._keys[name] = key
                if whole:
                    self._check_files(name)

    def names(self) -> list[str]:
        return list(self._keys)

    def others(self) -> list[str]:
        """Returns the entries that are not tensors of numbers, such as the object graph."""
        return list(self._others)

    @property
    def entries(self) -> Mapping[str, bundle_index.Entry]:
        """Everything in the index by its key, which is not yet a readable name."""
        return self._entries

    def object_graph(self) -> Any:
        """Returns the nodes of the saved object graph, or an empty list if the checkpoint is name-based."""
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        if _GRAPH not in self._others:
            return []
        with self._damage(_GRAPH):
            if self._entries[_GRAPH].shape or self._entries[_GRAPH].dtype != tf.string:
                raise FileError(f"{self.path}: {_GRAPH}: expected one text")
            self._check_texts(_GRAPH, self._entries[_GRAPH])
            text = self._reader.get_tensor(_GRAPH)
            nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(text).nodes
        bundle_index.check_graph(str(self.path), nodes)
        return nodes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[self._key(name)].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._entries[self._key(name)].dtype.as_numpy_dtype)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Returns where the tensor's bytes lie; a partitioned variable has several pieces."""
        return self._entries[self._key(name)].pieces

    def read(self, name: str) -> np.ndarray:
        self._check_files(name)
        check_memory(self.path, math.prod(self.shape(name)) * self.dtype(name).itemsize, name)
        with self._damage(name):
            return np.asarray(self._reader.get_tensor(self._key(name)))

    def check(self, name: str) -> None:
        """Reads the tensor, or its slices one by one, and discards it. Raises FileError if it is damaged."""
        pieces = self.pieces(name)
        if len(pieces) == 1:
            self.read(name)
            return
        self._check_files(name)
        shape, dtype = " ".join(map(str, self.shape(name))), self._entries[self._key(name)].dtype
        for piece in pieces:
            extents = ":".join(f"{start},{length}" for start, length in zip(piece.start, piece.shape, strict=True))
            with self._damage(name), tf.device("CPU:0"):
                tf.raw_ops.RestoreV2(
                    prefix=self._prefix,
                    tensor_names=[self._key(name)],
                    shape_and_slices=[f"{shape} {extents}"],
                    dtypes=[dtype],
                )

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        shape, dtype = self.shape(name), self.dtype(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        self._check_files(name)
        check_memory(self.path, math.prod(shape[1:], start=stop - start) * dtype.itemsize, name)
        rows = np.zeros((stop - start, *shape[1:]), dtype)  # the slices of a hostile file may leave gaps
        for piece in self.pieces(name):
            low, high = max(start, piece.start[0]), min(stop, piece.start[0] + piece.shape[0])
            if low < high:
                others = zip(piece.start[1:], piece.shape[1:], strict=True)
                place = (slice(low - start, high - start), *(slice(begin, begin + n) for begin, n in others))
                rows[place] = self._rows(name, piece, low - piece.start[0], high - piece.start[0])
        return rows

    def _rows(self, name: str, piece: Piece, start: int, stop: int) -> np.ndarray:
        """Reads rows of one piece directly from its data file."""
        dtype = self.dtype(name)
        row = math.prod(piece.shape[1:]) * dtype.itemsize
        content = np.empty((stop - start) * row, np.uint8)
        with self._damage(name), open_file(piece.file) as file:
            file.seek(piece.offset + start * row)
            if file.readinto(memoryview(content)) != content.size:  # type: ignore[arg-type]
                raise FileError(f"{self.path}: {name}: {piece.file.name} is truncated")
        array = content.view(dtype).reshape(stop - start, *piece.shape[1:])
        return array.byteswap(inplace=True) if self._big_endian else array

    def _check_texts(self, name: str, entry: bundle_index.Entry) -> None:
        """Raises FileError unless texts or variants are as long as they say, which TensorFlow believes.

        A file has the lengths of texts as varints, then a checksum of 4 bytes, then the texts. Each variant has its own
        length before it, and its own checksum behind it (tensor_bundle.cc).
        """
        texts = entry.dtype == tf.string
        for piece in entry.pieces:
            count, at, length = math.prod(piece.shape), 0, 0
            with self._damage(name), open_file(piece.file) as file:
                for _ in range(count if count <= piece.size else 0):
                    file.seek(piece.offset + at)
                    more, read = bundle_index.read_varint(file.read(10))
                    at += read if texts else read + more + 4
                    length += more
            taken = at + length + 4 if texts else at
            if taken != piece.size or not _is_held(piece):
                raise FileError(
                    f"{self.path}: {name}: {taken:,} bytes of {entry.dtype.name} in a place of {piece.size:,}"
                )

    def _check_files(self, name: str) -> None:
        """Raises FileError, before memory is allocated, unless the data files hold the bytes that the index declares."""
        size, shape = self.dtype(name).itemsize, self.shape(name)
        elements = 0
        for piece in self.pieces(name):
            elements += math.prod(piece.shape)
            held = piece.file.stat().st_size if piece.file.is_file() else None
            if math.prod(piece.shape) * size != piece.size:
                promised = f"shape {list(piece.shape)} in {piece.size:,} bytes"
            elif held is None or piece.offset + piece.size > held:
                promised = f"bytes {piece.offset:,} to {piece.offset + piece.size:,} of {piece.file.name}"
            else:
                continue
            if held is None:
                found, cause = "is missing", f"{piece.file.name} is missing"
            else:
                found, cause = f"has {held:,} bytes", f"{piece.file.name} is truncated: it has {held:,} bytes"
                if _is_pointer(piece.file):
                    cause = f"{piece.file.name} is a Git LFS pointer, not the data; `git lfs pull` fetches them"
            message = (
                f"{self.path}: {name}: expected {promised}, which {found}; the data files are truncated or missing"
            )
            raise DataFileError(message, "" if promised.startswith("shape") else cause)
        if elements != math.prod(shape):
            raise FileError(
                f"{self.path}: {name}: its slices hold {elements:,} elements, but its shape is {list(shape)}"
            )

    def _key(self, name: str) -> str:
        if name not in self._keys:
            raise FileError(f"{self.path}: the file has no tensor {name}")
        return self._keys[name]

    def _damage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return explaining_damage(self.path, name)


@contextlib.contextmanager
def explaining_damage(path: PathLike, name: str) -> Iterator[None]:
    """Raises FileError, with the file and the tensor if there is a name, for what TensorFlow raises on damaged files."""
    try:
        yield
    except FileError:
        raise
    except MemoryError:
        raise FileError(f"{path}: {name}: there is not enough memory to read it") from None
    except Exception as error:  # OpError, ValueError, IndexError or RuntimeError, depending on the damage
        where = f"{path}: {name}" if name else f"{path}"
        raise FileError(f"{where}: damaged or truncated ({describe_error(error)})") from None


def describe_error(error: Exception) -> str:
    """Returns the message of a TensorFlow error without the names of ops."""
    text = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\].*", "", str(error))
    return " ".join(text.split())[:300] or type(error).__name__


def _is_held(piece: Piece) -> bool:
    return piece.file.is_file() and piece.offset + piece.size <= piece.file.stat().st_size


def _is_pointer(file: pathlib.Path) -> bool:
    try:
        with open_file(file) as opened:
            return opened.read(len(_LFS)) == _LFS
    except (OSError, FileError):
        return False


def _check_kind(index: pathlib.Path) -> None:
    """Raises FileError for a file that is clearly not an index."""
    try:
        with open_file(index) as file:
            start = file.read(64)
            file.seek(-min(8, index.stat().st_size), os.SEEK_END)
            end = file.read(8)
    except OSError as error:
        raise FileError(f"{index}: {'there is no such file' if not index.exists() else error}") from None
    if start.startswith(_LFS):
        raise FileError(f"{index}: a Git LFS pointer, not the index itself; `git lfs pull` fetches it")
    if end != bundle_index.MAGIC:
        raise FileError(f"{index}: not the index of a checkpoint, or a truncated one: its end is missing")


def readable_name(key: str) -> str:
    """Returns the name of a tensor from its key in an object-based checkpoint; other keys stay as they are."""
    if "/.ATTRIBUTES/" not in key:  # name-based, where dots are not escapes
        return key
    escapes = {".S": "/", "..": "."}
    return re.sub(r"\.S|\.\.", lambda match: escapes[match.group()], key.removesuffix(_VALUE))
