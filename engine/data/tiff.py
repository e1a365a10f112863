"""Reads TIFF files exactly: 8 and 16 bits and floats, any number of channels, several pages as channels.

The directory is read by hand, with every size checked before memory is allocated; what the file compresses is unpacked
by zlib, or by the TIFF library inside Pillow. Source: TIFF 6.0, its Technical Notes 2 and 3, BigTIFF (libtiff.gitlab.io).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of a value, by the types of whole numbers that sizes and places have
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_PAGES, _MOST_TAGS, _MOST_VALUES = 4096, 4096, 1 << 20
LARGEST_PIECE = 1 << 28  # bytes of a strip or tile, unpacked
_NONE, _DEFLATE = 1, (8, 32946)
_PACKED = {5: "LZW", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}  # lossless, over bytes


class TiffError(ValueError):
    """A file is not a usable TIFF. The message gives the reason, but not the file's name."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One image of a TIFF, as its directory describes it; the names are those of the tags."""

    order: str
    height: int
    width: int
    bits: tuple[int, ...]
    kind: int  # SampleFormat: 1 whole numbers, 2 signed ones, 3 floats
    samples: int
    compression: int
    predictor: int
    photometric: int
    separate: bool
    orientation: int
    tile: tuple[int, int]  # height and width of the pieces; strips are as wide as the image
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    fill_order: int


def read_pages(file: BinaryIO) -> list[Page]:
    """Reads the directories of a TIFF, but no pixels; copies of reduced size are left out. Raises TiffError."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    try:
        (magic,) = struct.unpack_from(order + "H", start, 2)
        big = magic == 43
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)
        pages: list[Page] = []
        seen: set[int] = set()
        while place and place not in seen:
            if len(seen) >= _MOST_PAGES:
                raise TiffError(f"a TIFF of more than {_MOST_PAGES} pages")
            seen.add(place)
            tags, place = _read_directory(file, place, order, big=big, length=length)
            if not tags.get(254, (0,))[0] & 1:
                page = _describe(tags, order)
                if any(at + count > length for at, count in zip(page.offsets, page.counts, strict=False)):
                    raise TiffError("a truncated TIFF")
                pages.append(page)
    except (struct.error, IndexError, OverflowError, OSError):
        raise TiffError("a damaged or truncated TIFF") from None
    if not pages:
        raise TiffError("a TIFF without an image")
    return pages


def _read_directory(
    file: BinaryIO, place: int, order: str, *, big: bool, length: int
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The whole-number values of a directory's tags, and the place of the next directory."""
    if place >= length:
        raise TiffError("a truncated TIFF")
    file.seek(place)
    head, entry, inline = ("Q", struct.Struct(order + "HHQ8s"), 8) if big else ("H", struct.Struct(order + "HHI4s"), 4)
    (count,) = struct.unpack(order + head, file.read(struct.calcsize(head)))
    if count > _MOST_TAGS:
        raise TiffError("a damaged TIFF: its directory claims too many entries")
    entries = [entry.unpack(file.read(entry.size)) for _ in range(count)]
    (following,) = struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))
    found: dict[int, tuple[int, ...]] = {}
    for tag, kind, values, content in entries:
        if kind not in _SIZES or not values:
            continue
        size = _SIZES[kind] * values
        if size > inline:
            (at,) = struct.unpack(order + ("Q" if big else "I"), content)
            if values > _MOST_VALUES or at + size > length:
                raise TiffError("a damaged or truncated TIFF")
            file.seek(at)
            content = file.read(size)
        found[tag] = struct.unpack_from(f"{order}{values}{_LETTERS[kind]}", content)
    return found, following


def _describe(tags: dict[int, tuple[int, ...]], order: str) -> Page:
    def one(tag: int, default: int) -> int:
        return tags.get(tag, (default,))[0]

    height, width, samples = one(257, 0), one(256, 0), one(277, 1)
    if height < 1 or width < 1 or not 1 <= samples <= 4096:
        raise TiffError(f"a TIFF whose header claims {width}x{height} pixels of {samples} channels")
    tiled = 322 in tags
    kinds = set(tags.get(339, (1,)))
    if len(kinds) > 1:
        raise TiffError("a TIFF whose channels have different kinds of numbers")
    rows = min(one(278, height), height)
    return Page(
        order=order,
        height=height,
        width=width,
        bits=tuple(tags.get(258, (1,))),
        kind=kinds.pop(),
        samples=samples,
        compression=one(259, _NONE),
        predictor=one(317, 1),
        photometric=one(262, 1),
        separate=one(284, 1) == 2 and samples > 1,
        orientation=one(274, 1) if 1 <= one(274, 1) <= 8 else 1,
        tile=(one(323, 0), one(322, 0)) if tiled else (rows, width),
        offsets=tags.get(324 if tiled else 273, ()),
        counts=tags.get(325 if tiled else 279, ()),
        fill_order=one(266, 1),
    )


