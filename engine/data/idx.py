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


_FILES = {("train", "images"): "train-images", ("train", "labels"): "train-labels",
          ("test", "images"): "t10k-images", ("test", "labels"): "t10k-labels"}  # fmt: skip


def holds_idx(folder: PathLike) -> bool:
    """Whether a folder has all four files of an MNIST-style data set."""
    return all(_find(pathlib.Path(folder), stem) is not None for stem in _FILES.values())


def read_idx_folder(folder: PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the four files of an MNIST-style data set, named ``train-images-idx3-ubyte`` or
    ``train-images.idx3-ubyte``, with or without ``.gz`` (and ``train-labels``, ``t10k-images``, ``t10k-labels``).

    Returns:
        "train" and "test" -> images uint8 [n, height, width], labels uint8 [n].

    Raises:
        FileError: no such folder, a file that is missing or damaged, or labels that do not fit the images.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileError(
            f"{folder}: {'it is a file' if folder.exists() else 'there is no such folder'}; a folder is wanted"
        )
    found = {key: _find(folder, stem) for key, stem in _FILES.items()}
    missing = [_names(stem)[0] for key, stem in _FILES.items() if found[key] is None]
    if missing:
        raise FileError(f"{folder}: it has no {' and no '.join(missing)} (with or without .gz)")
    read: dict[tuple[str, str], np.ndarray] = {}
    for (part, what), file in found.items():
        assert file is not None
        read[part, what] = read_idx(file)
        wanted = (3, 4) if what == "images" else (1,)
        if read[part, what].ndim not in wanted:
            raise FileError(f"{file}: it has shape {list(read[part, what].shape)}; those are no {what}")
    return {part: (read[part, "images"], read[part, "labels"]) for part in ("train", "test")}


def _names(stem: str) -> list[str]:
    rank = 3 if stem.endswith("images") else 1
    return [f"{stem}{mark}idx{rank}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")]


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    return next((folder / name for name in _names(stem) if (folder / name).is_file()), None)
