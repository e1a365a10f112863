"""Weights of examples: in the arrays of a file, and in a file beside the data."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import DataError, open_data
from engine.data.named_weights import read_sample_weights
from engine.errors import InputError


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of photos: two classes, with a part val."""
    for number in range(12):
        file = tmp_path / "photos" / ("val" if number > 7 else "train") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    return tmp_path / "photos"


def table(path: pathlib.Path, **more: Any) -> str:
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(10, 3)), "y": np.arange(10) % 2, "val_x": rng.normal(size=(4, 3)), "val_y": np.arange(4) % 2}  # fmt: skip
    np.savez(path, **given | more)
    return f"table:{path}"


def images(path: pathlib.Path, **more: Any) -> str:
    given = {"train_images": np.zeros((10, 4, 4), np.uint8), "train_labels": np.arange(10) % 2}
    given |= {"val_images": np.zeros((4, 4, 4), np.uint8), "val_labels": np.arange(4) % 2}
    np.savez(path, **given | more)
    return f"npz:{path}"


KINDS = {table: ("weight", "val_weight"), images: ("train_weights", "val_weights")}


@pytest.mark.parametrize(("write", "names"), KINDS.items(), ids=["table", "npz"])
def test_weights_in_arrays_are_those_of_the_examples(
    tmp_path: pathlib.Path, write: Any, names: tuple[str, str]
) -> None:
    weights = np.arange(10) / 4
    source = open_data(write(tmp_path / "d.npz", **{names[0]: weights}), say=lambda line: None)
    np.testing.assert_array_equal(source.train.read(np.array([9, 1]))["weight"], np.float32([2.25, 0.25]))
    assert "weight" not in source.eval.read(np.array([0]))
    source = open_data(write(tmp_path / "d.npz", **{names[1]: np.ones(4)}), say=lambda line: None)
    assert source.eval.read(np.array([0]))["weight"] == 1


@pytest.mark.parametrize(("write", "names"), KINDS.items(), ids=["table", "npz"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(9), r"float64 \[9\]; expected numbers \[10\]"),
        (np.array(["a"] * 10), "expected numbers"),
        (np.array([1.0] * 9 + [-1]), r"\[9\]=-1: a weight is a finite number of at least 0"),
        (np.array([1.0] * 9 + [np.nan]), r"\[9\]=nan"),
        (np.array([1e300] * 10), r"\[0\]=1e\+300"),
    ],
)
def test_arrays_that_are_not_weights_are_refused(
    tmp_path: pathlib.Path, write: Any, names: tuple[str, str], weights: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=f"{names[0]}.*{message}"):
        open_data(write(tmp_path / "d.npz", **{names[0]: weights}), say=lambda line: None)


@pytest.mark.parametrize("write", [table, images])
def test_arrays_that_are_not_read_are_named(tmp_path: pathlib.Path, write: Any) -> None:
    lines: list[str] = []
    open_data(write(tmp_path / "d.npz", weigths=np.ones(10), test_weights=np.ones(3)), say=lines.append)
    assert any(line.endswith("not read: test_weights, weigths") for line in lines), lines


def read(folder: pathlib.Path, spec: str, text: str) -> tuple[np.ndarray, str]:
    (folder / "w.csv").write_text(text)
    return read_sample_weights(folder / "w.csv", open_data(spec, say=lambda line: None).train)


def test_images_are_named_by_their_paths(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = "file,weight\ntrain/b/3.png,0\ntrain/a/0.png,2.5\nval/a/8.png,7\n"  # one of another part changes nothing
    weights, said = read(tmp_path, f"folder:{photos}", text)
    np.testing.assert_array_equal(weights, np.float32([2.5, 1, 1, 1, 1, 0, 1, 1]))
    assert said == "of 8 training examples, 2 weigh 0 to 2.5, the others 1; 1 of weight 0 do not count in the loss"


def test_a_manifest_that_names_an_image_twice_weighs_both_rows(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [
        "image,label,split",
        "train/a/0.png,x,train",
        "train/b/1.png,y,train",
        "train/a/0.png,y,train",
        "val/a/8.png,x,val",
    ]
    (photos / "m.csv").write_text("\n".join(rows))
    for name in ("train/a/0.png", "./train/a/../a/0.png"):
        weights, _ = read(tmp_path, f"csv:{photos}/m.csv", f'{{"{name}": 3}}')
        np.testing.assert_array_equal(weights, np.float32([3, 1, 3]))


def test_other_examples_are_named_by_numbers_which_what_is_held_out_does_not_move(tmp_path: pathlib.Path) -> None:
    lines = "\n".join(f"{number},{number + 1}" for number in range(10))
    part = open_data(spec := images(tmp_path / "d.npz"), say=lambda line: None).train
    (tmp_path / "w.csv").write_text(lines)
    np.testing.assert_array_equal(read_sample_weights(tmp_path / "w.csv", part)[0], np.arange(10) + 1)
    few = open_data(spec, train_examples=4, say=lambda line: None).train
    np.testing.assert_array_equal(read_sample_weights(tmp_path / "w.csv", few)[0], few.index + 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train/a/0.png,1\ntrain/a/0.png,2", "'train/a/0.png' has two weights"),
        ("train/a/1.png,1", r"the data have no image 'train/a/1.png'; an image is named by its path.*nearest: train/"),
        ("train/a/0.png,-1", "the weight of 'train/a/0.png' is -1; expected a finite number of at least 0"),
        ("train/a/0.png,1e39", "is 1e[+]39, which no float32 holds"),
        ("train/a/0.png", "line 1 has 1 cells"),
        ("train/a/0.png,O.2\ntrain/a/2.png,1", "line 1: 'O.2' is not a number"),
        ('{"train/a/0.png": 1' + "0" * 400 + "}", "expected a JSON object {example: weight}"),
        ("val/a/8.png,1", "it names none of the 8 training examples"),
        ("", "it names none of the 8 training examples"),
        ("\n".join(f"train/{'ab'[n % 2]}/{n}.png,0" for n in range(8)), "all training examples have the weight 0"),
        ("[1, 2]", "expected a JSON object {example: weight} or CSV lines example,weight"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    photos: pathlib.Path, tmp_path: pathlib.Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"w.csv: .*{message}"):
        read(tmp_path, f"folder:{photos}", text)


@pytest.mark.parametrize("name", ["10", "-1", "1.0", "a.png", "9" * 30])
def test_numbers_that_no_example_has_are_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(
        InputError, match=f"{name!r} is not a valid number of an example; the training data have examples 0 to 9"
    ):
        read(tmp_path, images(tmp_path / "d.npz"), f"0,1\n{name},2")


def test_a_file_that_is_not_there_is_named(photos: pathlib.Path) -> None:
    with pytest.raises(
        InputError, match=r"sample_weights=absent.csv: there is no such file; expected a CSV file with lines"
    ):
        read_sample_weights("absent.csv", open_data(f"folder:{photos}", say=lambda line: None).train)
