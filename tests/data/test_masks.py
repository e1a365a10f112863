"""Image folders with masks: how pairs are found, what their numbers mean, and how they stay aligned with their images."""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import DataError, TrainBatches, open_data
from engine.data.augment import KINDS, augment, augment_masks
from engine.data.class_pixels import count_pixels
from engine.data.label_images import read_label_image, resize_labels
from engine.data.mask_rule import MaskRule, parse_masks
from engine.data.part import IGNORED, Part, Source
from engine.data.resize import resize
from engine.seeds import example_seeds

Make = Callable[..., pathlib.Path]


def disc(size: tuple[int, int], number: int) -> np.ndarray:
    """A disc whose place depends on a number: bool [height, width]."""
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - 6 - number % 5) ** 2 + (x - 7 - number % 3) ** 2 < 20


def save(path: pathlib.Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    """Writes a folder with masks; ``draw(number)`` draws the mask of an image."""

    def write(
        draw: Callable[[int], np.ndarray] | None = None,
        *,
        parts: tuple[str, ...] = ("",),
        count: int = 6,
        size: tuple[int, int] = (20, 24),
        names: str | None = None,
    ) -> pathlib.Path:
        folder = tmp_path / "scenes"
        for part in parts:
            for number in range(count):
                inside = disc(size, number)
                photo = np.where(inside[..., None], (200, 60, 20), (10, 40, 90)).astype(np.uint8)
                save(folder / part / "images" / f"{number}.jpg", photo)
                mask = inside.astype(np.uint8) if draw is None else draw(number)
                save(folder / part / "masks" / f"{number}.png", mask)
        if names is not None:
            (folder / "classes.txt").write_text(names)
        return folder

    return write


def opened(folder: pathlib.Path, **given: Any) -> tuple[Source, list[str]]:
    said: list[str] = []
    source = open_data(f"folder:{folder}", **{"image_size": 16, "eval_fraction": 0.4, **given}, say=said.append)
    return source, said


def refusal(folder: pathlib.Path, **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, **given)
    return str(caught.value)


# ---- what a label image says


def write_grey(path: pathlib.Path, numbers: np.ndarray, bits: int) -> None:
    """Writes a grey PNG of few bits, which Pillow writes only with a palette."""
    height, width = numbers.shape
    parts = numbers[:, :, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1
    rows = np.packbits(parts.reshape(height, -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(own)) + kind + own + struct.pack(">I", zlib.crc32(kind + own)) for kind, own in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_a_label_image_gives_the_numbers_that_it_stores(tmp_path: pathlib.Path, bits: int, palette: bool) -> None:
    numbers = (np.arange(35).reshape(5, 7) * 37 % 2**bits).astype(np.uint8)
    if palette:
        image = Image.fromarray(numbers, "P")
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 3 * 2**bits)))
        image.save(tmp_path / "mask.png", bits=bits)
    else:
        write_grey(tmp_path / "mask.png", numbers, bits)
    assert (read_label_image(tmp_path / "mask.png") == numbers).all()


def test_16_bits_and_a_transparent_number_keep_their_values(tmp_path: pathlib.Path) -> None:
    numbers = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    Image.fromarray(numbers).save(tmp_path / "wide.png")
    assert (read_label_image(tmp_path / "wide.png") == numbers).all()
    few = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    few.putpalette(bytes(range(12)))
    few.save(tmp_path / "clear.png", transparency=0)
    assert read_label_image(tmp_path / "clear.png").tolist() == [[0, 1], [2, 3]]