def check_stored(pages: list[Page]) -> tuple[int, np.dtype[Any]]:
    """The channels of all pages together, and the dtype of their values: uint8, uint16 or a float.

    Raises TiffError if the pages differ, or are of a kind that ``read_stored`` does not read.
    """
    first = pages[0]
    for page in pages:
        if (page.height, page.width) != (first.height, first.width):
            raise TiffError(
                f"a TIFF with pages of {first.width}x{first.height} and {page.width}x{page.height} pixels; pages that are "
                "channels of an image have one size"
            )
        if (page.bits[0], page.kind) != (first.bits[0], first.kind) or len(set(page.bits)) > 1:
            raise TiffError("a TIFF whose pages or channels have different kinds of numbers")
        if page.photometric in (3, 6, 8, 9, 10):
            raise TiffError(
                "a TIFF with a palette or another space of colours; --image_pixels=rgb converts it, or save it as grey or RGB"
            )
        if page.compression not in (_NONE, *_DEFLATE, *_PACKED):
            raise TiffError(
                f"a TIFF of compression {page.compression}, which is not supported; save it uncompressed, or with "
                "Deflate or LZW"
            )
        if page.predictor not in (1, 2, 3) or (page.predictor == 3 and page.kind != 3):
            raise TiffError(f"a TIFF with the predictor {page.predictor}, which is not supported; save it without one")
    kinds = {(8, 1): "u1", (16, 1): "u2", (16, 3): "f2", (32, 3): "f4", (64, 3): "f8"}
    found = kinds.get((first.bits[0], first.kind))
    if found is None:
        what = {1: "whole numbers", 2: "signed whole numbers", 3: "floats"}.get(first.kind, "another kind of numbers")
        raise TiffError(
            f"a TIFF with {what} of {first.bits[0]} bits; expected 8 or 16 bits without a sign, or floats from 0 to 1"
        )
    return sum(page.samples for page in pages), np.dtype(found)


def read_stored(data: bytes, pages: list[Page]) -> np.ndarray:
    """The values of all pages, [height, width, channels], uint8, uint16 or float; raises TiffError."""
    channels, dtype = check_stored(pages)
    out = np.zeros((pages[0].height, pages[0].width, channels), dtype)
    at = 0
    for page in pages:
        _read_page(data, page, out[..., at : at + page.samples], dtype)
        if page.photometric == 0 and dtype.kind == "u":  # white is zero
            out[..., at] = np.iinfo(dtype).max - out[..., at]
        at += page.samples
    return out


def _read_page(data: bytes, page: Page, out: np.ndarray, dtype: np.dtype[Any]) -> None:
    height, width = page.tile
    if height < 1 or width < 1 or height > 1 << 16 or width > 1 << 20:
        raise TiffError("a TIFF with pieces of an invalid size")
    if height * width * (1 if page.separate else page.samples) * dtype.itemsize > LARGEST_PIECE:
        raise TiffError(
            f"a TIFF with pieces of {height}x{width} pixels, which are too large; save it with smaller ones"
        )
    down, across = -(-page.height // height), -(-page.width // width)
    planes = page.samples if page.separate else 1
    if len(page.offsets) < planes * down * across or len(page.counts) < len(page.offsets):
        raise TiffError("a truncated TIFF: its directory names too few pieces")
    tiled = (height, width) != (min(height, page.height), page.width)
    for number in range(planes * down * across):
        plane, piece = divmod(number, down * across)
        top, left = piece // across * height, piece % across * width
        rows = height if tiled else min(height, page.height - top)
        samples = 1 if page.separate else page.samples
        at, count = page.offsets[number], page.counts[number]
        values = _unpack(data[at : at + count], page, (rows, width, samples), dtype)
        target = out[top : top + rows, left : left + width]
        values = values[: target.shape[0], : target.shape[1]]
        if page.separate:
            target[..., plane] = values[..., 0]
        else:
            target[...] = values


def _unpack(packed: bytes, page: Page, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """The values of one strip or tile, without its compression and predictor, in the machine's byte order."""
    rows, width, samples = shape
    needed = rows * width * samples * dtype.itemsize
    if page.compression == _NONE:
        raw = packed[:needed]
    elif page.compression in _DEFLATE:
        try:
            raw = zlib.decompressobj().decompress(packed, needed)
        except zlib.error:
            raise TiffError("a damaged TIFF") from None
    else:
        raw = _unpack_by_pillow(packed, page, rows, needed // rows)
    if len(raw) < needed:
        raise TiffError("a damaged or truncated TIFF")
    if page.predictor == 3:
        steps = np.frombuffer(raw, np.uint8).reshape(rows, -1, samples)
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, width * samples)
        ordered = np.ascontiguousarray(planes.swapaxes(1, 2))  # the most significant byte first
        return ordered.view(dtype.newbyteorder(">")).reshape(shape).astype(dtype)
    values = np.frombuffer(raw, np.dtype(page.order + dtype.str[1:])).reshape(shape).astype(dtype)
    if page.predictor == 2:
        whole = values.view(f"u{dtype.itemsize}")
        values = np.cumsum(whole, axis=1, dtype=whole.dtype).view(dtype)
    return values


def _unpack_by_pillow(packed: bytes, page: Page, rows: int, row: int) -> bytes:
    """Bytes that are compressed by LZW, PackBits and others: given to Pillow as a grey image with so many bytes a row."""
    from PIL import Image

    tags = [
        (256, 4, row),
        (257, 4, rows),
        (258, 3, 8),
        (259, 3, page.compression),
        (262, 3, 1),
        (266, 3, page.fill_order),
    ]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, rows), (279, 4, len(packed))]
    body = packed + b"\0" * (len(packed) % 2)
    directory = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack(
            "<HH" if kind == 3 else "<I", *((value, 0)[: 3 - kind // 2])
        )
    file = io.BytesIO(struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory + bytes(4))
    try:
        with Image.open(file) as image:
            return image.tobytes() if image.mode == "L" and image.size == (row, rows) else b""
    except Exception:  # Pillow and its library raise half a dozen types
        name = _PACKED[page.compression]
        raise TiffError(f"a damaged TIFF, or one whose compression {name} Pillow does not know here") from None
