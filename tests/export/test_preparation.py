"""An exported model prepares image files to the bits of the run's own preparation."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tensorflow as tf

from engine.data.decode import decode
from engine.data.header import read_header
from engine.export.orientation import read_orientation
from engine.export.preparation import prepare_file

Image = pytest.importorskip("PIL.Image")


def photo(height: int, width: int, mode: str = "RGB", kind: str = "JPEG", **options: object) -> bytes:
    rng = np.random.default_rng(height * width)
    small = Image.fromarray(rng.integers(0, 256, [7, 5, 3], np.uint8)).resize((width, height), 2)
    file = io.BytesIO()
    small.convert(mode).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "<", *, kind: int = 3, before: int = 0, claimed: int | None = None) -> bytes:
    entries = [struct.pack(order + "HHII", 0x0100 + n, 4, 1, 7) for n in range(before)]
    entries.append(struct.pack(order + "HHIHH", 0x0112, kind, 1, orientation, 0))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", claimed or len(entries)) + b"".join(entries)


def with_segment(jpeg: bytes, content: bytes, marker: int = 0xE1, stray: bytes = b"") -> bytes:
    """The JPEG with another segment after its first one (18 bytes)."""
    return jpeg[:20] + stray + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[20:]


@pytest.fixture(scope="module")
def prepare() -> object:
    made = {}

    def run(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        if shape not in made:
            spec = tf.TensorSpec([], tf.string)
            made[shape] = tf.function(lambda e: prepare_file(e, shape), input_signature=[spec], autograph=False)
        return made[shape](tf.constant(data)).numpy()

    return run


PHOTOS = {
    "smaller": photo(9, 11),
    "same size": photo(24, 32),
    "larger": photo(61, 77),
    "half": photo(24 * 4, 32 * 4 + 3),
    "quarter": photo(24 * 8 + 1, 32 * 9),
    "eighth": photo(24 * 17, 32 * 16),
    "panorama": photo(40, 900),
    "tower": photo(700, 33),
    "grey JPEG": photo(50, 40, "L"),
    "progressive": photo(50, 90, progressive=True),
    "CMYK": photo(50, 40, "CMYK"),
    "PNG": photo(50, 40, kind="PNG"),
    "PNG with a palette": photo(50, 40, "P", "PNG"),
    "PNG with alpha": photo(50, 40, "RGBA", "PNG"),
    "PNG with 1 bit": photo(50, 40, "1", "PNG"),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_an_image_file_has_the_bits_of_the_runs_own_preparation(prepare: object, name: str) -> None:
    np.testing.assert_array_equal(prepare(PHOTOS[name], (24, 32, 3)), decode(PHOTOS[name], (24, 32)))


def test_every_exif_orientation_is_undone(prepare: object) -> None:
    for number in range(1, 9):
        data = with_segment(photo(100, 180), exif(number, "<>"[number % 2]))
        assert read_header(io.BytesIO(data)).orientation == number
        np.testing.assert_array_equal(prepare(data, (24, 32, 3)), decode(data, (24, 32)))


def test_odd_segments_are_read_as_the_run_reads_them() -> None:
    base, read = photo(8, 8), tf.function(read_orientation, input_signature=[tf.TensorSpec([], tf.string)])
    odd = {
        "none": base,
        "out of range": with_segment(base, exif(9)),
        "of another type": with_segment(base, exif(6, kind=4)),
        "after others": with_segment(base, exif(6, before=5)),
        "cut off": with_segment(base, exif(6)[:-8]),
        "cut after the value": with_segment(base, exif(6)[:-2]),
        "too few entries": with_segment(base, exif(6, claimed=60)),
        "entry missing": with_segment(base, exif(6, before=2)[:-12]),
        "in a comment": with_segment(base, exif(6), marker=0xFE),
        "second one counts": with_segment(with_segment(base, exif(8)), exif(1)),
        "stray bytes": with_segment(base, exif(3), stray=b"\0\x01\xff\0\xff"),
        "empty": with_segment(base, b""),
        "short": with_segment(base, b"Exif\0\0II"),
        "far directory": with_segment(base, b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\0" * 20),
        "byte order": with_segment(base, b"Exif\0\0IM" + exif(6)[8:]),
        "XMP first": with_segment(with_segment(base, exif(5)), b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 300),
    }
    found = {name: int(read(tf.constant(data))) for name, data in odd.items()}
    assert found == {name: read_header(io.BytesIO(data)).orientation for name, data in odd.items()}


@pytest.mark.parametrize("data", [b"GIF89a" + b"\0" * 40, b"hello", b"", b"\xff\xd8\xff\xe0", photo(40, 40)[:300]])
def test_other_and_damaged_files_are_refused(prepare: object, data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        prepare(data, (24, 32, 3))


def test_a_run_on_grey_images_gets_grey_ones(prepare: object) -> None:
    data = PHOTOS["PNG"]
    luma = np.rint(decode(data, (8, 8)) @ np.array([0.299, 0.587, 0.114]))[..., None]
    np.testing.assert_array_equal(prepare(data, (8, 8, 1)), luma)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(prepare(tf.io.encode_png(levels).numpy(), (16, 16, 1)), levels)
