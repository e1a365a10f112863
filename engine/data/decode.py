"""Decodes one image file to uint8 RGB of a given size. Sizes are checked before memory is allocated.

There are always three channels: grey is repeated, palettes are looked up, alpha is dropped (leaving the colour stored
below it), CMYK is converted and 16 bits become 8. Photos are turned upright according to their Exif orientation.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading

import numpy as np

from engine.data.header import BadImageError, Header, read_gif_frame, read_header, skip_gif_data
from engine.data.resize import Size, resize
from engine.sizes import format_bytes

LARGEST_FILE = 1 << 28  # bytes; larger files are not read
LARGEST_DECODED = 1 << 28  # bytes that decoding one image may take: 89 megapixels of RGB
_LARGE = 1 << 25  # bytes from which on images are decoded one at a time
_one_large = threading.Lock()


def decode(data: bytes, size: Size) -> np.ndarray:
    """Decodes an image file to uint8 [height, width, 3] of the given (height, width).

    A much larger JPEG is decoded at a half, a quarter or an eighth of its size, but at no less than twice the target
    size, so a 40-megapixel photo takes little memory.

    Raises:
        BadImageError: the file is not an image, is damaged or truncated, or is larger than ``LARGEST_DECODED`` allows.
    """
    header = read_header(io.BytesIO(data))
    with contextlib.nullcontext() if check_memory(header, size) < _LARGE else _one_large:
        return _decode(data, header, size)


def check_memory(header: Header, size: Size) -> int:
    """Returns the bytes of memory that decoding takes; raises BadImageError if they exceed ``LARGEST_DECODED``."""
    ratio = _ratio(header, size)
    needed = -(-header.height // ratio) * -(-header.width // ratio) * 3 + header.held_bytes
    if needed > LARGEST_DECODED:
        raise BadImageError(
            f"a {header.kind} of {header.width}x{header.height} pixels would take {format_bytes(needed)} to decode; "
            f"the limit is {format_bytes(LARGEST_DECODED)}; make it smaller"
        )
    return needed


def _decode(data: bytes, header: Header, size: Size) -> np.ndarray:
    import tensorflow as tf

    try:
        with tf.device("CPU:0"):
            if header.kind == "JPEG":
                ratio = _ratio(header, size)
                image = tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
            elif header.kind == "PNG":
                image = tf.io.decode_png(data, channels=3)
            elif header.kind == "GIF":
                image = tf.io.decode_gif(_first_frame(data))[0]
            else:
                image = tf.constant(_bmp(data, header))
    except (tf.errors.OpError, struct.error, IndexError) as error:
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        raise BadImageError(f"a damaged or truncated {header.kind}") from None
    wanted = size if header.orientation < 5 else size[::-1]
    fitted = resize(tf.expand_dims(image, 0), wanted)[0]
    return np.ascontiguousarray(_upright(fitted, header.orientation))


def _ratio(header: Header, size: Size) -> int:
    """The factor by which a JPEG is reduced while it is decoded: 1, 2, 4 or 8."""
    if header.kind != "JPEG":
        return 1
    height, width = size if header.orientation < 5 else size[::-1]
    larger = min(header.height / height, header.width / width)
    return next((ratio for ratio in (8, 4, 2) if larger >= 2 * ratio), 1)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the Exif orientation: 2 to 4 mirror or rotate by 180 degrees, 5 to 8 also exchange the axes."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _first_frame(data: bytes) -> bytes:
    """Cuts a GIF after its first frame, because the decoder would unpack all frames of an animation."""
    file = io.BytesIO(data)
    read_gif_frame(file)
    file.seek(1, 1)  # the code size
    skip_gif_data(file)
    return data[: file.tell()] + b"\x3b"


def _bmp(data: bytes, header: Header) -> np.ndarray:
    """Decodes an uncompressed BMP of 1, 4 or 8 (palette), 24 or 32 bits. (TensorFlow's decoder ignores palettes.)"""
    begins, length, signed_height, bits, compression, used = struct.unpack_from("<II4xi2xHI12xI", data, 10)
    masks = struct.unpack_from("<III", data, 54) if compression == 3 else None
    standard = compression == 0 or (bits == 32 and masks == (0xFF0000, 0xFF00, 0xFF))
    if bits not in (1, 4, 8, 24, 32) or not standard:
        raise BadImageError(f"a BMP of {bits} bits, compression {compression}, which is not supported; save it as PNG")
    row = -(-header.width * bits // 32) * 4
    if begins + row * header.height > len(data):
        raise BadImageError("a truncated BMP")
    rows = np.frombuffer(data, np.uint8, row * header.height, begins).reshape(header.height, row)
    if signed_height > 0:  # stored from the bottom up
        rows = rows[::-1]
    if bits >= 24:
        return np.ascontiguousarray(
            rows[:, : header.width * bits // 8].reshape(header.height, header.width, -1)[..., 2::-1]
        )
    count = min(used or 1 << bits, 1 << bits)
    palette = np.zeros((256, 4), np.uint8)
    stored = np.frombuffer(data[14 + length :][: 4 * count], np.uint8)
    palette[: len(stored) // 4] = stored[: len(stored) // 4 * 4].reshape(-1, 4)
    if bits < 8:
        each = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        rows = ((rows[:, :, None] >> each) & ((1 << bits) - 1)).reshape(header.height, -1)
    return palette[rows[:, : header.width], 2::-1]
