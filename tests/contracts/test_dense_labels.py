"""E1, E2, E4 and E5 for a class for each pixel: a decoder on a frozen trunk, with ignored pixels and augmentation."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from engine import FreezeProof, TrainStep, select
from engine.data.batches import EvalBatches, TrainBatches
from engine.data.part import IGNORED, Part
from engine.files import Npz
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.models import build_model
from engine.models.keras.scopes import dtype_policy
from engine.selection import filters
from engine.training import losses, optimizers
from engine.training.dense_metrics import Overlap
from engine.training.evaluation import Evaluator

SIZE, CLASSES = 16, 3
L = keras.layers
pytestmark = pytest.mark.usefixtures("deterministic_ops")


def trunk(image_shape: Any = (SIZE, SIZE, 3), outputs: int = CLASSES) -> Any:
    """Strides 2 and 4, with BatchNorm, whose statistics stay."""
    image = keras.Input(image_shape)
    x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, 2, padding="same", name="first")(image))
    x = L.Conv2D(6, 3, 2, padding="same", name="second")(L.ReLU(name="relu")(x))
    return keras.Model(image, L.ReLU(name="last")(x), name="trunk")


def network(dtype: Any = tf.float32, head: str = "unet,6,4") -> Any:
    given = {"image_shape": (SIZE, SIZE, 3), "outputs": CLASSES, "dtype": dtype, "compute": dtype}
    with dtype_policy(dtype.name):
        return build_model("py:test_dense_labels:trunk,preprocess=tf", head=head, **given).network


class Small(tf.Module):
    """Logits for each pixel from two convolutions, which trace in no time."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        shapes = {"first": (3, 3, 3, 4), "second": (1, 1, 4, CLASSES)}
        self.kernels = {
            name: tf.Variable(0.3 * rng.standard_normal(shape), name=name) for name, shape in shapes.items()
        }

    def __call__(self, images: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(tf.cast(images, tf.float64), self.kernels["first"], 1, "SAME"))
        return tf.nn.conv2d(x, self.kernels["second"], 1, "SAME")


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of two discs, and its classes; a corner of every third is ignored."""
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = ((y - 4 - number % 4) ** 2 + (x - 5) ** 2 < 9).astype(np.uint8)
    labels[(y - 11) ** 2 + (x - 9 - number % 3) ** 2 < 7] = 2
    noise = np.random.default_rng(number).integers(0, 40, (SIZE, SIZE, 3))
    image = (np.array([[30, 60, 90], [200, 90, 20], [20, 160, 200]])[labels] + noise).astype(np.uint8)
    if number % 3 == 0:
        labels[: SIZE // 2] = IGNORED
    return image, labels


def part(count: int = 9) -> Part:
    images, labels = (np.stack(each) for each in zip(*map(scene, range(count)), strict=True))
    return Part(images, labels, np.arange(count))


def joined(entries: Any) -> np.ndarray:
    return np.concatenate([entry.variable.numpy().astype(np.float64).ravel() for entry in entries])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def train(model: Any, steps: int, *, text: str = "@head", micro: int | None = None, cut: bool = False) -> np.ndarray:
    """The change of the trained variables; from the frost line's tensors if ``cut``. Batches of 5 and 4."""
    selection = select(model, text)
    step = TrainStep(
        losses.supervised_loss(model, "softmax+dice"), optimizers.AdamW(weight_decay=0.01), micro_batch_size=micro
    )
    data = TrainBatches(part(), batch_size=5, seed=2, augment=("flip", "crop"))
    start, line = joined(selection.trained), None
    for number in range(steps):
        batch = data.at(number)
        if cut and line is None:
            line = cut_step(step, selection, batch)
            assert isinstance(line, FrostLine), line
            assert len(line.tensors) == 2  # one for each stage
        step(selection, batch if line is None else line.replace_images(batch), learning_rate=1e-2)
    return joined(selection.trained) - start


@pytest.mark.slow
def test_e1_the_trunk_keeps_every_bit_while_a_decoder_trains() -> None:
    model = network()
    selection, proof = select(model, "@head"), None
    optimizer = optimizers.AdamW(weight_decay=0.1, clip_norm=0.5, decay=filters.group("all"))
    step = TrainStep(losses.supervised_loss(model, "softmax+dice"), optimizer, micro_batch_size=2)
    proof, start = FreezeProof.begin(selection), joined(selection.trained)
    data = TrainBatches(part(), batch_size=5)
    for number in range(4):
        step(selection, data.at(number), learning_rate=0.05)
    assert proof.changed(selection) == []
    assert relative(joined(selection.trained), start) > 0.01
    assert {entry.path.split("/")[0] for entry in selection.frozen} == {"trunk"}


