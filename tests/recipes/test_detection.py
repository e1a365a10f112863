"""A detector is trained, evaluated and asked for boxes: with the figures of its run, and boxes in pixels of each image."""

from __future__ import annotations

import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from run_figures import check_run_figures

from engine import FinetuneConfig, finetune
from engine.errors import InputError
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import OpenedRun, open_run
from engine.recipes.run_result import RunResult
from engine.recipes.task import Task
from engine.runs import picture, records

FACTORY = """
import tensorflow as tf

class Detector(tf.Module):
    def __init__(self, outputs, dtype):
        def kernel(*shape):
            return tf.Variable(tf.random.stateless_normal(shape, [0, sum(shape)], stddev=0.2, dtype=dtype))
        self.stem = kernel(3, 3, 3, 8)
        self.head = [kernel(3, 3, 8, 8), kernel(1, 1, 8, outputs)]
        self.bias = tf.Variable(tf.constant([-2.19] * (outputs - 4) + [0.0] * 4, dtype))

    def __call__(self, images):
        images = tf.cast(images, self.stem.dtype)
        x = tf.nn.relu(tf.nn.conv2d(images, self.stem, 2, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, self.head[0], 2, "SAME"))
        return tf.nn.conv2d(x, self.head[1], 1, "SAME") + self.bias

def make(image_shape, outputs):
    return Detector(outputs, tf.float32)

def make64(image_shape, outputs):
    return Detector(outputs, tf.float64)
"""
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Images of 64x48 with one to three boxes of two colours, of which a quarter is for evaluation; one has none."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    rows: list[list[Any]] = []
    for number in range(16):
        name, split = f"{number}.png", "val" if number % 4 == 3 else "train"
        pixels = np.full([48, 64, 3], 40, np.uint8)
        for _ in range(rng.integers(1, 4) if number else 0):
            colour = list(COLOURS)[int(rng.integers(0, 2))]
            x, y = int(rng.integers(8, 46)), int(rng.integers(0, 36))
            pixels[y : y + 10, x : x + 8] = COLOURS[colour]
            rows.append([name, x, y, x + 8, y + 10, colour, split])
        if not number:
            rows.append([name, "", "", "", "", "", split])
        Image.fromarray(pixels).save(folder / name)
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "x1", "y1", "x2", "y2", "class", "split"], *rows])
    (folder / "tiny_detector.py").write_text(FACTORY)
    sys.path.insert(0, str(folder))
    yield folder / "boxes.csv"
    sys.path.remove(str(folder))
    sys.modules.pop("tiny_detector", None)


def configured(table: pathlib.Path, out: pathlib.Path, **fields: Any) -> FinetuneConfig:
    given: dict[str, Any] = {
        "model": "py:tiny_detector:make,preprocess=unit", "weights": "none", "loss": "centers", "data": f"boxes:{table}",
        "image_size": "32", "batch_size": 5, "steps": 6, "train": "@all", "learning_rate": 0.01, "out": str(out),
    }  # fmt: skip
    return FinetuneConfig(**given | fields)


