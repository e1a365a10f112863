"""Decodes one image file to an array of a given form. Sizes are checked before memory is allocated.

By default there are always three channels of uint8: grey is repeated, palettes are looked up, alpha is dropped (leaving
the colour stored below it), CMYK is converted and 16 bits become 8. With ``image_pixels="stored"``, channels and values
are those of the file. Photos are turned upright according to their Exif orientation.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from typing import Any

import numpy as np

from engine.data import tiff
from engine.data.header import BadImageError, Header, read_gif_frame, read_header, skip_gif_data
from engine.data.image_options import ImageForm
from engine.data.resize import Size, fit_within, resize
from engine.sizes import format_bytes

LARGEST_FILE = 1 << 28  # bytes; larger files are not read
LARGEST_DECODED = 1 << 28  # bytes that decoding one image may take: 89 megapixels of RGB
_LARGE = 1 << 25  # bytes from which on images are decoded one at a time
_one_large = threading.Lock()


_ORIENTATION = 274  # the tag of Exif and TIFF
_BACK = {6: 8, 8: 6}  # the orientations that undo others; each other one undoes itself


def decode(data: bytes, form: ImageForm | Size) -> np.ndarray:
    """Decodes an image file to an array of this form [height, width, channels]; a size alone means RGB, cropped.

    A much larger JPEG is decoded at a half, a quarter or an eighth of its size, but at no less than twice the target
    size, so a 40-megapixel photo takes little memory.

    Raises:
        BadImageError: the file is not an image, is damaged or truncated, is larger than ``LARGEST_DECODED`` allows, or
            does not have the channels and values of the form.
    """
    form = form if isinstance(form, ImageForm) else ImageForm(size=form)
    header = read_header(io.BytesIO(data))
    with contextlib.nullcontext() if check_memory(header, form) < _LARGE else _one_large:
        return _decode(data, header, form)


def check_memory(header: Header, form: ImageForm | Size) -> int:
    """Returns the bytes of memory that decoding takes; raises BadImageError if they exceed ``LARGEST_DECODED``."""
    form = form if isinstance(form, ImageForm) else ImageForm(size=form)
    ratio = find_reduction(header, form.size, pad=form.options.image_fit == "pad")
    each = 3
    if form.options.image_pixels == "stored":
        each = header.channels * (header.bits // 8) + (4 * form.shape[2] if form.dtype != np.uint8 else 0)
    needed = -(-header.height // ratio) * -(-header.width // ratio) * each + header.held_bytes
    if needed > LARGEST_DECODED:
        raise BadImageError(
            f"a {header.kind} of {header.width}x{header.height} pixels would take {format_bytes(needed)} to decode; "
            f"the limit is {format_bytes(LARGEST_DECODED)}; make it smaller"
        )
    return needed


def _decode(data: bytes, header: Header, form: ImageForm) -> np.ndarray:
    import tensorflow as tf

    try:
        with tf.device("CPU:0"):
            image = _read_pixels(data, header, form)
    except (tf.errors.OpError, struct.error, IndexError) as error:
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        raise BadImageError(f"a damaged or truncated {header.kind}") from None
    except tiff.TiffError as error:
        raise BadImageError(str(error)) from None
    if form.options.image_pixels == "stored" or form.options.image_mask:
        image = as_form(np.asarray(image), form)
    size = form.size if header.orientation < 5 else form.size[::-1]
    fitted = fit_within if form.options.image_fit == "pad" else resize
    return np.ascontiguousarray(turn_pixels(fitted(tf.expand_dims(image, 0), size)[0], header.orientation))


def as_form(image: np.ndarray, form: ImageForm) -> np.ndarray:
    """The values of one image or of several, uint8, uint16 or float [..., channels], as those of a form: uint8, or float32 in [0, 1].

    Raises BadImageError for another number of channels, values outside of [0, 1], and NaN unless it is missing pixels.
    """
    if image.shape[-1] != form.channels:
        raise BadImageError(f"{image.shape[-1]} channels; expected {form.channels}, as in the other images")
    there = None
    if image.dtype.kind == "f":
        there = ~np.isnan(image)
        if form.options.nan == "stop" and not there.all():
            raise BadImageError(
                f"{there.size - np.count_nonzero(there):,} of {there.size:,} values are NaN; --nan=zero reads them as "
                "missing pixels, which become 0 (--image_mask tells where)"
            )
        image = np.where(there, image, 0).astype(np.float32)
        if image.size and not (image.min() >= 0.0 and image.max() <= 1.0):
            raise BadImageError(f"float values from {image.min():g} to {image.max():g}; expected 0 to 1")
    elif form.dtype == np.float32:
        image = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    elif image.dtype != form.dtype:
        raise BadImageError(f"values are {image.dtype}; expected {form.dtype}, as in the other images")
    if not form.options.image_mask:
        return image
    whole = np.array(1.0 if form.dtype == np.float32 else 255, form.dtype)
    own = np.ones(image.shape[:-1], bool) if there is None else there.all(axis=-1)
    return np.concatenate([image, (own * whole)[..., None].astype(form.dtype)], axis=-1)


def _read_pixels(data: bytes, header: Header, form: ImageForm) -> Any:
    """The pixels of an image file, [height, width, channels], as an array or a tensor."""
    import tensorflow as tf

    stored = form.options.image_pixels == "stored"
    channels = form.channels if form.channels in (1, 3, 4) else header.channels  # the same, if they are of one source
    if header.kind == "JPEG":
        ratio = find_reduction(header, form.size, pad=form.options.image_fit == "pad")
        return tf.io.decode_jpeg(data, channels=min(channels, 3), ratio=ratio, dct_method="INTEGER_ACCURATE")
    if header.kind == "PNG":
        dtype = tf.uint16 if stored and header.bits == 16 else tf.uint8
        if channels == 2:  # grey with alpha, which the decoder gives as colour with alpha
            return tf.io.decode_png(data, channels=4, dtype=dtype)[..., ::3]
        return tf.io.decode_png(data, channels=channels, dtype=dtype)
    if header.kind == "GIF":
        return tf.io.decode_gif(_first_frame(data))[0]
    if header.kind == "BMP":
        return tf.constant(_bmp(data, header))
    if header.kind == "TIFF" and stored:
        return tiff.read_stored(data, tiff.read_pages(io.BytesIO(data)))
    return _read_by_pillow(data, header, alpha=stored and header.channels == 4)


def _read_by_pillow(data: bytes, header: Header, *, alpha: bool) -> np.ndarray:
    """A WebP or a TIFF of at most 8 bits as uint8 RGB, or RGBA with ``alpha``."""
    from PIL import Image

    if header.kind == "TIFF" and (header.bits > 8 or header.pages > 1):
        what = f"{header.bits} bits" if header.pages == 1 else f"{header.pages} pages"
        raise BadImageError(f"a TIFF of {what}; --image_pixels=stored reads its values and pages as they are")
    try:
        with Image.open(io.BytesIO(data), formats=[header.kind]) as image:
            sizes = [(header.width, header.height)]  # as stored, or as Pillow will turn a TIFF
            sizes += [(header.height, header.width)] if header.kind == "TIFF" and header.orientation >= 5 else []
            if image.size not in sizes:
                raise BadImageError(f"a damaged {header.kind}")
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                raise BadImageError(
                    f"a {header.kind} of the kind {image.mode}; --image_pixels=stored reads its values as they are"
                )
            found = np.array(image.convert("RGBA" if alpha else "RGB"))
            if header.orientation != 1 and image.getexif().get(_ORIENTATION, 1) == 1:
                # Pillow turns a TIFF upright while it reads it; here that is done once, after it was resized
                found = turn_pixels(found, undo_orientation(header.orientation))
            return found
    except BadImageError:
        raise
    except Exception:  # Pillow and its libraries raise half a dozen types
        raise BadImageError(
            f"a damaged or truncated {header.kind}, or one of a kind that Pillow does not read"
        ) from None


def find_reduction(header: Header, size: Size, *, pad: bool = False) -> int:
    """The factor by which a JPEG is reduced while it is decoded to cover a size, or to fit within it: 1, 2, 4 or 8."""
    if header.kind != "JPEG":
        return 1
    height, width = size if header.orientation < 5 else size[::-1]
    sides = (header.height / height, header.width / width)
    larger = max(sides) if pad else min(sides)
    return next((ratio for ratio in (8, 4, 2) if larger >= 2 * ratio), 1)


def undo_orientation(orientation: int) -> int:
    """The Exif orientation that turns an upright image back to how it is stored.

    Example:
        >>> undo_orientation(6), undo_orientation(3)
        (8, 3)
    """
    return _BACK.get(orientation, orientation)


def turn_pixels(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an Exif orientation of [height, width, ...]: 2 to 4 mirror or rotate by 180 degrees, 5 to 8 also exchange the axes."""
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
