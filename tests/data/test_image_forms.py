"""Images of science: 16 bits and floats exactly, any number of channels, missing pixels, padding and its mask."""

from __future__ import annotations

import contextlib
import io
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import data
from engine.data import header as headers
from engine.data import tiff
from engine.data.decode import decode
from engine.data.header import BadImageError
from engine.data.image_options import ImageForm, ImageOptions
from engine.data.loading import load_images
from engine.data.resize import fit_within, resize
from engine.errors import InputError

STORED = ImageOptions(image_pixels="stored")
FLOAT = np.dtype(np.float32)
RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 5), np.uint16)
COLOUR = RNG.integers(0, 256, (6, 5, 4), np.uint8)


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, kind, **options)
    return file.getvalue()


def form(channels: int, dtype: Any = np.uint8, size: tuple[int, int] = (6, 5), **options: Any) -> ImageForm:
    return ImageForm(
        size=size, channels=channels, dtype=np.dtype(dtype), options=ImageOptions(image_pixels="stored", **options)
    )


def make_tiff(
    pages: list[np.ndarray], *, order: str = "<", tags: dict[int, tuple[int, ...]] | None = None, cut: int | None = None
) -> bytes:
    """A TIFF of uncompressed pages [height, width] or [height, width, channels], written by hand."""
    out = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    link = 4
    for page in pages:
        page = page if page.ndim == 3 else page[..., None]
        height, width, samples = page.shape
        at = len(out)
        out += page.astype(page.dtype.newbyteorder(order)).tobytes()
        out += b"\0" * (len(out) % 2)
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        entries: dict[int, tuple[int, ...]] = {
            256: (width,), 257: (height,), 258: (page.dtype.itemsize * 8,) * samples, 259: (1,), 262: (1,),
            273: (at,), 277: (samples,), 278: (height,), 279: (page.nbytes,), 339: (kind,) * samples,
        } | (tags or {})  # fmt: skip
        places = {}
        for tag, values in entries.items():
            if len(values) > 1:
                places[tag] = len(out)
                out += struct.pack(f"{order}{len(values)}I", *values)
        struct.pack_into(order + "I", out, link, len(out))
        out += struct.pack(order + "H", len(entries))
        for tag, values in sorted(entries.items()):
            out += struct.pack(order + "HHII", tag, 4, len(values), places.get(tag, values[0]))
        link = len(out)
        out += bytes(4)
    return bytes(out[:cut])


