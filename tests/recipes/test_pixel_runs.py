"""Runs whose labels are masks: what they write and say, and what evaluations and predictions of them give."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pixel_scenes import SIZE, write_scenes
from run_figures import check_run_figures

from engine.data.corruptions import parse
from engine.data.part import IGNORED
from engine.data.source import open_undivided
from engine.errors import InputError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult, finetune
from engine.recipes.listener import Listener
from engine.recipes.reopen import open_run
from engine.recipes.task import Task
from engine.runs import picture, records
from engine.runs.mask_pictures import find_outlines


class Hearing(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder)
    return folder


@pytest.fixture(scope="module")
def made(scenes: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[str]]:
    """A short run, and what it said."""
    hearing = Hearing()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        config = FinetuneConfig(
            model="py:pixel_scenes:trunk,preprocess=tf", head="unet,6,4", data=f"folder:{scenes}", image_size="16",
            eval_fraction=0.4, loss="dice", train="@head", steps=4, batch_size=4, learning_rate=0.02, cache="off",
            metrics="miou", monitor="eval_miou", eval_every=2, out=str(tmp_path_factory.mktemp("runs") / "run"),
        )  # fmt: skip
        return finetune(config, listener=hearing), hearing.lines


def test_a_run_tells_overlaps_and_draws_predictions(made: tuple[RunResult, list[str]]) -> None:
    result, said = made
    run = json.loads((result.out / "run.json").read_text())
    assert run["exit"]["code"] == 0
    assert run["freeze_proof"]["verified"]
    assert 0 < run["final"]["eval_miou"] < 1
    assert "data: masks: 3 classes, named by classes.txt: ground, disc and sea; pixels of 255 are ignored" in said
    with Image.open(result.out / "predictions.png") as drawn:
        assert min(drawn.size) > 300


def test_an_evaluation_has_the_figures_of_the_run_and_those_of_each_class(
    made: tuple[RunResult, list[str]], scenes: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result, _ = made
    opened = open_run(result.out)
    examples = open_examples(opened)
    report = evaluate(opened, examples, corrupt=parse("blur:1"))
    final, figures = result.run["final"], report.figures
    check_run_figures(opened, report)
    assert figures["metrics"]["miou"] == final["eval_miou"] == figures["miou"]
    read = examples.part.read(np.arange(len(examples.part)))
    chances = opened.predictor()(read["image"])
    assert chances.shape == (len(examples.part), SIZE, SIZE, 3)
    assert np.allclose(chances.sum(axis=-1), 1)
    counted = read["label"] != IGNORED
    truth, chosen = read["label"][counted], chances.argmax(axis=-1)[counted]
    for number, each in enumerate(figures["pixel_classes"]):
        both, either = ((truth == number) & (chosen == number)).sum(), ((truth == number) | (chosen == number)).sum()
        assert each["iou"] == (both / either if either else None)
        assert each["pixels"] == (truth == number).sum()
    assert [each["name"] for each in figures["pixel_classes"]] == ["ground", "disc", "sea"]
    assert figures["accuracy"] == pytest.approx((truth == chosen).mean(), rel=1e-6)
    assert set(figures["corruptions"]["mean"]) == {"loss", "accuracy"}
    write_scenes(tmp_path / "other", order=(2, 0, 1), names="disc\nsea\nground\n")
    matched = open_examples(opened, data=f"folder:{tmp_path / 'other'}", part="all").part
    plain = open_undivided(f"folder:{scenes}", image_size=(SIZE, SIZE), bad_images="stop", image_cache=1 << 20)
    assert (matched.labels == plain.train.labels).all()  # by the names of the classes


@pytest.mark.slow
def test_an_export_gives_the_classes_of_pixels(
    made: tuple[RunResult, list[str]], scenes: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result, _ = made
    images = np.stack([np.asarray(Image.open(scenes / f"images/{number}.png")) for number in range(3)])
    chances = open_run(result.out).predictor()(images)
    export_run(ExportConfig(run=str(result.out), out=str(tmp_path / "saved")))
    serve = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    found = serve(images=tf.constant(images / 255, tf.float32))
    np.testing.assert_allclose(found["probabilities"], chances, atol=1e-5)
    np.testing.assert_array_equal(found["mask"], chances.argmax(-1))


def test_what_does_not_fit_masks_is_refused_with_the_way_out(scenes: pathlib.Path) -> None:
    def refusal(**given: Any) -> str:
        with pytest.raises(InputError) as caught:
            Task.open(**{"data": f"folder:{scenes}", "image_size": 16, "batch_size": 2, "weights": None, **given})
        return str(caught.value)

    assert "--head=unet is a decoder" in refusal(model="keras:MobileNetV2,alpha=0.35")
    assert "which need outputs for each" in refusal(model="keras:MobileNetV2,alpha=0.35", head="gap")
    assert "it has outputs for each image" in refusal(model="cnn:mini")
    assert "expected softmax, dice" in refusal(model="py:pixel_scenes:trunk,preprocess=tf", head="unet", loss="mse")
    said = refusal(model="py:pixel_scenes:trunk,preprocess=tf", head="unet", metrics="f1")
    assert "expected miou and dice or py:module:name" in said
    assert "has no masks" in refusal(data="fashion_mnist_mini", model="keras:MobileNetV2", head="unet", image_size=None)


def test_outlines_are_the_edges_of_classes_and_not_of_the_background() -> None:
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:5] = 2
    labels[2, 5] = IGNORED
    wanted = np.zeros((5, 6), bool)
    wanted[1:4, 1:5] = True
    wanted[2, 2:4] = False
    assert (find_outlines(labels) == wanted).all()
