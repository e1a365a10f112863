"""What is asked of a source acts in it, or is refused: nothing is accepted and then left out."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from engine import data
from engine.data.image_options import ImageOptions
from engine.data.part_names import find_misnamed
from engine.data.text_layout import find_parts
from engine.data.text_name import parse_text_name
from engine.errors import InputError


def refused(spec: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        data.open_data(spec, say=lambda line: None, **options)
    return str(caught.value)


def parts_of(spec: str) -> list[str]:
    return [place.place.name for place in find_parts(spec, parse_text_name(spec), lambda line: None).values()]


@pytest.mark.parametrize("option", ["header=no", "header=yes", "quotes=no", "delimiter=tab"])
def test_options_of_separated_values_are_refused_for_json_lines(tmp_path: pathlib.Path, option: str) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "good", "label": "x"}\n')
    name = option.partition("=")[0]
    message = f"{name}= is about separated values, and the file has JSON Lines; leave it out"
    for place in (tmp_path / "train.jsonl", tmp_path):
        with pytest.raises(InputError, match=message):
            parts_of(f"text:{place},text=text,label=label,{option}")
    (tmp_path / "val.jsonl").unlink()
    (tmp_path / "val.tsv").write_text("text\tlabel\ngood\tx\n")
    if option != "header=no":
        assert parts_of(f"text:{tmp_path},text=text,label=label,{option}") == ["train.jsonl", "val.tsv"], (
            "it is for one of them"
        )


def test_arrays_that_name_a_part_by_another_word_are_not_left_out(tmp_path: pathlib.Path) -> None:
    images, labels = np.zeros([6, 4, 4], np.uint8), np.arange(6) % 2
    given = {"train_images": images, "train_labels": labels}
    for word in ("valid", "validation", "dev", "testing"):
        np.savez(tmp_path / "a.npz", **given, **{f"{word}_images": images, f"{word}_labels": labels})
        part = "test" if word == "testing" else "val"
        assert f"the array {word}_images would not be read; expected {part}_images" in refused(f"npz:{tmp_path}/a.npz")
    np.savez(tmp_path / "t.npz", x=np.ones([6, 2]), y=labels, dev_x=np.ones([2, 2]), dev_y=labels[:2])
    assert "the array dev_x would not be read; expected val_x" in refused(f"table:{tmp_path}/t.npz")
    assert find_misnamed(["train_x"], ("x", "y"), ("x", "y", "val_x")) == ("train_x", "x")
    np.savez(tmp_path / "more.npz", **given, ids=labels, evaluation=labels, own_images=images)
    assert len(data.open_data(f"npz:{tmp_path}/more.npz", eval_fraction=0.5).train) == 3, (
        "other arrays are the user's own"
    )


def test_names_of_columns_that_do_not_fit_are_not_left_out(tmp_path: pathlib.Path) -> None:
    labels = np.eye(3)[np.arange(6) % 3]
    given = {"train_images": np.zeros([6, 4, 4], np.uint8), "train_labels": labels}
    np.savez(tmp_path / "a.npz", **given, class_names=np.array(["a", "b"]))
    assert "class_names has 2 names for labels of 3 columns; expected one for each" in refused(f"npz:{tmp_path}/a.npz")


def test_pixels_of_tensorflow_datasets_are_stored_ones_anyway() -> None:
    error = refused("tfds:mnist", images=ImageOptions(image_pixels="stored"))
    assert "image_pixels=stored: the images of tfds:mnist are read as they are stored anyway; leave it out" in error


def test_labels_that_are_no_whole_numbers_cannot_be_asked_for_as_classes() -> None:
    from engine.data.tfds import _name_classes

    with pytest.raises(InputError, match=r"label=age:class: its values are not whole numbers; expected age:number"):
        _name_classes("data=tfds:x", "age", None, "class", {"train": np.array([0.5, 1.5], np.float32)})