# ---- values
@pytest.mark.parametrize(
    "data",
    [encoded(DEEP, "PNG"), encoded(DEEP, "TIFF"), encoded(DEEP, "TIFF", compression="tiff_lzw")]
    + [make_tiff([DEEP], order=order) for order in "<>"],
    ids=["png", "tiff", "lzw", "little", "big"],
)
def test_sixteen_bits_are_the_value_divided_by_65535_exactly(data: bytes) -> None:
    found = decode(data, form(1, FLOAT))
    assert (found.shape, found.dtype) == ((6, 5, 1), FLOAT)
    np.testing.assert_array_equal(found[..., 0], DEEP.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_of_eight_bits_keeps_its_values_and_channels(compression: str | None, channels: int) -> None:
    array = COLOUR[..., 0] if channels == 1 else COLOUR[..., :channels]
    data = encoded(array, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data, form(channels)), array.reshape(6, 5, channels))
    expected = np.repeat(array[..., None], 3, axis=2) if channels == 1 else array[..., :3]
    np.testing.assert_array_equal(decode(data, (6, 5)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_and_samples_are_channels_in_their_order(dtype: Any, order: str) -> None:
    array = (
        RNG.random((6, 5, 7)).astype(dtype)
        if np.dtype(dtype).kind == "f"
        else RNG.integers(0, 200, (6, 5, 7)).astype(dtype)
    )
    samples, pages = make_tiff([array], order=order), make_tiff(list(np.moveaxis(array, -1, 0)), order=order)
    both = make_tiff([array[..., :4], array[..., 4:]], order=order)
    wide = dtype == np.uint8
    for file in (samples, pages, both):
        np.testing.assert_array_equal(tiff.read_stored(file, tiff.read_pages(io.BytesIO(file))), array)
        found = decode(file, form(7, np.uint8 if wide else FLOAT))
        expected = array if wide else array.astype(np.float32) / np.float32(65535 if dtype == np.uint16 else 1)
        np.testing.assert_array_equal(found, expected)


def test_a_png_with_alpha_keeps_it_where_that_is_asked_for() -> None:
    data = encoded(COLOUR, "PNG")
    np.testing.assert_array_equal(decode(data, form(4)), COLOUR)
    np.testing.assert_array_equal(decode(data, (6, 5)), COLOUR[..., :3])
    file = io.BytesIO()
    Image.fromarray(COLOUR[..., :2].copy(), "LA").save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue(), form(2)), COLOUR[..., :2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_webp_and_a_tiff_are_turned_upright_like_a_jpeg(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    webp = encoded(COLOUR[..., :3], "WEBP", lossless=True, exif=exif.tobytes())
    turned = make_tiff([COLOUR], tags={274: (orientation,)})
    plain = COLOUR
    if orientation >= 5:
        plain = plain.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        plain = plain[:, ::-1]
    if orientation in (3, 4, 7, 8):
        plain = plain[::-1]
    size = plain.shape[:2]
    np.testing.assert_array_equal(decode(webp, size), plain[..., :3])
    np.testing.assert_array_equal(decode(turned, form(4, size=size)), plain)


def test_white_is_zero_and_copies_of_reduced_size_are_seen_through() -> None:
    white = tiff.read_stored(data := make_tiff([DEEP], tags={262: (0,)}), tiff.read_pages(io.BytesIO(data)))
    np.testing.assert_array_equal(white[..., 0], 65535 - DEEP)
    with pytest.raises(tiff.TiffError, match="a TIFF without an image"):
        tiff.read_pages(io.BytesIO(make_tiff([DEEP], tags={254: (1,)})))


# ---- what is refused
@pytest.mark.parametrize(
    ("data", "wanted", "message"),
    [
        (make_tiff([DEEP.astype(np.int16)]), form(1, FLOAT), "a TIFF with signed whole numbers of 16 bits; expected 8 or 16 bits"),
        (make_tiff([DEEP.astype(np.uint32)]), form(1, FLOAT), "a TIFF with whole numbers of 32 bits"),
        (make_tiff([DEEP / np.float32(7)]), form(1, FLOAT), "float values from "),
        (make_tiff([DEEP, DEEP[:4]]), form(2, FLOAT), "pages of 5x6 and 5x4 pixels"),
        (make_tiff([DEEP, DEEP.astype(np.uint8)]), form(2, FLOAT), "different kinds of numbers"),
        (make_tiff([DEEP], tags={262: (3,)}), form(1, FLOAT), "a palette or another space of colours"),
        (make_tiff([DEEP], tags={259: (7,)}), form(1, FLOAT), "a TIFF of compression 7, which is not supported; save it uncompressed"),
        (make_tiff([DEEP], tags={317: (9,)}), form(1, FLOAT), "the predictor 9"),
        (make_tiff([DEEP], tags={259: (5,)}), form(1, FLOAT), "a damaged TIFF, or one whose compression LZW"),
        (make_tiff([DEEP], tags={259: (8,)}), form(1, FLOAT), "a damaged TIFF"),
        (make_tiff([DEEP], tags={273: (1 << 30,)}), form(1, FLOAT), "a truncated TIFF"),
        (make_tiff([DEEP], tags={256: (1 << 20,), 257: (1 << 20,)}), form(1, FLOAT), "would take"),
        (make_tiff([DEEP], tags={277: (1 << 20,)}), form(1, FLOAT), "of 1048576 channels"),
        (make_tiff([DEEP], tags={322: (0,), 323: (0,), 324: (8,), 325: (8,)}), form(1, FLOAT), "pieces of an invalid size"),
        (make_tiff([DEEP], cut=60), form(1, FLOAT), "truncated TIFF"),
        (make_tiff([DEEP]), (6, 5), "a TIFF of 16 bits; --image_pixels=stored reads its values"),
        (make_tiff([COLOUR[..., :3], COLOUR[..., :3]]), (6, 5), "a TIFF of 2 pages; --image_pixels=stored"),
        (encoded(COLOUR, "PNG"), form(5), "4 channels; expected 5, as in the other images"),
        (encoded(COLOUR[..., :3], "WEBP")[:60], (6, 5), "a truncated WebP"),
        (encoded(COLOUR[..., :3], "WEBP")[:30] + b"\xff" * 400, (6, 5), "damaged or truncated WebP"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 40, form(1), "damaged"),
        (b"MM\0+" + b"\xff" * 40, form(1), "truncated TIFF"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_as_it_is_stored_says_why(data: bytes, wanted: Any, message: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decode(data, wanted)
    assert message in str(caught.value)


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    webp = bytearray(encoded(COLOUR, "WEBP", lossless=True, exif=exif.tobytes()))
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = b"\xff\x3f\x00\xff\x3f\x00"
    for file in (bytes(webp), make_tiff([DEEP], tags={256: (1 << 15,), 257: (1 << 15,)})):
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
        for wanted in ((8, 8), form(1, FLOAT), form(4)):
            with pytest.raises(BadImageError, match=r"would take .* to decode; the limit is"):
                decode(file, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_are_an_error_or_an_image_but_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = [encoded(DEEP, "TIFF", compression="tiff_lzw"), make_tiff([COLOUR]), encoded(COLOUR, "WEBP")]
    for file in whole:
        for _ in range(60):
            harmed = bytearray(file)
            for _ in range(rng.integers(1, 6)):
                harmed[rng.integers(len(harmed))] = rng.integers(256)
            for wanted in ((6, 5), form(1, FLOAT), form(4)):
                channels = wanted.shape[2] if isinstance(wanted, ImageForm) else 3
                with contextlib.suppress(BadImageError):
                    assert decode(bytes(harmed), wanted).shape == (6, 5, channels)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, make_folder: Any) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1})
    (folder / "train/a/x.tif").write_bytes(make_tiff([DEEP]))
    (folder / "train/a/x.webp").write_bytes(encoded(COLOUR, "WEBP"))
    monkeypatch.setattr(headers, "has_pillow", lambda: False)
    for data_, kind in ((make_tiff([DEEP]), "TIFF"), (encoded(COLOUR, "WEBP"), "WebP")):
        with pytest.raises(
            BadImageError, match=rf"a {kind}, which needs the package Pillow: pip install 'frostline\[images\]'"
        ):
            decode(data_, (6, 5))
    said: list[str] = []
    assert len(data.open_data(f"folder:{folder}", image_size=(6, 5), say=said.append).train) == 4
    assert said == [
        "data: left out: .tif files (pip install 'frostline[images]' reads them) (1), .webp files (pip install "
        "'frostline[images]' reads them) (1)"
    ]


# ---- missing pixels
def test_nan_is_refused_or_zero_with_a_mask() -> None:
    array = RNG.random((6, 5, 2)).astype(np.float32)
    array[1, 2, 0] = np.nan
    data = make_tiff([array])
    with pytest.raises(
        BadImageError, match=r"1 of 60 values are NaN; --nan=zero reads them as missing pixels, which become 0"
    ):
        decode(data, form(2, FLOAT))
    filled = decode(data, form(2, FLOAT, nan="zero"))
    np.testing.assert_array_equal(filled, np.nan_to_num(array))
    masked = decode(data, form(2, FLOAT, nan="zero", image_mask=True))
    np.testing.assert_array_equal(masked[..., :2], filled)
    expected = np.ones((6, 5), np.float32)
    expected[1, 2] = 0
    np.testing.assert_array_equal(masked[..., 2], expected)


def test_arrays_of_16_bits_and_with_nan_are_read_from_an_npz_file(tmp_path: pathlib.Path) -> None:
    deep, labels = RNG.integers(0, 65536, (20, 6, 5, 5), np.uint16), np.arange(20) % 2
    path = tmp_path / "a.npz"
    np.savez(path, train_images=deep[..., :1], train_labels=labels)
    source = data.open_data(f"npz:{path}", say=lambda line: None)
    found = source.train.read([0])
    np.testing.assert_array_equal(
        found["image"][0], deep[found["index"][0], ..., :1].astype(np.float32) / np.float32(65535)
    )
    np.savez(path, train_images=deep, train_labels=labels)
    with pytest.raises(
        InputError, match=r"train_images has 5 channels; expected 1 or 3 \(--image_pixels=stored takes any number\)"
    ):
        data.open_data(f"npz:{path}")
    assert data.open_data(f"npz:{path}", images=STORED, say=lambda line: None).image_shape == (6, 5, 5)
    np.savez(path, train_images=np.moveaxis(deep[..., :3], -1, 1), train_labels=labels)
    with pytest.raises(InputError, match="which looks like channels first; expected channels last"):
        data.open_data(f"npz:{path}", images=STORED)
    holes = np.where(deep[..., :1] > 60000, np.nan, 0.5)
    np.savez(path, train_images=holes, train_labels=labels)
    with pytest.raises(InputError, match=r"values are NaN; --nan=zero reads them as missing"):
        data.open_data(f"npz:{path}")
    masked = data.open_data(f"npz:{path}", images=ImageOptions(nan="zero", image_mask=True), say=lambda line: None)
    batch = masked.train.read(np.arange(len(masked.train)))
    assert masked.image_shape == (6, 5, 2)
    np.testing.assert_array_equal(batch["image"][..., 1], ~np.isnan(holes[batch["index"], ..., 0]))
    np.testing.assert_array_equal(batch["image"][..., 0], 0.5 * batch["image"][..., 1])


# ---- padding
def test_padding_keeps_the_shape_and_the_mask_tells_where_the_image_is() -> None:
    wide = np.repeat(np.repeat(COLOUR[:4, :2, :3], 3, axis=0), 6, axis=1)  # 12 x 12 -> 4:4
    tall = COLOUR[:, :2, :3]
    for image, size, inner in (
        (tall, (12, 12), (12, 4)),
        (tall, (6, 5), (6, 2)),
        (wide, (4, 8), (4, 4)),
        (tall, (3, 9), (3, 1)),
    ):
        options = ImageOptions(image_fit="pad", image_mask=True)
        found = decode(encoded(image, "PNG"), ImageForm(size=size, options=options))
        assert found.shape == (*size, 4)
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        own = np.zeros(size, np.uint8)
        own[top : top + inner[0], left : left + inner[1]] = 255
        np.testing.assert_array_equal(found[..., 3], own)
        assert not found[..., :3][own == 0].any()
        np.testing.assert_array_equal(
            found[top : top + inner[0], left : left + inner[1], :3], resize(image[None], inner)[0]
        )
    np.testing.assert_array_equal(fit_within(tall[None], (6, 2))[0], tall)


def test_a_folder_of_several_sizes_is_padded_and_its_fingerprint_tells(tmp_path: pathlib.Path) -> None:
    for number, size in enumerate([(6, 5), (5, 6), (12, 3), (4, 4)] * 3):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), 100 + number, np.uint8)).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    given: dict[str, Any] = {"image_size": (8, 8), "eval_fraction": 0.4, "say": lambda line: None}
    plain = data.open_data(f"folder:{tmp_path}", **given)
    seen = {plain.fingerprint()}
    for options in (ImageOptions(image_fit="pad"), ImageOptions(image_fit="pad", image_mask=True), STORED):
        source = data.open_data(f"folder:{tmp_path}", images=options, **given)
        seen.add(source.fingerprint())
        none = data.open_data(f"folder:{tmp_path}", images=options, image_cache=0, **given)
        positions = np.arange(len(source.train))
        np.testing.assert_array_equal(source.train.read(positions)["image"], none.train.read(positions)["image"])
    assert len(seen) == 3, "stored changes nothing about images of 8-bit colour"


def test_channels_must_agree_and_8_and_16_bits_together_are_told(tmp_path: pathlib.Path) -> None:
    for name, array in (("a/0", COLOUR[..., 0]), ("a/1", DEEP), ("b/0", COLOUR[..., 1]), ("b/1", DEEP)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / f"{name}.png")
    said: list[str] = []
    given: dict[str, Any] = {"image_size": (6, 5), "images": STORED, "say": said.append}
    source = data.source.open_undivided(f"folder:{tmp_path}", bad_images="stop", image_cache=0, **given)  # type: ignore[attr-defined]
    assert (source.image_shape, source.train.image_dtype) == ((6, 5, 1), FLOAT)
    batch = source.train.read([0, 1])["image"][..., 0]
    np.testing.assert_array_equal(batch[0], COLOUR[..., 0].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(batch[1], DEEP.astype(np.float32) / np.float32(65535))
    assert said == [
        "data: images of 8 and of more bits together: all become float32, 1 being the largest value of each"
    ]
    Image.fromarray(COLOUR).save(tmp_path / "b/2.png")
    with pytest.raises(
        InputError, match=r"different numbers of channels: 1 \(a/0.png\) and 4 \(b/2.png\); --image_pixels=rgb"
    ):
        data.open_data(f"folder:{tmp_path}", **given)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"image_fit='padd': expected cover or pad; nearest: pad"):
        ImageOptions(image_fit="padd")
    with pytest.raises(InputError, match="image_mask: every pixel is the image's own"):
        ImageOptions(image_mask=True)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("fashion_mnist_mini", {"image_fit": "pad"}, "image_fit=pad: the images of fashion_mnist_mini keep their size unless"),
        ("idx:d", {"image_pixels": "stored"}, "image_pixels=stored: the images of idx:d are grey and of 8 bits anyway"),
        ("folder:d", {"nan": "zero"}, "nan=zero: folder:d has no numbers that could be NaN; leave it out; --image_pixels=stored"),
        ("py:a:b", {"nan": "zero"}, "nan=zero: py:a:b has no numbers that could be NaN"),
        ("fashion_mnist_mini", {"nan": "zero", "image_mask": True}, "nan=zero: fashion_mnist_mini has no numbers"),
    ],
)  # fmt: skip
def test_options_that_would_change_nothing_are_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        data.open_data(spec, images=ImageOptions(**options))
    assert message in str(caught.value)


