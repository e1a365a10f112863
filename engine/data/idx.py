"""The idx file format of MNIST-style data sets, gzipped or not."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from engine.files import FileError, PathLike


def read_idx(path: PathLike) -> np.ndarray:
    """Reads an idx file of unsigned bytes: uint8 array of the shape in its header.

    Raises:
        FileError: not there, not idx, or of another length than its header says.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileError(f"{path}: there is no such file")
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= rank <= 4:
                raise FileError(f"{path}: no idx file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            count = math.prod(shape)
            if count > os.path.getsize(path) * (1032 if zipped else 1):  # deflate cannot pack tighter
                raise FileError(f"{path}: its header promises {count} bytes, more than the file can hold")
            data = file.read(count)
            if len(data) != count or file.read(1):
                raise FileError(
                    f"{path}: its header promises {count} bytes, it has {'more' if len(data) == count else len(data)}"
                )
        return np.frombuffer(data, np.uint8).reshape(shape)
    except FileError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise FileError(f"{path}: damaged or truncated ({error})") from None
