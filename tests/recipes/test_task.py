"""Task: data, model, weights, loss and precision opened together, and refused where they do not fit."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import data
from engine.data import DataError
from engine.errors import InputError
from engine.models.weights import load_weights
from engine.porting import PortError
from engine.recipes.task import Task
from engine.training.step import TrainStep

TINY = {"model": "cnn:mini", "batch_size": 8, "eval_fraction": 0.2}


@pytest.fixture
def small(small_data: pathlib.Path) -> str:
    return f"npz:{small_data}"


def test_a_task_has_all_that_a_step_needs(small: str) -> None:
    from engine.selection.selection import select
    from engine.training.optimizers import SGD

    task = Task.open(data=small, seed=3, **TINY)  # type: ignore[arg-type]
    assert (task.loss, task.seed, task.per_epoch, task.images) == ("softmax", 3, 6, None)
    assert (len(task.source.train), len(task.source.eval), task.model.outputs) == (48, 12, 3)
    assert task.weights is not None
    assert (task.weights.text, task.weights.ledger) == ("random (none ship with cnn:mini)", None)
    step = TrainStep(task.loss_fn, SGD(), seed=task.seed, loss_scale=task.loss_scale())
    batch = task.train_batches().at(0)
    assert batch["image"].shape == (8, 16, 16, 1)
    found = step(select(task.variables, "@head"), batch, learning_rate=0.1)
    assert np.isfinite(float(found.loss))


def test_batches_are_those_of_the_data_room_and_may_differ_from_the_defaults(small: str) -> None:
    task = Task.open(data=small, augment="flip", seed=1, **TINY)  # type: ignore[arg-type]
    same = data.TrainBatches(task.source.train, batch_size=8, seed=1, augment=("flip",), normalise=task.model.normalise)
    np.testing.assert_array_equal(task.train_batches().at(5)["image"], same.at(5)["image"])
    plain = task.train_batches(batch_size=48, augment=())
    assert (plain.augment, plain.per_epoch, task.train_batches().augment) == ((), 1, ("flip",))
    assert task.eval_batches().batch_size == 64
    assert [len(batch["label"]) for batch in task.eval_batches(batch_size=5)] == [5, 5, 2]
    assert task.source.test is not None
    assert len(next(iter(task.eval_batches(part=task.source.test)))["label"]) == 21


def test_a_source_that_is_open_already_is_taken_as_it_is(small: str) -> None:
    source = data.open_data(small, eval_fraction=0.2)
    task = Task.open(data=source, model="cnn:mini", weights="none", batch_size=8)
    assert task.source is source
    with pytest.raises(InputError, match="they need the name of a source"):
        Task.open(data=source, model="cnn:mini", train_examples=3)


def test_weights_are_loaded_at_once_or_later(small: str) -> None:
    later = Task.open(data="fashion_mnist_mini", model="vit:mini", weights=None, train_examples=64)
    before = later.variables.by_path()["norm/gamma"].variable.numpy()
    assert later.weights is None
    loaded = later.with_weights("auto")
    assert later.weights is None
    assert loaded.weights is not None
    assert loaded.weights.ledger is not None
    assert loaded.weights.text.startswith("vit_mini_fashion5.npz, 102 variables loaded by frostline.rules")
    at_once = Task.open(data="fashion_mnist_mini", model="vit:mini", train_examples=64)
    paths = at_once.variables.by_path()
    for entry in loaded.variables:
        np.testing.assert_array_equal(entry.variable.numpy(), paths[entry.path].variable.numpy(), entry.path)
    assert not np.array_equal(before, paths["norm/gamma"].variable.numpy())


def test_images_are_prepared_as_weights_or_a_job_say(small: str, colour_data: pathlib.Path) -> None:
    task = Task.open(data=f"npz:{colour_data}", weights="none", **{**TINY, "model": "vit:mini,depth=1"})  # type: ignore[arg-type]
    plain, scaled = (each.train_batches().at(0)["image"].numpy() for each in (task, task.with_images("unit")))
    np.testing.assert_allclose(plain, 2.0 * scaled - 1.0, atol=1e-6)
    grey = Task.open(data=small, weights="none", **{**TINY, "model": "vit:mini,depth=1"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="preprocess=torch is for images with 3 channels, but these have 1"):
        grey.with_images("torch").train_batches()


@pytest.fixture
def colour_data(small_data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    with np.load(small_data) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in ("train_images", "test_images"):
        arrays[name] = np.repeat(arrays[name], 3, axis=-1)
    path = tmp_path / "colour.npz"
    np.savez(path, **arrays)
    return path


def test_precision_decides_the_dtypes_and_the_loss_scale(small: str) -> None:
    task = Task.open(data=small, weights="none", precision="float64", **TINY)  # type: ignore[arg-type]
    assert {e.variable.dtype for e in task.variables if e.kind == "weight"} == {tf.float64}
    assert task.loss_scale() is None
    half = Task.open(data=small, weights="none", precision="mixed_float16", **TINY)  # type: ignore[arg-type]
    assert (half.numbers.variables, half.numbers.compute) == (tf.float32, tf.float16)
    assert half.loss_scale() is not None
    assert half.loss_scale() is not half.loss_scale()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels above the outputs": ({"model": "cnn:mini,classes=2"}, "is out of range; the classes are 0 to 1"),
    "too many outputs": (
        {"model": "cnn:mini,classes=2", "loss": "mse"},
        "model='cnn:mini,classes=2': it has 2 outputs; loss mse on ",
    ),
    "loss": ({"loss": "sigmoid"}, "these are 3 classes"),
    "batch size": ({"batch_size": 49}, "expected 1 to 48, the number of training examples"),
    "image size": ({"image_size": "big"}, "image_size='big'"),
    "augment": ({"augment": "flop"}, "nearest: flip"),
    "precision": ({"precision": "half"}, "precision='half'"),
    "weights": ({"weights": "nowhere.npz"}, "nowhere.npz: there is no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_together_is_refused(small: str, name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(InputError) as caught:
        Task.open(data=small, **TINY | given)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_shipped_weights_that_do_not_fit_say_what_they_are_for_and_the_way_out(small: str) -> None:
    task = Task.open(data=small, weights=None, **{**TINY, "model": "vit:mini,depth=1"})  # type: ignore[arg-type]
    with pytest.raises(PortError) as caught:
        load_weights(task.model, image_shape=(16, 16, 1))
    first = str(caught.value).splitlines()[0]
    assert first == (
        "weights='auto': the weights that ship with vit:mini are for grayscale images (one channel) of 28x28 pixels and 6 "
        "blocks; they do not fit --model=vit:mini,depth=1 on images of 16x16 with 1 channel. --weights=none starts from "
        "random weights (--train=@all then trains all of them); --weights=FILE loads others, --model chooses another "
        "network, such as keras:MobileNetV2."
    )


def test_labels_of_the_test_part_are_checked_too(small_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with np.load(small_data) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["test_labels"] = arrays["test_labels"] + 5
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match="out of range"):
        Task.open(data=f"npz:{tmp_path / 'odd.npz'}", **TINY)  # type: ignore[arg-type]


def test_one_hot_labels_train_as_the_classes_that_they_are(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 8, 8, 1), np.uint8), np.arange(24) % 3
    found = []
    for name, value in (("plain", labels), ("hot", np.eye(3, dtype=np.int64)[labels])):
        np.savez(tmp_path / f"{name}.npz", train_images=images, train_labels=value)
        task = Task.open(data=f"npz:{tmp_path / name}.npz", model="cnn:mini", weights="none", batch_size=8)
        (values, _) = task.loss_fn(task.train_batches().at(0), training=False, seeds=None).terms["softmax"]
        found.append(values.numpy())
    np.testing.assert_array_equal(*found)


def test_names_of_classes_are_not_amounts(tmp_path: pathlib.Path) -> None:
    given: dict[str, Any] = {"train_images": np.zeros((9, 8, 8), np.uint8), "train_labels": np.arange(9) % 3}
    np.savez(tmp_path / "named.npz", **given, class_names=np.array(["cat", "dog", "emu"]))
    np.savez(tmp_path / "numbers.npz", **given)
    asked: dict[str, Any] = {"model": "cnn:mini", "weights": None, "loss": "mse", "batch_size": 4}
    with pytest.raises(InputError, match="the loss mse needs numbers, but the labels are the classes cat, dog and emu"):
        Task.open(data=f"npz:{tmp_path}/named.npz", **asked)
    assert Task.open(data=f"npz:{tmp_path}/numbers.npz", **asked).model.outputs == 1


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_of_which_nothing_counts_is_refused(tmp_path: pathlib.Path, part: str) -> None:
    given: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        given |= {f"{name}_images": np.zeros((9, 4, 4), np.uint8), f"{name}_labels": np.arange(9) % 3}
    np.savez(tmp_path / "d.npz", **given, **{f"{part}_weights": np.zeros(9)})
    asked: dict[str, Any] = {"model": "cnn:mini", "weights": None, "batch_size": 4}
    with pytest.raises(
        InputError, match=r"all weights of the (train|eval|test) part are 0; expected an example that counts"
    ):
        Task.open(data=f"npz:{tmp_path}/d.npz", **asked)
    half = np.arange(9) % 2
    np.savez(tmp_path / "d.npz", **given, train_weights=half)
    (tmp_path / "w.csv").write_text("\n".join(f"{number},{1 - value}" for number, value in enumerate(half)))
    with pytest.raises(InputError, match="all weights of the train part are 0"):
        Task.open(data=f"npz:{tmp_path}/d.npz", sample_weights=tmp_path / "w.csv", **asked)