def test_a_folder_of_16_bits_says_that_8_are_read(make_folder: Any) -> None:
    folder, said = make_folder({"train/a": 2, "train/b": 2, "val/a": 1}), []
    Image.fromarray(DEEP).save(folder / "train/a/deep.png")
    data.open_data(f"folder:{folder}", image_size=(6, 5), say=said.append)
    assert said == [
        "data: some images have 16 bits a channel, of which the upper 8 are read; --image_pixels=stored reads all"
    ]


def write_scans(folder: pathlib.Path, value: np.ndarray) -> None:
    """Six float TIFFs in two folders of classes, a manifest of them and a table of boxes; the first one holds a NaN."""
    rows, boxes = ["path,label"], ["image,x1,y1,x2,y2,class"]
    for number in range(6):
        name = f"{'ab'[number % 2]}/{number}.tif"
        (folder / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value if number == 0 else np.nan_to_num(value, nan=0.5)).save(folder / "d" / name)
        rows.append(f"d/{name},{'ab'[number % 2]}")
        boxes.append(f"d/{name},1,1,5,5,{'ab'[number % 2]}")
    (folder / "m.csv").write_text("\n".join(rows))
    (folder / "b.csv").write_text("\n".join(boxes))


SCANS = ("folder:d", "csv:m.csv", "boxes:b.csv")


