"""finetune on a person's own images: folders of files, through every flag that concerns them."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import shutil
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.files import Npz

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or ROOT.parent / "shared")
CIFAR = SHARED / "data" / "cifar10_test_jpeg.tar"
SMALL = ("--model=cnn:mini", "--weights=none", "--train=@all", "--batch_size=8", "--steps=6", "--log_every=1")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """DIR/CLASS/*.jpg: 30 real images each of trousers, bags and boots, as JPEG files of 40x30 pixels."""
    from engine import data

    part = data.open_data("fashion_mnist_mini").train
    folder = tmp_path_factory.mktemp("own") / "photos"
    for name, label in (("trousers", 1), ("bags", 8), ("boots", 9)):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(part.read(np.flatnonzero(part.labels == label)[:30])["image"][..., 0]):
            Image.fromarray(image).resize((40, 30)).save(folder / name / f"{name} {number}.jpg", quality=95)
    return folder


def two_classes(photos: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    for name in ("trousers", "boots"):
        (folder / name).symlink_to(photos / name)
    return folder


def result(out: pathlib.Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def test_many_classes_train_with_softmax_from_a_folder(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "run"
    code, printed, _ = call(*SMALL, f"--data=folder:{photos}", "--steps=30", "--learning_rate=0.01", f"--out={out}")
    assert code == 0
    run = result(out)
    assert run["data"]["class_names"] == ["bags", "boots", "trousers"]
    assert run["data"]["train_examples"] + run["data"]["eval_examples"] == 90
    assert run["data"]["image_shape"] == [28, 28, 3]
    assert (run["data"]["skipped_images"], run["data"]["skipped"]) == (0, [])
    assert run["final"]["eval_accuracy"] >= 0.7
    assert f"data:    folder:{photos}, " in printed


def test_the_default_models_grey_weights_are_refused_for_photos_with_the_ways_out(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flags = (f"--data=folder:{photos}", "--steps=1", "--batch_size=8", f"--out={tmp_path / 'run'}")
    code, _, error = call(*flags)
    assert code == 2
    assert "the weights that ship with vit:mini are for grayscale images (one channel) of 28x28 pixels" in error
    assert "they do not fit --model=vit:mini on images of 28x28 with 3 channels. --weights=none starts from" in error
    assert "patch/kernel: [16, 96] in the file, [48, 96] in the model" in error
    assert not (tmp_path / "run").exists()
    assert call(*flags, "--weights=none", "--train=@head", "--dry_run")[0] == 0


@pytest.mark.slow
def test_two_classes_train_with_one_sigmoid_output(call: Call, photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = two_classes(photos, tmp_path / "two")
    (folder / "train").mkdir()
    for name in ("trousers", "boots"):
        (folder / name).rename(folder / "train" / name)
    (folder / "test").symlink_to(folder / "train")
    flags_here = (*SMALL, f"--data=folder:{folder}", "--loss=sigmoid", "--steps=30", "--learning_rate=0.01")
    assert call(*flags_here, f"--out={tmp_path / 'run'}")[0] == 0
    run = result(tmp_path / "run")
    assert run["final"]["eval_accuracy"] >= 0.8
    assert set(run["final"]["test_class_accuracy"]) == {"boots", "trousers"}
    with Npz(tmp_path / "run/trained.npz") as trained:
        assert trained.shape("head/kernel") == (64, 1)


def test_more_than_two_classes_are_refused_by_sigmoid(call: Call, photos: pathlib.Path) -> None:
    code, _, error = call(*SMALL, f"--data=folder:{photos}", "--loss=sigmoid")
    assert code == 2
    assert "these are 3 classes; use softmax" in error


def test_image_size_reaches_the_model(call: Call, photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    small = (*SMALL, "--train=@head", "--steps=1")
    sized = (*small, f"--data=folder:{photos}")
    assert call(*sized, "--image_size=16x24", f"--out={tmp_path / 'a'}")[0] == 0
    assert result(tmp_path / "a")["data"]["image_shape"] == [16, 24, 3]
    vit = ("--model=vit:Ti/32,depth=1", "--weights=none", "--train=@head", "--steps=1", "--batch_size=2")
    assert call(*vit, "--train_examples=2", f"--data=folder:{photos}", f"--out={tmp_path / 'b'}")[0] == 0
    assert result(tmp_path / "b")["data"]["image_shape"] == [224, 224, 3], "what a ViT of this size is made for"
    assert call(*small, "--train_examples=64", "--image_size=20", f"--out={tmp_path / 'c'}")[0] == 0
    assert result(tmp_path / "c")["data"]["image_shape"] == [20, 20, 1], "the embedded set is resized too"


@pytest.mark.slow
def test_a_saved_model_gets_photos_of_the_size_of_its_input(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import keras

    layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    keras.Sequential([keras.Input((20, 24, 3)), *layers]).save(tmp_path / "m.keras")
    own = ("--train=@head", "--steps=1", "--batch_size=8", f"--data=folder:{photos}", f"--out={tmp_path / 'run'}")
    code, _, error = call(f"--model=file:{tmp_path / 'm.keras'}", *own)
    assert code == 0, error
    assert result(tmp_path / "run")["data"]["image_shape"] == [20, 24, 3]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--image_size=large", "image_size='large': expected N or HEIGHTxWIDTH in pixels, such as 224 or 192x256"),
        ("--image_cache=1 gig", "image_cache='1 gig': expected a number and a unit"),
        ("--bad_images=ignore", "should be one of <stop|skip>"),
        ("--eval_fraction=1.5", "eval_fraction=1.5: expected a number above 0 and below 1"),
    ],
)
def test_bad_values_are_bad_input(call: Call, photos: pathlib.Path, flag: str, says: str) -> None:
    code, _, error = call(*SMALL, f"--data=folder:{photos}", flag)
    assert code == 2
    assert says in error


def test_a_bad_image_stops_the_run_by_name_or_is_skipped_and_counted(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "mixed"
    for name in ("bags", "boots"):
        (folder / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir()):
            (folder / name / file.name).symlink_to(file)
    for number in range(25):
        (folder / f"bags/page{number:02}.jpg").write_bytes(b"<html>moved</html>")
    with_bad = (*SMALL, "--train=@head", f"--data=folder:{folder}", "--eval_fraction=0.2")
    code, _, error = call(*with_bad)
    assert code == 2
    assert "25 of 85 images cannot be read (--bad_images=skip leaves them out)" in error
    assert "bags/page00.jpg: not a JPEG, PNG, GIF or BMP; the file begins with '<html>moved</html>'" in error
    code, printed, _ = call(*with_bad, "--bad_images=skip", f"--out={tmp_path / 'run'}")
    assert code == 0
    assert "25 bad images skipped" in printed
    found = result(tmp_path / "run")["data"]
    assert found["skipped_images"] == 25
    assert found["skipped"] == [f"bags/page{number:02}.jpg" for number in range(20)]
    assert found["train_examples"] + found["eval_examples"] == 60


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_may_have_another_cache(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    own = (*SMALL, f"--data=folder:{photos}", "--augment=flip,crop", "--eval_every=4", "--checkpoint_every=1")
    assert call(*own, f"--out={tmp_path / 'whole'}")[0] == 0
    asked = itertools.count()  # once before the first step
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(asked) > 3)
        assert call(*own, "--image_cache=0", f"--out={tmp_path / 'parts'}")[0] == 3
    assert result(tmp_path / "parts")["steps"] == 3
    assert call(*own, "--resume", "--image_cache=50KB", f"--out={tmp_path / 'parts'}")[0] == 0
    with Npz(tmp_path / "whole/trained.npz") as one, Npz(tmp_path / "parts/trained.npz") as other:
        for name in one.names():
            np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


def test_a_resume_on_changed_images_is_refused(call: Call, photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = two_classes(photos, tmp_path / "two")
    own = (*SMALL, "--train=@head", "--steps=2", f"--data=folder:{folder}", f"--out={tmp_path / 'run'}")
    assert call(*own)[0] == 0
    (folder / "boots").unlink()
    (folder / "boots").symlink_to(photos / "bags")
    code, _, error = call(*own, "--resume")
    assert code == 2
    assert "data (SHA-256)" in error


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("this comes too early")


def test_a_folder_in_use_and_contradictions_are_refused_before_anything_is_opened(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.recipes import task
    from scripts import cli

    own = (*SMALL, "--train=@head", "--steps=1", f"--data=folder:{photos}", f"--out={tmp_path / 'run'}")
    assert call(*own)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(task.sources, "open_data", forbidden)
        code, _, error = call(*own, "--resume", "--learning_rate=0.5", "--seed=4")
        assert code == 2, error
        assert "--learning_rate: 0.001 in the checkpoint, 0.5 now" in error
        assert "--seed: 0 in the checkpoint, 4 now" in error
        patch.setattr(cli, "import_tensorflow", forbidden)
        code, _, error = call(*own)
    assert code == 2
    assert "it holds a run (" in error


def test_filters_and_weights_are_refused_before_photos_are_decoded(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.data import image_files

    monkeypatch.setattr(image_files, "decode", forbidden)
    own = (*SMALL, f"--data=folder:{photos}", f"--out={tmp_path / 'run'}")
    for flags, says in (
        (("--train=hed/.*",), "item 1 `hed/.*` matches nothing"),
        (("--weights=nowhere.npz",), "nowhere.npz"),
        (("--train_examples=1000",), "train_examples=1000"),
    ):
        code, _, error = call(*own, *flags)
        assert code == 2, error
        assert says in error


def test_with_every_feature_cached_few_photos_are_decoded(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.data import image_files

    decode, decoded = image_files.decode, []
    monkeypatch.setattr(image_files, "decode", lambda data, size: decoded.append(1) or decode(data, size))
    own = (*SMALL, "--train=@head", "--steps=1", f"--data=folder:{photos}", "--cache=require", "--train_examples=60")
    assert call(*own, f"--out={tmp_path / 'one'}")[0] == 0
    held_out = result(tmp_path / "one")["data"]["eval_examples"]
    assert len(decoded) == 60 + held_out
    decoded.clear()
    assert call(*own, f"--out={tmp_path / 'two'}")[0] == 0
    assert len(decoded) <= 8 + held_out, "one batch, and the watched examples"
    with Npz(tmp_path / "one/trained.npz") as one, Npz(tmp_path / "two/trained.npz") as two:
        assert all(np.array_equal(one.read(name), two.read(name)) for name in one.names())


@pytest.mark.slow
def test_damaged_photos_are_named_together_before_the_run_begins(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "harmed"
    for name in ("bags", "boots"):
        shutil.copytree(photos / name, folder / name)
        for number in (3, 17):
            path = folder / name / f"{name} {number}.jpg"
            Image.open(path).save(path, "PNG")
            content = bytearray(path.read_bytes())
            content[200:240] = bytes(40)  # neither the header nor the end
            path.write_bytes(content)
    own = (*SMALL, "--train=@head", f"--data=folder:{folder}", "--eval_fraction=0.2", "--cache=off")
    code, _, error = call(*own, f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "4 of 60 images cannot be read (--bad_images=skip leaves them out)" in error
    assert "boots/boots 17.jpg: a damaged or truncated PNG" in error
    assert not (tmp_path / "run").exists()
    code, printed, error = call(*own, "--bad_images=skip", f"--out={tmp_path / 'run'}")
    assert code == 0, error
    assert "4 bad images skipped" in printed


@pytest.mark.usefixtures("curves")
def test_the_instructions_for_own_images_work_to_the_letter(
    call: Call, photos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/data_and_models.md").read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if "frostline finetune --data=folder:photos" in line)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    assert call(*command.split()[2:])[0] == 0
    assert result(tmp_path / "runs/photos")["data"]["class_names"] == ["bags", "boots", "trousers"]
    assert {"curves.png", "trained.npz"} <= {path.name for path in (tmp_path / "runs/photos").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(
    not CIFAR.is_file(),
    reason="shared/data/cifar10_test_jpeg.tar is not beside the checkout; FROSTLINE_SHARED names another folder",
)
def test_colour_photographs_train(call: Call, tmp_path: pathlib.Path) -> None:
    wanted = {f"test/{name}/{number:04}.jpg" for name in ("airplane", "frog") for number in range(80)}
    with tarfile.open(CIFAR) as archive:
        archive.extractall(tmp_path, [m for m in archive if m.name in wanted], filter="data")
    (tmp_path / "test").rename(tmp_path / "photos")
    own = (*SMALL, f"--data=folder:{tmp_path / 'photos'}", "--image_size=32", "--steps=40")
    assert call(*own, "--learning_rate=3e-3", "--eval_fraction=0.25", f"--out={tmp_path / 'run'}")[0] == 0
    assert result(tmp_path / "run")["final"]["eval_accuracy"] > 0.7
