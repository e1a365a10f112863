"""One image file: what it says before it is decoded, what comes out, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from engine.data import decode as decoding
from engine.data.decode import decode
from engine.data.header import BadImageError, read_header

SIZE = (90, 120)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "1", {}),
        ("GIF", "P", {}),
        ("GIF", "P", {"interlace": 0}),
        ("GIF", "L", {}),
        ("BMP", "RGB", {}),
        ("BMP", "RGBA", {}),
        ("BMP", "L", {}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
    ],
)
def test_every_kind_and_mode_becomes_the_rgb_that_pillow_shows(
    photo: Image.Image, kind: str, mode: str, options: dict[str, object]
) -> None:
    data = encoded(photo.convert("RGBA").convert(mode) if mode == "LA" else photo.convert(mode), kind, **options)
    header = read_header(io.BytesIO(data))
    assert (header.kind, header.height, header.width) == (kind, *SIZE)
    image = decode(data, SIZE)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels(Image.open(io.BytesIO(data))))


def test_an_odd_width_of_a_bmp_with_16_colours_is_read_to_the_last_pixel() -> None:
    """Pillow writes no 4-bit BMP, so this one is made by hand."""
    colours = np.arange(64, dtype=np.uint8).reshape(16, 4)
    rows = bytes([0x12, 0x34, 0x50, 0]) + bytes([0xFE, 0xDC, 0xB0, 0])  # 5 pixels a row, the lower row first
    header = struct.pack("<IiiHHIIiiII", 40, 5, 2, 1, 4, 0, 0, 0, 0, 16, 0)
    data = b"BM" + struct.pack("<IHHI", 14 + 40 + 64 + 8, 0, 0, 14 + 40 + 64) + header + colours.tobytes() + rows
    expected = colours[[[0xF, 0xE, 0xD, 0xC, 0xB], [1, 2, 3, 4, 5]]][..., 2::-1]
    np.testing.assert_array_equal(decode(data, (2, 5)), expected)


def test_a_png_of_16_bits_keeps_its_upper_8(photo: Image.Image) -> None:
    grey = np.asarray(photo.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode(data, SIZE), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped_and_the_colour_under_it_stays(photo: Image.Image) -> None:
    clear = photo.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(decode(encoded(clear, "PNG"), SIZE), pixels(photo))


def test_of_an_animation_the_first_frame_is_taken_and_the_rest_is_not_unpacked(photo: Image.Image) -> None:
    frames = [photo.convert("P"), ImageOps.mirror(photo).convert("P")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, SIZE), pixels(Image.open(io.BytesIO(data))))
    assert len(decoding._first_frame(data)) < 0.6 * len(data)
    cut = data[: int(len(data) * 0.8)]  # damage in a later frame does not matter
    np.testing.assert_array_equal(decode(cut, SIZE), decode(data, SIZE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright_by_its_exif_orientation(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    assert read_header(io.BytesIO(data)).orientation == orientation
    upright = pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data, upright.shape[:2]), upright)
    small = decode(data, (30, 20)).astype(int)  # the wanted size is of the upright image
    np.testing.assert_allclose(small, decode(encoded(Image.fromarray(upright), "PNG"), (30, 20)), atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_every_truncation_is_refused_with_a_reason(photo: Image.Image, kind: str) -> None:
    data = encoded(photo.convert("P") if kind == "GIF" else photo, kind)
    whole = len(decoding._first_frame(data)) - 1 if kind == "GIF" else len(data)
    for length in sorted({1, 2, 3, 7, 13, 20, 25, 30, 60, 200, whole // 2, whole - 3, whole - 1}):
        with pytest.raises(BadImageError):
            decode(data[:length], SIZE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "begins with '<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with 'version https://git-lfs"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a truncated WebP"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "begins with 52 49 46 46"),
        (b"\0\0\0 ftypheic", "not a JPEG, PNG, GIF or BMP"),
        (b"\xff\xd8\xff\xd9", "ends before its image data"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "without an image"),
        (b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 4, 4, 1, 24), "OS/2"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(data: bytes, says: str) -> None:
    with pytest.raises(BadImageError, match=None) as caught:
        decode(data, (8, 8))
    assert says in str(caught.value)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def claims(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


def test_a_size_that_would_not_fit_is_refused_before_memory_is_taken(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_decode", lambda *_: pytest.fail("it went on to decode"))
    size = struct.pack(">HH", *SIZE)
    progressive = encoded(photo, "JPEG", progressive=True)
    gif = encoded(photo.convert("P"), "GIF")
    frame = gif.index(b",\0\0\0\0" + struct.pack("<HH", 120, 90))
    bmp = encoded(photo, "BMP")
    for data in (
        png_that_claims(20_000, 20_000),
        png_that_claims(2**31 - 1, 2**31 - 1),
        claims(progressive, size, struct.pack(">HH", 65_000, 65_000)),
        gif[: frame + 5] + struct.pack("<HH", 65_000, 65_000) + gif[frame + 9 :],
        bmp[:18] + struct.pack("<ii", 60_000, -60_000) + bmp[26:],
    ):
        with pytest.raises(BadImageError, match="the limit is"):
            decode(data, (32, 32))


def test_a_jpeg_of_40_megapixels_is_decoded_at_an_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.arange(5464, dtype=np.float32)[:, None], np.arange(7304, dtype=np.float32)
    big = Image.fromarray((127 + 60 * np.sin(x / 900) + 60 * np.cos(y / 700)).astype(np.uint8))
    data = encoded(big.convert("RGB"), "JPEG", quality=80)
    header = read_header(io.BytesIO(data))
    assert decoding.find_reduction(header, (224, 224)) == 8
    assert decoding.check_memory(header, (224, 224)) < 2_000_000
    wanted = ImageOps.fit(big, (224, 224), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(decode(data, (224, 224)).astype(int), pixels(wanted), atol=3)


def test_a_jpeg_is_never_reduced_below_twice_the_wanted_size(photo: Image.Image) -> None:
    header = read_header(io.BytesIO(encoded(photo, "JPEG")))
    ratios = {side: decoding.find_reduction(header, (side, side)) for side in (90, 45, 23, 22, 12, 11, 6, 5, 1)}
    assert ratios == {90: 1, 45: 1, 23: 1, 22: 2, 12: 2, 11: 4, 6: 4, 5: 8, 1: 8}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_gives_an_image_or_a_reason_and_nothing_else(photo: Image.Image, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP"]))
    small = photo.resize((24, 18))
    whole = bytearray(encoded(small.convert("P") if kind in ("GIF", "BMP") else small, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 700)))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(whole), (16, 16))
    except BadImageError:
        return
    assert image.shape == (16, 16, 3)
