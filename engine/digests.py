"""SHA-256 digests of named arrays."""

from __future__ import annotations

import hashlib
import sys

import numpy as np


def digest(path: str, value: np.ndarray) -> str:
    """Returns the SHA-256, in hexadecimal, over an array's path, dtype, shape and little-endian bytes."""
    value = np.asarray(value)
    if value.dtype.byteorder == ">" or (value.dtype.byteorder == "=" and sys.byteorder == "big"):
        value = value.astype(value.dtype.newbyteorder("<"))
    hasher = hashlib.sha256(f"{path}\0{value.dtype.name}\0{list(value.shape)}\0".encode())
    hasher.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
