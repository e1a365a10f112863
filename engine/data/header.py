"""Reads the header of an image file (kind, size, orientation) before anything is decoded.

The file's name is not trusted, and no memory is allocated according to a size that the file claims.
Sources: ITU T.81 (JPEG), W3C PNG, GIF89a, BITMAPINFOHEADER, Exif 2.3 (orientation, tag 0x0112).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")


class BadImageError(ValueError):
    """A file is not a usable image. The message gives the reason, but not the file's name, which the caller knows."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of an image file.

    Attributes:
        kind: JPEG, PNG, GIF or BMP.
        height, width: the size in pixels as stored, before any rotation.
        orientation: the Exif orientation, 1 to 8; 1 is upright. Only JPEG files have another.
        held_bytes: the memory that the decoder needs besides its result (the coefficients of a progressive JPEG).
    """

    kind: str
    height: int
    width: int
    orientation: int = 1
    held_bytes: int = 0


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
            held = 2 * height * width * components if several else 0
            return Header(kind="JPEG", height=height, width=width, orientation=orientation, held_bytes=held)
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
    width, height = _unpack(file, ">II")
    return Header(kind="PNG", height=height, width=width)


def _bmp(file: BinaryIO) -> Header:
    file.seek(14)
    (length,) = _unpack(file, "<I")
    if length < 40:
        raise BadImageError(f"a BMP with a header of {length} bytes (OS/2?) is not supported; save it as PNG")
    width, height = _unpack(file, "<ii")
    return Header(kind="BMP", height=abs(height), width=width)


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
            return Header(kind="GIF", height=max(height, top + frame_height), width=max(width, left + frame_width))
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
