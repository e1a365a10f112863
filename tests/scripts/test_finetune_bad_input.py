"""finetune on files and code that are not what they should be: a sentence and exit code 2, or a counted skip."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

KERAS = "--model=keras:MobileNetV2,alpha=0.35"
QUICK = ("--steps=1", "--train=@head", "--batch_size=8", "--eval_fraction=0.2")
PHOTOS = ("--model=cnn:mini", "--weights=none", "--image_size=16")
CODE = """
def nothing(image_shape, outputs): return None
def raises(image_shape, outputs): raise RuntimeError("boom")
def ends(image_shape, outputs): raise SystemExit(0)
"""


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working folder, with bad files in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.zeros(3)
    for name in ("text.h5", "text.keras"):
        pathlib.Path(name).write_text("hello")
    pathlib.Path("empty").mkdir()
    pathlib.Path("one/cats").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save("one/cats/a.jpg")
    pathlib.Path("bad_factories.py").write_text(CODE)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--weights=other.h5"], "an HDF5 file, but not Keras weights; it holds x"),
        (["--weights=text.h5"], "not a weights file of a supported kind, or a truncated one"),
        pytest.param(
            [KERAS, "--image_size=32", "--weights=other.h5"],
            "an HDF5 file, but not Keras weights; it holds x",
            marks=pytest.mark.slow,
        ),
        (["--model=file:other.h5"], "it is not a Keras model, or damaged: an HDF5 file, but not Keras"),
        (["--weights=/dev/zero"], "it is a device; expected a regular file"),
        (["--data=npz:/dev/zero"], "it is a device; expected a regular file"),
        ([*PHOTOS, "--data=fashion_mnist_mini", "--train=(.+)+! @head"], "`(.+)+!`: it takes longer than 1 s to match"),
        (["--adapt=lora:rank=8 @atention"], "`@atention` is not a group; nearest: @attention"),
        (["--model=file:text.h5"], "it is not a Keras model, or damaged"),
        (["--model=file:text.keras"], "it is not a Keras model, or damaged; a .keras file is a zip archive"),
        ([*PHOTOS, "--data=folder:empty"], "there are no images below empty; expected one folder of images"),
        ([*PHOTOS, "--data=folder:one"], "there is only one class, 'cats'; a classifier needs two or more"),
        ([*PHOTOS, "--data=folder:ones"], "there is no folder ones; nearest: one"),
        (
            ["--model=py:bad_factories:nothing"],
            "returned NoneType; expected a tf.Module with __call__ or a Keras model",
        ),
        (["--model=py:bad_factories:raises"], "bad_factories:raises((28, 28, 1), 10) raised RuntimeError: boom"),
        (["--model=py:bad_factories:ends"], "bad_factories:ends((28, 28, 1), 10) raised SystemExit: 0"),
        (["--model=py:bad_factories:nothin"], "bad_factories has no 'nothin'; nearest: nothing"),
        (["--model=py:no_such_module:f"], "importing no_such_module raised ModuleNotFoundError"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_files_and_code_end_with_a_sentence_and_code_2(
    call: Any, here: pathlib.Path, flags: list[str], said: str
) -> None:
    code, _, error = call(*QUICK, *flags, "--out=run")
    assert code == 2, error
    assert said in error
    assert not (here / "run").exists()


def _zero(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def _html(path: pathlib.Path) -> None:
    path.write_text("<!DOCTYPE html><html></html>")


def _cmyk(path: pathlib.Path) -> None:
    Image.new("CMYK", (60, 50), (0, 90, 200, 10)).save(path)


def _large(path: pathlib.Path) -> None:
    Image.new("RGB", (8000, 5000), (0, 90, 200)).save(path, quality=30)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_zero, "the file is empty"),
        pytest.param(_html, "not a JPEG, PNG, GIF or BMP; the file begins with", marks=pytest.mark.slow),
        (_cmyk, ""),
        pytest.param(_large, "", marks=pytest.mark.slow),
    ],
)
def test_a_bad_photo_is_named_or_skipped_and_counted_and_an_unusual_one_is_read(
    call: Any, here: pathlib.Path, write: Callable[[pathlib.Path], None], reason: str
) -> None:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(12):
            picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(picture).save(here / "photos" / name / f"{number:02}.jpg")
    write(here / "photos/cats/z.jpg")
    flags = (*QUICK, *PHOTOS, "--data=folder:photos", "--out=run")
    if reason:
        code, _, error = call(*flags)
        assert code == 2
        assert "1 of 25 images cannot be read (--bad_images=skip leaves them out)" in error
        assert f"cats/z.jpg: {reason}" in error
        flags += ("--bad_images=skip",)
    assert call(*flags)[0] == 0
    data = json.loads((here / "run/run.json").read_text())["data"]
    assert data["train_examples"] + data["eval_examples"] == (24 if reason else 25)
    assert data["skipped"] == (["cats/z.jpg"] if reason else [])
    assert data["skipped_images"] == len(data["skipped"])
