"""Reads the header of an image file (kind, size, orientation) before anything is decoded.

The file's name is not trusted, and no memory is allocated according to a size that the file claims.
Sources: ITU T.81 (JPEG), W3C PNG, GIF89a, BITMAPINFOHEADER, Exif 2.3 (orientation, tag 0x0112), RFC 9649 (WebP);
engine.data.tiff reads TIFF.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from engine.data import tiff

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")
PILLOW_SUFFIXES = (".webp", ".tif", ".tiff")  # read where Pillow is installed
INSTALL_PILLOW = "pip install 'frostline[images]'"


@functools.cache
def has_pillow() -> bool:
    """Whether Pillow is installed, without which WebP and TIFF files are not images."""
    return importlib.util.find_spec("PIL") is not None


def image_suffixes() -> tuple[str, ...]:
    """The suffixes, in lower case, of the files that are read as images."""
    return SUFFIXES + PILLOW_SUFFIXES if has_pillow() else SUFFIXES


def describe_left_out(suffix: str) -> str:
    """What files with a suffix that no image has are called where they are counted."""
    if not suffix:
        return "files without a suffix"
    return f"{suffix} files" + (f" ({INSTALL_PILLOW} reads them)" if suffix in PILLOW_SUFFIXES else "")


class BadImageError(ValueError):
    """A file is not a usable image. The message gives the reason, but not the file's name, which the caller knows."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of an image file.

    Attributes:
        kind: JPEG, PNG, GIF, BMP, WebP or TIFF.
        height, width: the size in pixels as stored, before any rotation.
        orientation: the Exif orientation, 1 to 8; 1 is upright. Only JPEG, WebP and TIFF files have another.
        held_bytes: the memory that the decoder needs besides its result (the coefficients of a progressive JPEG).
        channels, bits: the channels that the file stores (3 for a palette), and the bits of each, 8 for fewer.
        pages: the images in a TIFF.
        whole: whether decoding gives an image of this size; of a GIF whose first frame is smaller, it gives that frame.
    """

    kind: str
    height: int
    width: int
    orientation: int = 1
    held_bytes: int = 0
    channels: int = 3
    bits: int = 8
    pages: int = 1
    whole: bool = True

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the image turned upright."""
        return (self.height, self.width) if self.orientation < 5 else (self.width, self.height)


def read_header(file: BinaryIO) -> Header:
    """Reads the header of an image file that is open at its beginning.

    Raises BadImageError if the file is empty, of another type, damaged or without pixels.
    """
    start = file.read(32)
    if not start:
        raise BadImageError("the file is empty")
    file.seek(0)
    try:
        if start.startswith(b"\xff\xd8\xff"):
            header = _jpeg(file)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            header = _png(file)
        elif start.startswith((b"GIF87a", b"GIF89a")):
            header = read_gif_frame(file)
        elif start.startswith(b"BM"):
            header = _bmp(file)
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            header = _webp(file)
        elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            header = _tiff(file)
        else:
            raise BadImageError(f"not a JPEG, PNG, GIF or BMP; the file begins with {_shown(start)}")
    except struct.error:
        raise BadImageError("the file ends within its header") from None
    if header.height < 1 or header.width < 1:
        raise BadImageError(f"the header claims {header.width}x{header.height} pixels")
    return header


def _shown(start: bytes) -> str:
    text = start.decode("ascii", "replace")
    return repr(text.strip()[:24]) if text.replace("\n", " ").replace("\r", " ").isprintable() else start[:8].hex(" ")


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


# ---- JPEG
def _jpeg(file: BinaryIO) -> Header:
    file.seek(2)
    orientation, frame, progressive = 1, None, False
    while True:
        marker = _marker(file)
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue  # these have no length
        if marker == 0xD9:
            raise BadImageError("a JPEG that ends before its image data")
        at = file.tell()
        (length,) = _unpack(file, ">H")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, *frame = _unpack(file, ">BHHB")
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == 0xE1 and orientation == 1:
            orientation = _orientation(file.read(max(length - 2, 0)))
        elif marker == 0xDA:
            if frame is None:
                raise BadImageError("a JPEG without a size")
            height, width, components = frame
            # With several scans the decoder keeps every coefficient (16 bits), whatever its output size.
            several = progressive or _unpack(file, ">B")[0] < components
            return Header(
                kind="JPEG",
                height=height,
                width=width,
                orientation=orientation,
                held_bytes=2 * height * width * components if several else 0,
                channels=1 if components == 1 else 3,
            )
        file.seek(at + max(length, 2))


def _marker(file: BinaryIO) -> int:
    """The code of the next marker. Stray bytes before it are skipped, as decoders do."""
    byte = file.read(1)
    for _ in range(1 << 16):
        if not byte:
            raise BadImageError("a JPEG that ends within its header")
        if byte == b"\xff":
            while byte == b"\xff":
                byte = file.read(1)
            if byte and byte != b"\0":
                return byte[0]
        byte = file.read(1)
    raise BadImageError("a JPEG with a damaged header")


