"""One image file to uint8 RGB of a wanted size. Sizes are checked before memory is taken.

Three channels always: grey is repeated, palettes are looked up, alpha is dropped (the colour stored under it
stays), CMYK is converted, 16 bits become 8. Photographs are turned upright by their Exif orientation.
"""

from __future__ import annotations

import io
import struct
import threading

import numpy as np
import tensorflow as tf

from engine.data.header import BadImageError, Header, gif_frame, read_header, skip_gif_data
from engine.data.resize import Size, fit
from engine.sizes import format_bytes

LARGEST_FILE = 1 << 28  # bytes of a file that are read at all
LARGEST_DECODED = 1 << 28  # bytes that decoding one image may take: 89 megapixels of RGB
_LARGE = 1 << 25  # from here on, images are decoded one at a time
_one_large = threading.Lock()


def decode(data: bytes, size: Size) -> np.ndarray:
    """Decodes an image file: uint8 [height, width, 3] of ``size``.

    A JPEG much larger than wanted is decoded at a half, a quarter or an eighth of its size, but at least
    at twice the wanted one, so a 40-megapixel photograph takes little memory.

    Raises:
        BadImageError: no image, damaged or truncated, or larger than ``LARGEST_DECODED`` allows.
    """
    header = read_header(io.BytesIO(data))
    needed = check_memory(header, size)
    if needed < _LARGE:
        return _decode(data, header, size)
    with _one_large:
        return _decode(data, header, size)


def check_memory(header: Header, size: Size) -> int:
    """Bytes that decoding takes. Raises BadImageError above ``LARGEST_DECODED``."""
    ratio = _ratio(header, size)
    needed = -(-header.height // ratio) * -(-header.width // ratio) * 3 + header.held_bytes
    if needed > LARGEST_DECODED:
        raise BadImageError(
            f"a {header.kind} of {header.width}x{header.height} pixels would take {format_bytes(needed)} to decode; "
            f"{format_bytes(LARGEST_DECODED)} is the limit; make it smaller"
        )
    return needed


def _decode(data: bytes, header: Header, size: Size) -> np.ndarray:
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
    fitted = fit(tf.expand_dims(image, 0), wanted)[0]
    return np.ascontiguousarray(_upright(fitted, header.orientation))


def _ratio(header: Header, size: Size) -> int:
    """By how much a JPEG is reduced while it is decoded: 1, 2, 4 or 8."""
    if header.kind != "JPEG":
        return 1
    height, width = size if header.orientation < 5 else size[::-1]
    room = min(header.height / height, header.width / width)
    return next((ratio for ratio in (8, 4, 2) if room >= 2 * ratio), 1)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes Exif's orientation: 2 to 4 mirror or turn about, 5 to 8 also exchange the axes."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _first_frame(data: bytes) -> bytes:
    """A GIF cut after its first frame: the decoder would unpack all frames of an animation."""
    file = io.BytesIO(data)
    gif_frame(file)
    file.seek(1, 1)  # the code size
    skip_gif_data(file)
    return data[: file.tell()] + b"\x3b"


def _bmp(data: bytes, header: Header) -> np.ndarray:
    """An uncompressed BMP of 1, 4, 8 (palette), 24 or 32 bits. (TensorFlow's decoder ignores palettes.)"""
    (begins,) = struct.unpack_from("<I", data, 10)
    (length,) = struct.unpack_from("<I", data, 14)
    (signed_height,) = struct.unpack_from("<i", data, 22)
    bits, compression = struct.unpack_from("<HI", data, 28)
    (used,) = struct.unpack_from("<I", data, 46)
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
