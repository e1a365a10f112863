"""Reads the idx file format of MNIST-style data sets, gzipped or not."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from engine.files import FileError, PathLike
from engine.reading import check_memory, check_regular, describe_kind, open_file


def read_idx(path: PathLike) -> np.ndarray:
    """Reads an idx file of unsigned bytes as a uint8 array; raises FileError if it is missing or damaged."""
    path = pathlib.Path(path)
    check_regular(path)
    try:
        with open_file(path) as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with open_file(path) as raw, gzip.open(raw) if zipped else raw as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= rank <= 4:
                raise FileError(f"{path}: not an idx file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            count = math.prod(shape)
            if count > os.path.getsize(path) * (1032 if zipped else 1):  # deflate's limit
                raise FileError(f"{path}: the header claims {count} bytes, more than the file can hold")
            check_memory(path, count)
            data = file.read(count)
            if len(data) != count or file.read(1):
                raise FileError(
                    f"{path}: the header claims {count} bytes, but the file has "
                    f"{'more' if len(data) == count else len(data)}"
                )
        return np.frombuffer(data, np.uint8).reshape(shape)
    except FileError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise FileError(f"{path}: damaged or truncated ({error})") from None


_FILES = {("train", "images"): "train-images", ("train", "labels"): "train-labels",
          ("test", "images"): "t10k-images", ("test", "labels"): "t10k-labels"}  # fmt: skip


def holds_idx(folder: PathLike) -> bool:
    """Whether a folder has all four files of an MNIST-style data set."""
    return all(_find(pathlib.Path(folder), stem) is not None for stem in _FILES.values())


def read_idx_folder(folder: PathLike, *, to_train: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the four files of an MNIST-style data set, named ``train-images-idx3-ubyte`` or
    ``train-images.idx3-ubyte``, with or without ``.gz`` (and ``train-labels``, ``t10k-images``, ``t10k-labels``).

    Returns, for "train" and "test", the images uint8 [n, height, width] and the labels uint8 [n]; "test" alone may be there
    unless ``to_train``. Raises FileError if
    the folder does not exist, or a file is missing, damaged or of the wrong rank.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
        raise FileError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise FileError(f"{folder}: it is {describe_kind(folder.stat().st_mode)}; expected a folder")
    found = {key: _find(folder, stem) for key, stem in _FILES.items()}
    if not to_train and not any(file for (part, _), file in found.items() if part == "train"):
        found = {key: file for key, file in found.items() if key[0] == "test"}
    missing = [_names(stem)[0] for key, stem in _FILES.items() if found[key] is None]
    if missing:
        raise FileError(f"{folder}: the folder has no {' and no '.join(missing)} (with or without .gz)")
    read: dict[tuple[str, str], np.ndarray] = {}
    for (part, what), file in found.items():
        assert file is not None
        read[part, what] = read_idx(file)
        wanted = (3, 4) if what == "images" else (1,)
        if read[part, what].ndim not in wanted:
            raise FileError(f"{file}: shape {list(read[part, what].shape)} cannot be {what}")
    return {part: (read[part, "images"], read[part, "labels"]) for part in dict.fromkeys(key[0] for key in read)}


def _names(stem: str) -> list[str]:
    rank = 3 if stem.endswith("images") else 1
    return [f"{stem}{mark}idx{rank}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")]


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    return next((folder / name for name in _names(stem) if (folder / name).is_file()), None)