def test_masks_are_resized_and_cropped_with_their_images() -> None:
    rng = np.random.default_rng(0)
    for shape, size in [((40, 64), (16, 16)), ((9, 7), (18, 14)), ((33, 20), (21, 30)), ((8, 300), (8, 8))]:
        y, x = np.mgrid[: shape[0], : shape[1]]
        inside = (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < (0.3 * min(shape)) ** 2
        photo = resize(inside[None, :, :, None].astype(np.float32), size)[0, :, :, 0]
        assert (resize_labels(inside.astype(np.uint8), size) == (photo > 0.5)).mean() > 0.95
    labels = rng.integers(0, 9, (5, 6)).astype(np.uint8)
    assert (resize_labels(labels, (10, 12)) == labels.repeat(2, axis=0).repeat(2, axis=1)).all()


# ---- folders


def test_a_folder_with_images_and_masks_has_a_class_for_each_pixel(make: Make) -> None:
    source, said = opened(make())
    assert source.classes == ("0", "1")
    assert not source.named
    assert source.train.labels.dtype == np.uint8
    assert source.train.labels.shape == (len(source.train), 16, 16)
    assert len(source.train) + len(source.eval) == 6
    batch = source.train.read(np.arange(len(source.train)))
    red = batch["image"][..., 0] > 105
    assert (red == batch["label"]).mean() > 0.93
    assert "data: masks: 2 classes, the numbers 0 to 1; pixels of 255 are ignored" in said


def test_parts_above_images_and_masks_and_names(make: Make) -> None:
    folder = make(parts=("train", "valid", "test"), count=3, names="ground\ndisc\nsea\n")
    source, said = opened(folder, eval_fraction=None)
    assert source.classes == ("ground", "disc", "sea")
    assert [len(part) for part in (source.train, source.eval, source.test or source.train)] == [3, 3, 3]
    assert "data: the folder valid is the part val" in said
    assert "data: no pixel to train on has the class sea" in said


def test_instances_become_objects_and_only_where_that_is_said(make: Make) -> None:
    folder = make(
        lambda number: (
            disc((20, 24), number).astype(np.uint16) * (np.mgrid[:20, :24][1] % (2 + number) + 1).astype(np.uint16)
        )
    )
    said = refusal(folder)
    assert "count from 1 without a gap, up to 2 in one and 7 in another" in said
    assert "--masks=instances" in said
    assert "--masks=classes" in said
    source, lines = opened(folder, masks="instances")
    assert source.classes == ("background", "object")
    assert set(np.unique(source.train.labels)) == {0, 1}
    assert "data: masks: 0 is background, any other number object; no number is ignored" in lines
    assert len(opened(folder, masks="classes")[0].classes) == 8


@pytest.mark.parametrize(
    ("draw", "given", "words"),
    [
        (lambda n: disc((20, 24), n) * np.uint8(255), {}, ["all pixels that count are 0 (255 is ignored)", "--masks=instances"]),
        (lambda n: disc((20, 24), n) * np.uint16(400), {}, ["go up to 400, more than there can be classes"]),
        (lambda n: disc((20, 24), n) * np.uint16(400), {"masks": "classes"}, ["numbers up to 400", "0 to at most 254"]),
        (lambda n: disc((20, 24), n) * np.uint8(60), {}, ["they go up to 60, 2 of them occur", "classes.txt"]),
        (lambda n: disc((20, 24), n) * np.uint8(255), {"masks": "classes"}, ["only class 0 (pixels of 255 are ignored)"]),
        (lambda n: disc((20, 24), n)[:19].astype(np.uint8), {}, ["24x19 pixels", "images/0.jpg has 24x20"]),
        (lambda n: np.zeros((20, 24, 3), np.uint8) + np.arange(3, dtype=np.uint8), {}, ["a PNG of colours"]),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_right_are_refused(make: Make, draw: Any, given: dict[str, Any], words: list[str]) -> None:
    said = refusal(make(draw), **given)
    for word in words:
        assert word in said


def test_the_ignored_number_is_left_out_of_the_classes(make: Make) -> None:
    folder = make(lambda number: disc((20, 24), number) * np.uint8(2))
    source, said = opened(folder, masks="classes,ignore=0")
    assert source.classes == ("0", "1", "2")
    assert set(np.unique(source.train.labels)) == {2, IGNORED}
    assert "data: no pixel to train on has the class 0 and 1" in said
    assert count_pixels(source.train.labels)[2] > 0


def test_a_class_that_only_another_part_has(make: Make) -> None:
    folder = make(parts=("train", "val"), count=3)
    save(folder / "val" / "masks" / "1.png", disc((20, 24), 1) * np.uint8(2))
    said = refusal(folder, eval_fraction=None)
    assert "class 2 occurs in val, but the classes of train are 0 to 1; classes.txt" in said
    (folder / "classes.txt").write_text("ground\ndisc\nrare")
    source, lines = opened(folder, eval_fraction=None)
    assert source.classes == ("ground", "disc", "rare")
    assert "data: the eval part has pixels of rare, which training never sees" in lines


def test_pairs_that_do_not_match_are_named(make: Make) -> None:
    folder = make()
    (folder / "masks" / "3.png").rename(folder / "masks" / "3_mask.png")
    said = refusal(folder)
    assert "1 of 6 images in images have no mask: 3" in said
    assert "masks without an image: 3_mask.png" in said
    (folder / "masks" / "3_mask.png").rename(folder / "masks" / "3.png")
    (folder / "images" / "3.png").write_bytes((folder / "masks" / "3.png").read_bytes())
    assert "3.jpg and 3.png, which have the same name" in refusal(folder)
    (folder / "images" / "3.png").unlink()
    save(folder / "masks" / "9.png", np.zeros((2, 2), np.uint8))
    assert any("masks without an image (1)" in line for line in opened(folder)[1])
    (folder / "previews").mkdir()
    assert "beside images and masks there is previews" in refusal(folder)


def test_a_photo_that_is_turned_is_asked_about(make: Make) -> None:
    folder = make()
    photo = Image.open(folder / "images" / "2.jpg")
    exif = Image.Exif()
    exif[0x0112] = 3
    photo.save(folder / "images" / "2.jpg", exif=exif)
    assert "turned by its Exif data (orientation 3)" in refusal(folder)
    source, _ = opened(folder, bad_images="skip")
    assert source.skipped == ("images/2.jpg",)
    assert len(source.train) + len(source.eval) == 5


def test_masks_that_memory_does_not_hold_are_refused_before_they_are_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(make(), image_cache=6 * 16 * 16 - 1)
    assert "6 masks of 16x16 take 1.5 KiB of memory" in said
    assert "--image_cache=1536 or more" in said
    source, _ = opened(make(), image_cache=6 * 16 * 16)
    assert source.train.images.kept == 0  # type: ignore[attr-defined]
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "100000")  # which --image_cache does not raise
    said = refusal(make(), image_size=200, image_cache=1 << 30)
    assert (
        "an array of 6 masks of 200x200 takes 234 KiB, more than the 97.7 KiB that may be used; --memory_limit" in said
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, MaskRule(None, IGNORED)),
        ("classes", MaskRule("classes", IGNORED)),
        ("instances", MaskRule("instances", None)),
        ("classes, ignore=none", MaskRule("classes", None)),
        ("instances,ignore=65535", MaskRule("instances", 65535)),
    ],
)
def test_the_rule_is_read(text: str | None, rule: MaskRule) -> None:
    assert parse_masks(text) == rule


