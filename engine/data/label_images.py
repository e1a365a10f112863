"""Reads label images (masks): the number that is stored at each pixel, exactly, whatever colour it is shown in.

Decoders of pictures change such numbers: they look up palettes and stretch 1, 2 or 4 bits to the range of 8. So a palette is
taken away before the pixels are decoded, and what was stretched is divided again.
Source: W3C Portable Network Graphics (PNG) Specification, chunks and colour types.
"""

from __future__ import annotations

import io
import pathlib
import struct
import zlib

import numpy as np

from engine.data.decode import LARGEST_DECODED, LARGEST_FILE
from engine.data.header import BadImageError, Header, read_header
from engine.data.resize import Size
from engine.files import FileError
from engine.reading import read_file
from engine.sizes import format_bytes

SUFFIX = ".png"
_GREY, _PALETTE = 0, 3  # colour types
_STRETCHED = {1: 255, 2: 85, 4: 17}  # bits -> the factor by which a decoder multiplies such values


def read_label_image(path: pathlib.Path) -> np.ndarray:
    """Reads a PNG of one number per pixel, grey or with a palette: uint8 or uint16 [height, width].

    A colour image whose channels are all equal is taken as grey. Raises BadImageError for any other file, or one that is
    damaged or too large.
    """
    try:
        data = read_file(path, LARGEST_FILE)
    except FileError as error:
        raise BadImageError(str(error).removeprefix(f"{path}: ")) from None
    except OSError as error:
        raise BadImageError(f"cannot be opened ({error.strerror or error})") from None
    header = read_header(io.BytesIO(data))
    if header.kind != "PNG":
        raise BadImageError(f"a {header.kind}; expected a PNG, which stores the numbers of classes exactly")
    return _decode(data, header)


def _decode(data: bytes, header: Header) -> np.ndarray:
    import tensorflow as tf

    bits, colour = data[24:26].ljust(2, b"\0")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if channels is None or bits not in (1, 2, 4, 8, 16):
        raise BadImageError("a PNG with a damaged header")
    needed = header.height * header.width * channels * (2 if bits == 16 else 1)
    if needed > LARGEST_DECODED:
        raise BadImageError(
            f"a PNG of {header.width}x{header.height} pixels would take {format_bytes(needed)} to decode; the limit is "
            f"{format_bytes(LARGEST_DECODED)}"
        )
    dtype = tf.uint16 if bits == 16 else tf.uint8
    try:
        with tf.device("CPU:0"):
            numbers = tf.io.decode_png(_plain(data, colour), channels=0, dtype=dtype).numpy()
    except (tf.errors.InvalidArgumentError, struct.error):
        raise BadImageError("a damaged or truncated PNG") from None
    if colour in (2, 6) and (numbers[..., :1] != numbers[..., 1:3]).any():
        raise BadImageError("a PNG of colours; expected the number of a class for each pixel, grey or with a palette")
    if colour in (4, 6) and (numbers[..., -1] != np.iinfo(numbers.dtype).max).any():
        raise BadImageError("a PNG with transparent pixels; expected the number of a class for each pixel")
    return np.ascontiguousarray(numbers[..., 0]) // numbers.dtype.type(_STRETCHED.get(bits, 1))


def _plain(data: bytes, colour: int) -> bytes:
    """The file with its pixels alone: no palette or transparent colour, and indices into a palette as shades of grey."""
    found, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind == b"IHDR" and colour == _PALETTE:
            body = data[at + 8 : at + 17] + bytes([_GREY]) + data[at + 18 : at + 8 + length]
            found.append(struct.pack(">I", length) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        elif kind in (b"IHDR", b"IDAT", b"IEND"):
            found.append(data[at:end])
        at = end
    return b"".join(found)


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes labels [height, width] as ``engine.data.resize.resize`` does images, but by the nearest pixel: no number is new."""
    scale = max(want / have for want, have in zip(size, labels.shape, strict=True))
    rows, columns = (
        np.clip(np.floor((np.arange(want) + 0.5 - (want - have * scale) / 2) / scale), 0, have - 1).astype(np.int64)
        for want, have in zip(size, labels.shape, strict=True)
    )
    found: np.ndarray = labels[rows[:, None], columns[None, :]]
    return found
