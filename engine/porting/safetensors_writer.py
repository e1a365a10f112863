"""Writes a safetensors file (github.com/huggingface/safetensors), one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from engine.errors import InputError
from engine.files import PathLike, write_atomically
from engine.porting.readers.safetensors_file import DTYPES

_ALIGNED = 8  # bytes: the header is padded with spaces, so that tensors can be mapped into memory


def write_safetensors(
    path: PathLike,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    read: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file atomically; ``specs`` are shapes and dtypes by name, in order, and ``read`` returns a tensor's values.

    ``metadata`` are texts by name, such as ``{"format": "pt"}``. Raises InputError if the format has no such dtype.
    """
    kinds = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}
    header: dict[str, Any] = {} if not metadata else {"__metadata__": dict(metadata)}
    place = 0
    for name, (shape, dtype) in specs.items():
        if dtype not in kinds:
            raise InputError(f"{path}: {name}: safetensors files cannot hold {dtype.name}")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in specs.items():
            array = np.ascontiguousarray(read(name), dtype)
            if tuple(array.shape) != tuple(shape) and shape:
                raise AssertionError(f"{name}: {array.shape}; expected {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)

    write_atomically(path, write)