@pytest.mark.parametrize("spec", SCANS)
def test_missing_pixels_become_zero_in_every_source_of_stored_floats(
    spec: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.full((6, 6), 0.5, np.float32)
    value[0, 0] = np.nan
    write_scans(tmp_path, value)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"image_size": 6, "eval_fraction": 0.5, "say": lambda line: None}
    stored = data.open_data(spec, images=ImageOptions(image_pixels="stored"), **given)
    with pytest.raises(InputError, match="--nan=zero reads them as missing pixels"):
        load_images([stored.train, stored.eval])
    filled = data.open_data(spec, images=ImageOptions(image_pixels="stored", nan="zero"), **given)
    found = np.concatenate([part.read(np.arange(len(part)))["image"] for part in (filled.train, filled.eval)])
    assert np.sort(found.ravel())[:2].tolist() == [0.0, 0.5]


@pytest.mark.parametrize("spec", SCANS)
def test_missing_pixels_are_refused_where_no_image_can_have_some(
    spec: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path, np.full((6, 6), 500, np.uint16))
    monkeypatch.chdir(tmp_path)
    for pixels, reason in (
        ("rgb", "--image_pixels=stored reads floats of TIFF files (its images are read as 8-bit colour)"),
        ("stored", "(no image stores floats"),
    ):
        with pytest.raises(InputError) as caught:
            data.open_data(spec, image_size=6, eval_fraction=0.5, images=ImageOptions(image_pixels=pixels, nan="zero"))
        assert f"nan=zero: {spec} has no numbers that could be NaN; leave it out" in str(caught.value)
        assert reason in str(caught.value)


def test_arrays_and_sources_that_hold_no_floats_say_why_nothing_can_be_missing(tmp_path: pathlib.Path) -> None:
    labels = np.arange(8) % 2
    np.savez(tmp_path / "i.npz", train_images=np.zeros([8, 6, 6], np.uint16), train_labels=labels)
    np.savez(tmp_path / "t.npz", x=np.ones([8, 2], np.int64), y=labels)
    for spec, reason in (
        (f"npz:{tmp_path}/i.npz", "its images are uint16"),
        (f"table:{tmp_path}/t.npz", "x holds whole numbers"),
        ("tfds:mnist", "its images are whole numbers"),
        ("text:a.tsv", "texts become whole numbers"),
        ("py:a:b", "a source of your own fills in missing numbers itself"),
        ("idx:d", "its images are grey and of 8 bits"),
    ):
        with pytest.raises(InputError) as caught:
            data.open_data(spec, images=ImageOptions(nan="zero"))
        assert f"nan=zero: {spec} has no numbers that could be NaN; leave it out ({reason})" in str(caught.value)