@pytest.fixture(scope="module")
def trained(table: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        fields = {"augment": "flip,crop", "cache": "require", "cache_views": 2, "train": "head.* bias"}
        return finetune(configured(table, tmp_path_factory.mktemp("run") / "run", **fields))


@pytest.fixture(scope="module")
def opened(trained: RunResult) -> OpenedRun:
    return open_run(trained.out)


def test_its_card_names_no_export_which_would_refuse_it(trained: RunResult) -> None:
    card = (trained.out / "card.md").read_text()
    assert f"frostline predict --run={trained.out} --images=FOLDER" in card
    assert "frostline export" not in card


def test_a_run_from_cached_views_of_augmented_images_leaves_a_picture(trained: RunResult) -> None:
    assert trained.code == 0
    assert trained.run["cache"]["used"]
    assert trained.run["freeze_proof"]["verified"]
    assert trained.run["data"]["class_names"] == ["blue", "red"]
    assert trained.run["final"]["eval_loss"] < trained.evaluations[0].loss
    assert Image.open(trained.out / "predictions.png").size[0] > 100


def test_an_evaluation_has_the_runs_own_loss_and_the_precision_of_each_class(opened: OpenedRun) -> None:
    report = evaluate(opened, open_examples(opened))
    check_run_figures(opened, report)
    assert [each["name"] for each in report.figures["classes"]] == ["blue", "red"]
    assert sum(each["objects"] for each in report.figures["classes"]) > 4
    assert 0 <= report.figures["ap50"] <= 1
    assert report.figures["ap50"] == opened.run["final"]["eval_ap50"]
    assert report.boxes is not None
    assert report.boxes.shape == (4, 100, 6)
    json.dumps(report.figures)


def test_classes_in_another_order_are_matched_by_name(
    opened: OpenedRun, table: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    own = evaluate(opened, open_examples(opened)).figures
    lines = table.read_text().splitlines()
    blue = [line for line in lines[1:] if ",red," not in line]
    other = table.parent / "blue.csv"
    other.write_text("\n".join([lines[0], *blue]))
    found = evaluate(opened, open_examples(opened, data=f"boxes:{other}", part="eval")).figures
    assert [each["objects"] for each in found["classes"]] == [own["classes"][0]["objects"], 0]
    assert found["classes"][1]["ap50"] is None
    other.write_text("\n".join(lines).replace("blue", "green"))
    with pytest.raises(InputError, match=r"the model finds no green; its classes are blue and red"):
        open_examples(opened, data=f"boxes:{other}")


def test_boxes_are_told_in_pixels_of_the_image(opened: OpenedRun, table: pathlib.Path, capsys: Any) -> None:
    from engine.recipes.detections import restore_boxes
    from scripts.predict_output import BoxLines

    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    # 64x48 covers 32x32 at a scale of 2/3: a third of the width is cropped
    np.testing.assert_allclose(
        restore_boxes(table.parent / "1.png", whole, opened.predictor()), [[8, 0, 56, 48]], atol=1e-9
    )
    values = np.array([[[1, 0.75, 0.25, 0.25, 0.5, 0.5], [0, 0.5, 0.0, 0.0, 1.0, 1.0], [-1, 0, 0, 0, 0, 0]]])
    predictor = opened.predictor()
    lines = BoxLines(predictor, "csv", top=None)
    assert lines.heading() == "file,class,score,x1,y1,x2,y2\n"
    file = table.parent / "1.png"
    assert lines.format([file], values) == f"{file},red,0.75,20.0,12.0,32.0,24.0\n{file},blue,0.5,8.0,0.0,56.0,48.0\n"
    told = json.loads(BoxLines(predictor, "jsonl", top=1).format([file], values))
    assert told == {"file": str(file), "boxes": [{"class": "red", "score": 0.75, "box": [20.0, 12.0, 32.0, 24.0]}]}
    found = predictor(opened_images(opened))
    assert found.shape == (4, 100 if 100 < 8 * 8 * 2 else 128, 6)


def opened_images(opened: OpenedRun) -> np.ndarray:
    images: np.ndarray = open_examples(opened).part.read(np.arange(4))["image"]
    return images


def test_micro_batches_of_images_with_and_without_objects_are_one_batch(table: pathlib.Path) -> None:
    from engine import TrainStep, select
    from engine.training import optimizers

    task = Task.open(data=f"boxes:{table}", model="py:tiny_detector:make64,preprocess=unit", weights=None, loss="centers", image_size=32, batch_size=7, precision="float64")  # fmt: skip
    batch = task.train_batches().at(0) | {"weight": np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 3.0])}
    start = [entry.variable.numpy() for entry in task.variables]
    found = []
    for size in (None, 3):
        for entry, value in zip(task.variables, start, strict=True):
            entry.variable.assign(value)
        step = TrainStep(task.loss_fn, optimizers.SGD(), micro_batch_size=size)
        loss = float(step(select(task.model.network, "@all"), batch, learning_rate=0.1).loss)
        found.append((loss, np.concatenate([entry.variable.numpy().ravel() for entry in task.variables])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=0, atol=1e-12)
    values = task.loss_fn(batch, training=False, seeds=None).terms["centers"]
    objects = (batch["label"][..., 0] >= 0).sum(axis=1)
    np.testing.assert_array_equal(values[1], np.maximum(objects, 1) * batch["weight"])
    assert 0 in objects


REFUSED = [
    ({"loss": "softmax"}, "the loss softmax takes no boxes; expected centers"),
    ({"data": "fashion_mnist_mini"}, "the loss centers needs boxes, as boxes:FILE.csv has them"),
    ({"model": "keras:MobileNetV2"}, "head=None: the loss centers needs --head=centers"),
    ({"model": "keras:MobileNetV2", "head": "gap"}, "head=gap: the loss centers needs --head=centers"),
    ({"model": "keras:MobileNetV2", "head": "centers", "loss": "softmax"}, "its outputs are for --loss=centers"),
    ({"augment": "rotate"}, "`rotate` turns objects"),
    ({"label_smoothing": 0.1}, "the loss centers has no classes to smooth over"),
    ({"model": "cnn:mini"}, r"the model's outputs have shape \(.*, 6\); expected \[B, h, w, classes \+ 4\]"),
    ({"metrics": "f1"}, "f1"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_fit_is_refused(
    table: pathlib.Path, tmp_path: pathlib.Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        finetune(configured(table, tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


def test_an_export_is_refused_in_words(trained: RunResult, tmp_path: pathlib.Path) -> None:
    from engine.export.opening import open_subject

    with pytest.raises(InputError, match=r"it finds boxes, and its outputs are maps, which no export takes"):
        open_subject(trained.out)


def test_the_weight_of_a_missing_example_takes_it_out_of_the_precision() -> None:
    from engine.training.detection_metric import AveragePrecision

    boxes = np.array([[[0, 0.1, 0.1, 0.4, 0.4]], [[0, 0.5, 0.5, 0.9, 0.9]]], np.float32)
    maps = np.full([2, 8, 8, 5], -5.0, np.float32)
    maps[0, 2, 2] = [5, 0.3 * 8, 0.3 * 8, 0, 0]  # right; in the other image nothing is found
    metric = AveragePrecision()
    for weights, wanted in ((None, 0.5), ([1.0, 0.0], 1.0), ([0.0, 1.0], 0.0)):
        given = None if weights is None else tf.constant(weights)
        measured = metric.measure(tf.constant(maps), tf.constant(boxes), given)
        assert set(measured) == set(metric.kept)
        assert metric.finalise({name: value.numpy() for name, value in measured.items()}) == pytest.approx(
            wanted, abs=0.01
        )
    nothing = {"found": np.zeros([0, 100, 6]), "truth": np.zeros([0, 1, 5])}
    assert np.isnan(metric.finalise(nothing))