@pytest.mark.parametrize(
    "text", ["class", "", "classes,ignore", "classes,ignore=-1", "instances,ignore=70000", "classes,x=1"]
)
def test_a_rule_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="masks="):
        parse_masks(text)


def test_a_rule_without_masks_is_refused(make_folder: Any) -> None:
    with pytest.raises(DataError, match="has no folders images and masks"):
        open_data(f"folder:{make_folder({'cat': 3, 'dog': 3})}", masks="classes", say=lambda line: None)
    with pytest.raises(DataError, match="has no label images"):
        open_data("fashion_mnist_mini", masks="classes")


# ---- augmentation


@pytest.mark.parametrize("kinds", [("flip",), ("crop",), ("rotate",), ("zoom",), KINDS])
def test_images_and_masks_move_together(kinds: tuple[str, ...]) -> None:
    masks = np.stack([disc((32, 32), number) | disc((32, 32), number).T[::-1] for number in range(8)])
    seeds = example_seeds(3, 1, np.arange(8))
    moved = np.asarray(augment_masks(masks.astype(np.uint8), seeds, kinds))
    photos = np.asarray(
        augment(masks[..., None].astype(np.float32), seeds, tuple(k for k in kinds if k not in ("color", "contrast")))
    )
    assert moved.dtype == np.uint8
    assert (moved != masks).any()
    assert set(np.unique(moved)) <= {0, 1}
    assert (moved == (photos[..., 0] > 0.5)).mean() > 0.985
    assert (np.asarray(augment_masks(masks.astype(np.uint8), seeds, ("color", "contrast"))) == masks).all()


def test_batches_move_labels_with_their_images_and_keep_the_ignored() -> None:
    masks = np.stack([disc((16, 16), number) for number in range(6)]).astype(np.uint8)
    masks[:, :2] = IGNORED
    images = np.repeat(masks[..., None], 3, axis=-1)
    part = Part(images, masks, np.arange(6))
    batches = TrainBatches(part, batch_size=4, seed=1, augment=("flip", "crop"))
    for step in range(3):
        batch = batches.at(step)
        shown = np.rint((np.asarray(batch["image"]) * 0.5 + 0.5)[..., 0] * 255)
        assert (shown == np.asarray(batch["label"])).all()
        epoch, positions = batches.place(step)
        again = batches.prepared_rest(positions, epoch)
        assert (np.asarray(again["label"]) == np.asarray(batch["label"])).all()
    plain = TrainBatches(part, batch_size=6).at(0)
    assert (plain["label"] == masks[plain["index"]]).all()


def test_labels_of_pixels_are_checked() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=r"masks of \[4, 4\] for images of \[8, 8\]"):
        Part(images, np.zeros((2, 4, 4), np.uint8), np.arange(2))
    with pytest.raises(DataError, match="numbers from -1 to 0"):
        Part(images, np.zeros((2, 8, 8), np.int64) - np.eye(8, dtype=np.int64)[None], np.arange(2))
    assert Part(images, np.ones((2, 8, 8), np.int32), np.arange(2)).labels.dtype == np.uint8