@pytest.mark.parametrize(
    "name", ["small", pytest.param("unet", marks=pytest.mark.slow), pytest.param("aspp", marks=pytest.mark.slow)]
)
def test_e2_micro_batches_are_one_batch_though_examples_ignore_different_shares(name: str) -> None:
    made = {"small": Small, "unet": lambda: network(tf.float64), "aspp": lambda: network(tf.float64, "aspp,4")}[name]
    text = "@all" if name == "small" else "@head trunk/second/.*"
    whole, parts = (train(made(), 6, text=text, micro=micro) for micro in (None, 2))
    assert np.linalg.norm(whole) > 1e-2
    assert relative(parts, whole) < 1e-10


def test_e4_cached_equals_uncached_through_a_cut_of_several_tensors() -> None:
    plain, cached = (train(network(tf.float64), 20, cut=cut) for cut in (False, True))
    assert np.linalg.norm(plain) > 1e-2
    assert relative(cached, plain) < 1e-10


@pytest.mark.slow
def test_e4_an_evaluation_from_the_same_tensors_has_the_same_figures() -> None:
    model = network(tf.float64)
    selection, batch = select(model, "@head"), next(iter(EvalBatches(part(), batch_size=9)))
    given = {"metrics": {"": [Overlap("miou"), Overlap("dice")]}}
    line = cut_step(TrainStep(losses.supervised_loss(model), optimizers.SGD()), selection, batch)
    assert isinstance(line, FrostLine)
    evaluator = Evaluator(losses.supervised_loss(model, **given))
    assert cut_evaluation(evaluator, selection, line, batch) is None
    ours, theirs = evaluator(selection, [line.replace_images(batch)]), evaluator(selection, [batch])
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert (ours.metrics, ours.figures) == (theirs.metrics, theirs.figures)
    halves = evaluator(selection, EvalBatches(part(), batch_size=4))
    assert halves.figures == theirs.figures
    np.testing.assert_allclose(halves.loss, theirs.loss, rtol=1e-12)


# ---- whole runs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    for number in range(10):
        for name, array in zip(("images", "masks"), scene(number), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return folder


def command(scenes: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    return [
        "--model=py:test_dense_labels:trunk,preprocess=tf", "--head=unet,6,4", "--weights=auto", f"--data=folder:{scenes}",
        "--masks=classes", "--image_size=16", "--eval_fraction=0.3", "--augment=flip,rotate", "--batch_size=4", "--loss=softmax+dice",
        "--phase=name=head train=@head steps=4", "--phase=name=all train=@all steps=4", "--learning_rate=0.01",
        "--eval_every=2", "--checkpoint_every=2", "--keep=4", "--log_every=1", f"--out={out}", *more,
    ]  # fmt: skip


def arrays(path: pathlib.Path) -> dict[str, bytes]:
    with Npz(path) as npz:
        return {name: npz.read(name).tobytes() for name in npz.names()}


def rows(out: pathlib.Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in found]


@pytest.mark.slow
def test_e5_a_resumed_run_of_masks_ends_with_the_same_bits(
    call: Any, scenes: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "damaged"
    code, printed, error = call(*command(scenes, whole, "--cache=off"))
    assert code == 0, printed + error
    shutil.copytree(whole, out)
    for path in sorted((out / "checkpoints").glob("step-*.npz"))[-2:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    code, printed, error = call(*command(scenes, out, "--cache=off", "--resume"))
    assert code == 0, printed + error
    assert arrays(whole / "trained.npz") == arrays(out / "trained.npz")
    assert rows(whole) == rows(out)


@pytest.mark.slow
def test_e4_a_run_from_cached_views_sees_the_labels_of_each_view(
    call: Any, scenes: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Labels are moved as the features of their view were, so as many views as epochs give the run without a cache."""
    found = []
    for name, more in {"off": ["--cache=off"], "kept": ["--cache=require", "--cache_views=4"]}.items():
        given = [word for word in command(scenes, tmp_path / name, *more) if "train=@all" not in word]
        code, printed, error = call(*given)
        assert code == 0, printed + error
        found.append([row for row in rows(tmp_path / name) if row["kind"] == "train"])
    for plain, kept in zip(*found, strict=True):
        np.testing.assert_allclose(kept["loss"], plain["loss"], rtol=1e-5)
