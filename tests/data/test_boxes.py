"""Boxes from a table: moved exactly as the pixels of their images, and refused in words where they cannot be right."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import DataError, Source, open_data
from engine.data.box_geometry import restore_boxes
from engine.data.image_files import read_file_header
from engine.data.image_options import ImageOptions
from engine.data.source import open_undivided

HEADING = "image,x1,y1,x2,y2,class"
Write = Callable[..., pathlib.Path]


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    """Writes images of (width, height) with white boxes on black, and the table of these; returns the path of the table."""

    def make(
        images: dict[str, tuple[int, int]], rows: list[str], *, heading: str = HEADING, folder: str = "", exif: int = 1
    ) -> pathlib.Path:
        for name, (width, height) in images.items():
            pixels = np.zeros([height, width, 3], np.uint8)
            for row in rows:
                own, *cells = row.split(",")
                if own == name and len(cells) > 4 and all(cell.lstrip("-").isdecimal() for cell in cells[:4]):
                    x1, y1, x2, y2 = (int(float(cell)) for cell in cells[:4])
                    pixels[max(y1, 0) : y2, max(x1, 0) : x2] = 255
            place = tmp_path / folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            turned = Image.Exif()
            turned[0x0112] = exif
            Image.fromarray(pixels).save(place, **({"exif": turned, "quality": 100} if name.endswith(".jpg") else {}))
        file = tmp_path / "boxes.csv"
        file.write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
        return file

    return make


def open_boxes(file: pathlib.Path, options: str = "", *, size: Any = 32, **given: Any) -> tuple[Source, list[str]]:
    said: list[str] = []
    given = {"bad_images": "stop", "image_cache": 1 << 20} | given
    source = open_undivided(f"boxes:{file}{options}", image_size=size, say=said.append, **given)
    return source, said


def find_white(image: np.ndarray) -> np.ndarray:
    """The edges of what is white in an image, to a part of a pixel: where the sums of rows and columns reach a half."""
    light = image[..., 0].astype(np.float64) / 255
    edges = []
    for axis in (0, 1):
        profile = light.max(axis=axis)
        inside = np.flatnonzero(profile > 0.02)
        first, last = inside[0], inside[-1]
        edges.append((first + 1 - profile[first], last + profile[last]))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


def pixels_of(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return labels[:, 1:] * np.array([size[1], size[0], size[1], size[0]])


SHAPES = [(64, 64), (96, 64), (48, 80), (33, 57), (20, 24), (150, 131), (400, 300), (1001, 555)]


@pytest.mark.parametrize("fit", ["cover", "pad"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_boxes_move_as_the_pixels_do(write: Write, suffix: str, fit: str) -> None:
    size = (32, 40)
    images, rows = {}, []
    for number, (width, height) in enumerate(SHAPES):
        name = f"{number}{suffix}"
        images[name] = (width, height)
        rows.append(f"{name},{width * 3 // 8},{height * 3 // 8},{width * 5 // 8},{height * 7 // 12},thing")
    source, _ = open_boxes(write(images, rows), size=size, images=ImageOptions(image_fit=fit))
    batch = source.train.read(np.arange(len(SHAPES)))
    assert batch["label"].shape == (len(SHAPES), 1, 5)
    assert batch["label"].dtype == np.float32
    for image, labels in zip(batch["image"], batch["label"], strict=True):
        np.testing.assert_allclose(pixels_of(labels, size), find_white(image)[None], atol=0.4)


@pytest.mark.parametrize("fit", ["cover", "pad"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_that_are_stored_turned_are_asked_about_and_then_right(write: Write, orientation: int, fit: str) -> None:
    size = (32, 48)
    file = write({"a.jpg": (90, 61)}, ["a.jpg,27,22,50,43,thing"], exif=orientation)
    with pytest.raises(
        DataError, match=r"1 of the images with boxes are stored turned or mirrored \(Exif\).*exif=upright.*exif=stored"
    ):
        open_boxes(file, size=size)
    options = ImageOptions(image_fit=fit)
    source, _ = open_boxes(file, ",exif=stored", size=size, images=options)
    batch = source.train.read(np.arange(1))
    np.testing.assert_allclose(pixels_of(batch["label"][0], size), find_white(batch["image"][0])[None], atol=0.3)
    header, form = read_file_header(file.parent / "a.jpg"), source.train.images.form  # type: ignore[attr-defined]
    back = restore_boxes(pixels_of(batch["label"][0], size), header, form)
    row = ",".join(f"{value:.4f}" for value in back[0])
    file.write_text(f"{HEADING}\na.jpg,{row},thing\n")
    upright, _ = open_boxes(file, ",exif=upright", size=size, images=options)
    np.testing.assert_allclose(upright.train.labels, source.train.labels, atol=1e-5)


def test_boxes_that_the_crop_cuts_off_are_cut_or_fall_away_and_are_counted(write: Write) -> None:
    rows = [
        "a.png,0,0,4,20,edge",  # gone
        "a.png,8,0,16,20,edge",  # three quarters are left
        "a.png,18,5,22,9,middle",
        "b.png,,,,,",
        "c.png,3,3,9,9,edge",
        "c.png,3,3,9,9,edge",
    ]
    sizes = {"a.png": (40, 20), "b.png": (20, 20), "c.png": (20, 20)}
    source, said = open_boxes(write(sizes, rows), size=20)
    labels = source.train.labels * np.array([1, 20, 20, 20, 20], np.float32)
    assert source.classes == ("edge", "middle")
    assert labels.round(4).tolist() == [
        [[0, 0, 0, 6, 20], [1, 8, 5, 12, 9]],
        [[-1, 0, 0, 0, 0]] * 2,
        [[0, 3, 3, 9, 9], [-1, 0, 0, 0, 0]],
    ]
    assert any("boxes cut at the edge: 1; left out, because less than 25% of them remains: 1" in line for line in said)
    assert any("3 images, 1 of them without objects; 4 boxes, at most 2 in an image" in line for line in said)
    assert any("rows that repeat another one (1)" in line for line in said)


def test_columns_come_in_any_order_as_sizes_and_with_a_split(write: Write) -> None:
    heading = "class, split ,h,w,y,x,image"
    file = write({f"{name}.png": (20, 20) for name in "abcd"}, [], heading=heading)
    rows = [
        "2,train,4,5,2,1,a.png",
        "10,validation,4,5,2,1,./b.png",
        "10,train,9,9,9,9,c.png",
        "2,testing,4,5,2,1.5,d.png",
    ]
    file.write_text("\n".join([heading, *rows]), encoding="utf-8-sig")
    source = open_data(f"boxes:{file},coordinates=xywh", image_size=20)
    assert source.classes == ("2", "10")  # as numbers
    assert source.test is not None
    found = [
        part.labels[:, 0] * np.array([1, 20, 20, 20, 20], np.float32)
        for part in (source.train, source.eval, source.test)
    ]
    assert np.concatenate(found).round(4).tolist() == [
        [0, 1, 2, 6, 6],
        [1, 9, 9, 18, 18],
        [1, 1, 2, 6, 6],
        [0, 1.5, 2, 6.5, 6],
    ]


def test_images_of_a_folder_that_have_no_row_have_no_objects(write: Write) -> None:
    rows = ["a.png,1,1,9,9,thing", "sub/b.png,1,1,9,9,thing"]
    file = write({"a.png": (20, 20), "sub/b.png": (20, 20), "sub/c.png": (20, 20)}, rows, folder="photos")
    images = f",images={file.parent / 'photos'}"
    source, said = open_boxes(file, images, size=20)
    assert (source.train.labels[..., 0] >= 0).sum(axis=1).tolist() == [1, 1, 0]
    assert any("1 images of" in line and "sub/c.png: they count as images without objects" in line for line in said)
    source, _ = open_boxes(file, f"{images},unlisted=skip", size=20)
    assert len(source.train) == 2
    divided = [f"{HEADING},split", *(f"{row},train" for row in rows)]
    file.write_text("\n".join(divided), encoding="utf-8")
    with pytest.raises(DataError, match=r"give each a row .* or leave them out with the option unlisted=skip"):
        open_boxes(file, images)


def test_an_evaluation_part_is_held_out_by_the_names_of_files(write: Write) -> None:
    names = [f"{number}.png" for number in range(12)]
    file = write(dict.fromkeys(names, (8, 8)), [f"{name},1,1,7,7,thing" for name in names])
    source = open_data(f"boxes:{file}", image_size=8, eval_fraction=0.3)
    assert 1 <= len(source.eval) < len(source.train)
    assert not set(source.eval.index) & set(source.train.index)
    held = source.train.images.name(int(source.eval.index[0]))  # type: ignore[attr-defined]
    file.write_text(file.read_text() + f"{held},2,2,5,5,rare\n")
    with pytest.raises(DataError, match=r"no box of class rare is left to train on"):
        open_data(f"boxes:{file}", image_size=8, eval_fraction=0.3)


ROWS = [
    ("a.png,5,1,5,9,x", "line 2: x1=5, x2=5: expected x1 below x2"),
    (
        "a.png,9,1,5,9,x",
        r"x1=9, x2=5: expected x1 below x2 \(the columns x, y, w and h are read by the option coordinates=xywh\)",
    ),
    ("a.png,1,9,5,2,x", "y1=9, y2=2: expected y1 below y2"),
    ("a.png,1,1,21,9,x", "line 2: the box 1, 1, 21, 9 reaches out of a.png, 20x20 pixels"),
    ("a.png,-1,1,5,9,x", "the option outside=cut"),
    ("a.png,30,1,40,9,x", "the box 30, 1, 40, 9 lies outside of a.png"),
    ("a.png,1,1,9,x", "line 2 has 5 cells, but the header has 6"),
    ("a.png,1,1,nan,9,x", "x2='nan' is not a number; expected pixels"),
    ("a.png,1,one,5,9,x", "y1='one' is not a number"),
    ("a.png,1,1,,9,x", "no x2; an image without objects has a row in which all"),
    ("a.png,1,1,9,9,", "no class"),
    (",1,1,9,9,x", "the cell image is empty"),
    (
        "b.png,1,1,9,9,x",
        "1 of the 1 images that .* names do not exist .*b.png .line 2.; nearest: a.png; images=DIR says where",
    ),
    ("a.png,,,,,", "have no box; there is nothing to learn from"),
    ('a.png,1,1,9,9,"x', "is not valid CSV"),
]


@pytest.mark.parametrize(("row", "words"), ROWS, ids=[row for row, _ in ROWS])
def test_rows_that_are_not_valid_are_named(write: Write, row: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_boxes(write({"a.png": (20, 20)}, [row]))


HEADINGS = [
    (
        "image,x1,y1,x2,y2,label",
        "unknown columns: 'label'; expected image, x1, y1, x2, y2, class and, if you like, split",
    ),
    ("image,x,y,w,h,class", "the option coordinates=xywh reads these"),
    ("image,x1,y1,x2,class", "has no column y2"),
    ("image,x1,x1,y1,x2,y2,class", "names x1 twice"),
    ("", "the file is empty"),
    (HEADING, "has a heading, but no rows"),
]


@pytest.mark.parametrize(("heading", "words"), HEADINGS, ids=[heading or "nothing" for heading, _ in HEADINGS])
def test_headings_that_are_not_valid_say_what_is_expected(write: Write, heading: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_boxes(write({"a.png": (20, 20)}, [], heading=heading))


SPLITS = [
    (
        ["a.png,1,1,9,9,x,train", "b.png,1,1,9,9,y,val"],
        "line 3: class 'y' has boxes in the part val, but none in the part train",
    ),
    (["a.png,1,1,9,9,x,train", "a.png,2,2,9,9,x,val"], "line 3: a.png belongs to the part val, but line 2 says train"),
    (
        ["a.png,1,1,9,9,x,train", "b.png,1,1,9,9,x,val", "b.png,1,1,9,9,y,dev"],
        r"line 4: split: 'dev' and 'val' \(line 3\) both mean the part val",
    ),
    (["a.png,1,1,9,9,x,trian"], "split='trian': expected one of train, val, test"),
    (["a.png,1,1,9,9,x,"], "split='': expected one of train, val, test"),
    (["a.png,1,1,9,9,x,val"], "the images of the part train have no box"),
]


def test_padded_boxes_are_held_against_the_memory_before_they_are_made(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.png" for number in range(40)]
    rows = [f"{name},1,1,9,9,x" for name in names[1:]]
    rows += [f"0.png,{at % 10},{at // 10},{at % 10 + 5},{at // 10 + 5},x" for at in range(100)]
    file = write(dict.fromkeys(names, (20, 20)), rows)
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "100000")
    made: list[object] = []
    monkeypatch.setattr(np, "zeros", lambda shape, *rest, zeros=np.zeros: made.append(shape) or zeros(shape, *rest))
    with pytest.raises(DataError) as caught:
        open_boxes(file)
    assert (
        "an array of 100 boxes, the most of an image, for each of 40 images takes 156 KiB, more than the 97.7 KiB"
        in str(caught.value)
    )
    assert "--memory_limit sets another limit, or leave out or divide the images with the most boxes" in str(
        caught.value
    )
    assert [40, 100, 5] not in made
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "200000")
    assert open_boxes(file)[0].train.labels.shape[1:] == (100, 5)


@pytest.mark.parametrize(("rows", "words"), SPLITS)
def test_splits_that_are_not_valid_are_named(write: Write, rows: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_boxes(write({"a.png": (20, 20), "b.png": (20, 20)}, rows, heading=f"{HEADING},split"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (",image=x", "`image=x` is not an option of boxes:FILE.csv; .*nearest: images"),
        (",coordinates=centre", "coordinates='centre': expected corners or xywh"),
        (",exif=stored,exif=stored", "`exif` is given twice"),
        (",unlisted=skip", "unlisted=skip needs images=DIR"),
        (",images=nowhere", "images=nowhere: there is no such folder"),
        (",images", "`images` is not an option"),
    ],
)
def test_options_that_are_not_valid_are_refused(write: Write, options: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_boxes(write({"a.png": (20, 20)}, ["a.png,1,1,9,9,x"]), options)


def test_a_table_that_is_missing_or_no_text_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "boxes.csv").write_bytes(b"image,\xff\xfe")
    with pytest.raises(DataError, match=r"not UTF-8"):
        open_boxes(tmp_path / "boxes.csv")
    with pytest.raises(DataError, match=r"there is no file .*; nearest: boxes.csv"):
        open_boxes(tmp_path / "boxs.csv")
    with pytest.raises(DataError, match=r"expected a regular file|cannot be read|folder"):
        open_boxes(tmp_path)


def test_boxes_out_of_their_image_are_cut_where_that_is_asked_for(write: Write) -> None:
    file = write({"a.png": (20, 20)}, ["a.png,-3,1,5,90,x"])
    source, _ = open_boxes(file, ",outside=cut", size=20)
    assert (source.train.labels[0, 0, 1:] * 20).round(4).tolist() == [0, 1, 5, 20]


def test_unreadable_images_are_left_out_with_their_boxes_where_that_is_asked_for(write: Write) -> None:
    file = write({"a.png": (20, 20), "b.png": (20, 20)}, ["a.png,1,1,9,9,x", "b.png,1,1,9,9,x"])
    (file.parent / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png: not a JPEG"):
        open_boxes(file)
    source, _ = open_boxes(file, bad_images="skip")
    assert source.skipped == ("b.png",)
    assert len(source.train) == 1


def test_a_gif_is_read_like_other_images_unless_its_first_frame_does_not_fill_it(write: Write) -> None:
    file = write({"a.gif": (40, 24)}, ["a.gif,12,8,28,16,x"])
    source, _ = open_boxes(file, size=(24, 32))
    batch = source.train.read(np.arange(1))
    np.testing.assert_allclose(pixels_of(batch["label"][0], (24, 32)), find_white(batch["image"][0])[None], atol=0.3)
    data = bytearray((file.parent / "a.gif").read_bytes())
    data[6:8] = (80).to_bytes(2, "little")  # the width of the screen
    (file.parent / "a.gif").write_bytes(data)
    with pytest.raises(DataError, match=r"a.gif: the first frame of the GIF does not fill it; save it as PNG"):
        open_boxes(file)
