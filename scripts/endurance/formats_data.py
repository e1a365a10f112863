"""Data: arrays, MNIST-style files and folders of images."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import numpy as np

from . import aware
from .formats import Digests, Folder, Format
from .outcomes import sums

_GIF = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"  # one pixel
)


def _labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % 3


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)


def _read_source(spec: str, *, size: int | None = None) -> Digests:
    from engine import data

    source = data.open_data(spec, image_size=None if size is None else (size, size), say=lambda _: None)
    parts = {"train": source.train, "eval": source.eval, "test": source.test}
    found = [("classes", repr(source.classes).encode())]
    for name, part in parts.items():
        if part is not None:
            batch = part.read(np.arange(len(part)))
            for number in range(len(part)):
                found += [(f"{name} {number} {key}", batch[key][number].tobytes()) for key in ("image", "label")]
    return sums(found)


def _write_npz(folder: Folder) -> None:
    arrays: dict[str, Any] = {}
    for name, count in (("train", 9), ("test", 6)):
        arrays |= {f"{name}_images": _images(count), f"{name}_labels": _labels(count)}
    np.savez(folder / "data.npz", **arrays)


def _write_idx(folder: Folder, *, packed: bool) -> None:
    for name, count in (("train", 9), ("t10k", 6)):
        for kind, array in (("images-idx3", _images(count)[..., 0]), ("labels-idx1", _labels(count))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = head + array.tobytes()
            file = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def _image(kind: str, number: int) -> bytes:
    import tensorflow as tf

    pixels = np.repeat(_images(number + 2)[0], 3, axis=-1)
    if kind == "jpg":
        return bytes(tf.io.encode_jpeg(pixels).numpy())
    if kind == "png":
        return bytes(tf.io.encode_png(pixels).numpy())
    if kind == "gif":
        return _GIF
    body = pixels[::-1, :, ::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body


def _write_images(folder: Folder, kind: str) -> None:
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            place = folder / part / label
            place.mkdir(parents=True)
            for number in range(2):
                (place / f"{number}.{kind}").write_bytes(_image(kind, number + 2 * (label == "dog")))


def _folder(kind: str, *, checksums: bool) -> Format:
    return Format(
        kind,
        checksums,
        lambda folder: _write_images(folder, kind),
        lambda folder: _read_source(f"folder:{folder}", size=8),
        damaged=f"train/*/*.{kind}",
    )


FORMATS = (
    Format("data.npz", True, _write_npz, lambda f: _read_source(f"npz:{f / 'data.npz'}"), (aware.edit_zip_directory,)),
    Format("idx", False, lambda f: _write_idx(f, packed=False), lambda f: _read_source(f"idx:{f}")),
    Format("idx.gz", True, lambda f: _write_idx(f, packed=True), lambda f: _read_source(f"idx:{f}")),
    _folder("jpg", checksums=False),
    _folder("png", checksums=False),  # it has checksums, but decoders pass over damage in parts that they do not need
    _folder("gif", checksums=False),
    _folder("bmp", checksums=False),
)
