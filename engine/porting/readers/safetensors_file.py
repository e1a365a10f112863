"""Reads the tensors of a safetensors file (github.com/huggingface/safetensors) with plain reads.

The library of that name is not used: it maps the file into memory, where every page that it has touched counts as
resident until the file is closed, which amounts to a second copy of the model.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from engine.files import FileError, PathLike
from engine.porting.readers.closing import Closing
from engine.reading import check_memory, check_names, open_file

_MOST_HEADER = 1 << 24  # bytes; a header takes about 100 for each tensor
DTYPES: dict[str, Any] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


class Safetensors(Closing):
    """A safetensors file as a TensorSource (engine.porting.readers.source).

    Raises FileError if the file is truncated, or if its header is not JSON, names a tensor twice, or does not account
    for every byte of the file. ``metadata`` are the texts beside the tensors, such as ``{"format": "pt"}``.
    """

    checksums = False  # the format has none

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}  # dtype, shape, position
        try:
            self._file = open_file(self.path).detach()  # unbuffered
        except OSError as error:
            raise FileError(f"{self.path}: {error.strerror or error}") from None
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[1]

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._entry(name)[0]

    def read(self, name: str) -> np.ndarray:
        dtype, shape, position = self._entry(name)
        return self._read(name, dtype, shape, position)

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype, shape, position = self._entry(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        row = dtype.itemsize * math.prod(shape[1:])
        return self._read(name, dtype, (stop - start, *shape[1:]), position + start * row)

    def close(self) -> None:
        self._file.close()

    def _entry(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        if name not in self._tensors:
            raise FileError(f"{self.path}: the file has no tensor {name}")
        return self._tensors[name]

    def _read(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], position: int) -> np.ndarray:
        check_memory(self.path, math.prod(shape) * dtype.itemsize, name)
        try:
            array = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
            view, done = array.data, 0
            self._file.seek(position)
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise FileError(f"{self.path}: {name}: the file has become shorter since it was opened")
                done += count
        except OSError as error:
            raise FileError(f"{self.path}: {name}: {error}") from None
        except MemoryError:
            raise FileError(f"{self.path}: {name}: there is not enough memory to read it") from None
        return array.view(dtype).reshape(shape)

    def _read_header(self) -> None:
        size = self.path.stat().st_size
        start = self._file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or size < 10:
            self._damaged(f"{size} bytes are too few for a safetensors file")
        if length > size - 8:
            self._damaged(f"its header should have {length:,} bytes, but the whole file has {size:,}; is it truncated?")
        if length > _MOST_HEADER:
            self._damaged(f"its header of {length:,} bytes is too large; the limit is {_MOST_HEADER:,}")
        text = self._file.read(length)
        try:
            header = json.loads(text.decode(), object_pairs_hook=self._unique)
        except FileError:  # which is a ValueError as well
            raise
        except (ValueError, RecursionError) as error:
            self._damaged(f"its header is not JSON ({str(error)[:100]})")
        if not isinstance(header, dict):
            self._damaged("its header is not a JSON object")
        given = header.pop("__metadata__", None)
        if isinstance(given, dict):
            self.metadata = {key: text for key, text in given.items() if isinstance(text, str)}
        ranges = []
        for name, entry in header.items():
            dtype, shape, begin, end = self._believable(name, entry)
            self._tensors[name] = (dtype, shape, 8 + length + begin)
            ranges.append((begin, end, name))
        place = 0
        for begin, end, name in sorted(ranges):
            if begin != place:
                self._damaged(f"{name}: it begins at byte {begin}, expected {place} (a hole or an overlap)")
            place = end
        check_names(self.path, self._tensors)
        if place != size - 8 - length:
            self._damaged(
                f"its header describes {place:,} bytes of tensors, but the file has {size - 8 - length:,}; is it truncated?"
            )

    def _believable(self, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            self._damaged(f"{name}: its entry lacks dtype, shape or data_offsets")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in DTYPES:
            self._damaged(f"{name}: dtype {kind!r} is not supported; expected one of {', '.join(DTYPES)}")
        if not _naturals(shape) or len(shape) > 32:
            self._damaged(f"{name}: {str(shape)[:80]!r} is not a valid shape")
        if not _naturals(offsets) or len(offsets) != 2:
            self._damaged(f"{name}: {str(offsets)[:80]!r} is not a valid pair of data_offsets")
        dtype, (begin, end) = np.dtype(DTYPES[kind]), offsets
        if end - begin != (wanted := math.prod(shape) * dtype.itemsize):
            self._damaged(f"{name}: {kind} {shape} takes {wanted} bytes, but its data_offsets span {end - begin}")
        return dtype, tuple(shape), begin, end

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self._damaged("its header has a name twice")
        return found

    def _damaged(self, what: str) -> NoReturn:
        raise FileError(f"{self.path}: {what}")


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