def _orientation(segment: bytes) -> int:
    """Tag 0x0112 of the first directory of an Exif segment; 1 if it is missing or invalid."""
    if segment[:6] != b"Exif\0\0" or segment[6:8] not in (b"II", b"MM"):
        return 1
    tiff, order = segment[6:], "<" if segment[6:8] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * number)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# ---- PNG, BMP
def _png(file: BinaryIO) -> Header:
    file.seek(8)
    if file.read(8)[4:] != b"IHDR":
        raise BadImageError("a PNG without a header")
    width, height, depth, colours = _unpack(file, ">IIBB")
    channels = {0: 1, 4: 2, 6: 4}.get(colours, 3)
    return Header(kind="PNG", height=height, width=width, channels=channels, bits=max(depth, 8))


def _bmp(file: BinaryIO) -> Header:
    file.seek(14)
    (length,) = _unpack(file, "<I")
    if length < 40:
        raise BadImageError(f"a BMP with a header of {length} bytes (OS/2?) is not supported; save it as PNG")
    width, height = _unpack(file, "<ii")
    return Header(kind="BMP", height=abs(height), width=width)


# ---- WebP, TIFF
def _webp(file: BinaryIO) -> Header:
    _require_pillow("WebP")
    (length,) = _unpack(file, "<4xI")
    if file.seek(0, 2) < length + 8:
        raise BadImageError("a truncated WebP")
    file.seek(12)
    name, start = file.read(4), file.read(14)[4:]
    alpha = False
    if name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 6))
    elif name == b"VP8L":
        (packed,) = struct.unpack_from("<I", start, 1)
        width, height, alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bool(packed >> 28 & 1)
    elif name == b"VP8X" and len(start) == 10:
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (4, 7))
        alpha = bool(start[0] & 0x10)
    else:
        raise BadImageError("a damaged WebP")
    orientation = _webp_orientation(file) if name == b"VP8X" and start[0] & 0x08 else 1
    return Header(kind="WebP", height=height, width=width, orientation=orientation, channels=3 + alpha)


def _webp_orientation(file: BinaryIO) -> int:
    """The orientation in the Exif chunk of a WebP."""
    place = 12
    for _ in range(1 << 12):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        if name == b"EXIF":
            content = file.read(min(length, 1 << 16))
            return _orientation(content if content.startswith(b"Exif\0\0") else b"Exif\0\0" + content)
        place += 8 + length + length % 2
    return 1


def _tiff(file: BinaryIO) -> Header:
    _require_pillow("TIFF")
    try:
        pages = tiff.read_pages(file)
    except tiff.TiffError as error:
        raise BadImageError(str(error)) from None
    first = pages[0]
    return Header(
        kind="TIFF",
        height=max(page.height for page in pages),
        width=max(page.width for page in pages),
        orientation=first.orientation,
        channels=sum(page.samples for page in pages),
        bits=max(8, *first.bits),
        pages=len(pages),
    )


def check_stored_tiff(file: BinaryIO) -> np.dtype[Any]:
    """The dtype of the values of a TIFF; raises BadImageError unless they can be read as they are stored."""
    try:
        return tiff.check_stored(tiff.read_pages(file))[1]
    except tiff.TiffError as error:
        raise BadImageError(str(error)) from None


def _require_pillow(kind: str) -> None:
    if not has_pillow():
        raise BadImageError(f"a {kind}, which needs the package Pillow: {INSTALL_PILLOW}")


# ---- GIF
def read_gif_frame(file: BinaryIO) -> Header:
    """Reads a GIF's size, the larger of screen and first frame; leaves the file at the data of the first frame."""
    file.seek(6)
    width, height, packed, _, _ = _unpack(file, "<HHBBB")
    file.seek(_colours(packed), 1)
    while True:
        (block,) = _unpack(file, "<B")
        if block == 0x21:
            file.seek(1, 1)
            skip_gif_data(file)
        elif block == 0x2C:
            left, top, frame_width, frame_height, packed = _unpack(file, "<HHHHB")
            file.seek(_colours(packed), 1)
            if frame_width < 1 or frame_height < 1:
                raise BadImageError("a GIF whose first frame has no pixels")
            whole = (left, top) == (0, 0) and frame_height >= height and frame_width >= width
            return Header(
                kind="GIF", height=max(height, top + frame_height), width=max(width, left + frame_width), whole=whole
            )
        else:
            raise BadImageError("a GIF without an image" if block == 0x3B else "a damaged GIF")


def _colours(packed: int) -> int:
    """The size in bytes of the colour table that this field announces."""
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def skip_gif_data(file: BinaryIO) -> None:
    """Skips the sub-blocks of a GIF, including their terminator."""
    while True:
        length = file.read(1)
        if not length:
            raise BadImageError("a truncated GIF")
        if length == b"\0":
            return
        file.seek(length[0], 1)
