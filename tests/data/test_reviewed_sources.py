"""Faults that a review of the sources found, each with the right answer."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import DataError, open_data
from engine.data.decode import decode
from engine.data.examples import make_source
from engine.data.tasks import view_task


class Set:
    """Examples from arrays."""

    classes: Any = None

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        return {name.replace("__", "/"): values[positions] for name, values in self.arrays.items()}

    def fingerprint(self) -> str:
        return "one"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [8, 12])
def test_a_tiff_is_turned_once(tmp_path: pathlib.Path, orientation: int, side: int) -> None:
    pixels = np.zeros((8, side, 3), np.uint8)
    pixels[:4, : side // 2] = 200  # a corner
    exif = Image.Exif()
    exif[274] = orientation
    for kind in ("tif", "jpg"):
        Image.fromarray(pixels).save(tmp_path / f"a.{kind}", exif=exif, **({"quality": 98} if kind == "jpg" else {}))
    size = (8, side) if orientation < 5 else (side, 8)
    found = [decode((tmp_path / f"a.{kind}").read_bytes(), size).astype(int) for kind in ("tif", "jpg")]
    assert np.abs(found[0] - found[1]).mean() < 8


def write(path: pathlib.Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_features_are_standardised_by_their_names(tmp_path: pathlib.Path) -> None:
    rows = "".join(f"{n},{1000 + n},{'ab'[n % 2]},train\n" for n in range(20))
    own = write(tmp_path / "a.csv", "x,y,label,split\n" + rows + "3,1003,a,val\n")
    turned = "".join(f"{1000 + n},{n},{'ab'[n % 2]},train\n" for n in range(20))
    other = write(tmp_path / "b.csv", "y,x,label,split\n" + turned)
    given = open_data(f"table:{own},standardise={other}", say=lambda line: None)
    same = open_data(f"table:{own},standardise={own}", say=lambda line: None)
    np.testing.assert_array_equal(given.train.images[np.arange(20)], same.train.images[np.arange(20)])
    wrong = write(tmp_path / "c.csv", "x,z,label,split\n" + rows)
    with pytest.raises(DataError, match=r"its columns are x.*z; expected those of the features, x.*y"):
        open_data(f"table:{own},standardise={wrong}", say=lambda line: None)
    empty = write(tmp_path / "d.csv", "x,y,label,split\n" + rows.replace("train", "val"))
    with pytest.raises(DataError, match="no row is of the part train"):
        open_data(f"table:{own},standardise={empty}", say=lambda line: None)


def test_the_names_of_a_task_do_not_depend_on_the_first_one() -> None:
    examples = Set(
        x=np.zeros((4, 2), np.float32), label__age=np.ones(4, np.float32), label__kind=np.array([0, 1, 0, 1])
    )
    examples.classes = {"kind": ("cat", "dog")}
    source = make_source("made", {"train": examples, "val": examples})
    assert view_task(source, "kind").class_names == ("cat", "dog")
    assert view_task(source, "age").class_names is None


@pytest.mark.parametrize("top", [255.0, np.nan])
def test_float_images_of_ones_own_lie_between_0_and_1(top: float) -> None:
    images = np.full((4, 4, 4, 1), top, np.float32)
    with pytest.raises(DataError, match="images of float32 with values from"):
        make_source("made", Set(image=images, label=np.array([0, 1, 0, 1])))


def test_ignored_pixels_of_ones_own_masks_are_not_a_class() -> None:
    masks = np.tile(np.array([[0, 1], [255, 1]], np.uint8), (4, 1, 1))
    images = np.zeros((4, 2, 2, 1), np.uint8)
    assert make_source("made", Set(image=images, label=masks)).classes == ("0", "1")


def test_a_text_that_is_too_long_for_a_path_is_a_missing_file(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "m.csv", "image,label\n" + f"{'x' * 300},a\n{'y' * 300},b\n")
    with pytest.raises(DataError, match="2 of 2 files in the column image do not exist"):
        open_data(f"csv:{file}", say=lambda line: None)


def test_all_bytes_of_a_tiff_count(tmp_path: pathlib.Path) -> None:
    prints = []
    for value in (10, 20):
        for number in range(12):
            pixels = np.zeros((128, 128, 3), np.uint8)
            pixels[40:80, 40:80] = value
            folder = tmp_path / "photos" / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.tif")
        prints.append(
            open_data(
                f"folder:{tmp_path / 'photos'}", image_size=16, eval_fraction=0.3, say=lambda line: None
            ).fingerprint()
        )
    assert prints[0] != prints[1]
