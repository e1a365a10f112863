"""E5 for labels beside a class: runs on two tasks with missing labels, texts, boxes and masks that stop, resume and end alike."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import made_bert
import numpy as np
import pytest
import tensorflow as tf
import two_tasks
from PIL import Image

from engine.data.part import IGNORED
from engine.files import Npz
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import DONE, STOPPED, finetune
from engine.recipes.listener import Listener
from engine.runs import picture, records

SIZE, CLASSES = 16, 3


class Maps(tf.Module):
    """Two convolutions: outputs for each place of ``stride`` pixels."""

    def __init__(self, outputs: int, stride: int, width: int) -> None:
        super().__init__()
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> tf.Variable:
            return tf.Variable(0.2 * rng.standard_normal(shape), dtype=tf.float32)

        self.stride = stride
        self.stem, self.head = (
            {"kernel": draw(3, 3, 3, width)},
            {"kernel": draw(1, 1, width, outputs), "bias": draw(outputs)},
        )

    def __call__(self, images: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(images, self.stem["kernel"], self.stride, "SAME"))
        return tf.nn.conv2d(x, self.head["kernel"], 1, "SAME") + self.head["bias"]


def pixels(image_shape: Any, outputs: int) -> Maps:
    """For ``py:``: an output for each pixel."""
    return Maps(outputs, 1, 2)


def places(image_shape: Any, outputs: int) -> Maps:
    """For ``py:``: an output for each place of 2x2 pixels."""
    return Maps(outputs, 2, 6)


def write_rows(file: pathlib.Path, rows: list[list[Any]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def draw_image(file: pathlib.Path, number: int, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, np.uint8)).save(file)


def two_labels(folder: pathlib.Path) -> dict[str, Any]:
    """Image files with a class and a number; an example in three lacks the one, in four the other, and one lacks both."""
    rows: list[list[Any]] = [["image", "species", "age"]]
    for number in range(18):
        draw_image(folder / f"{number}.png", number, two_tasks.SHAPE[:2])
        species = "" if number % 3 == 1 else two_tasks.CLASSES[number // 3 % 3]
        rows.append([f"{number}.png", species, "" if number % 4 == 2 else number / 10])
    write_rows(folder / "birds.csv", rows)
    return {
        "data": f"csv:{folder}/birds.csv,label=species,label=age:number", "model": "py:two_tasks:factory", "loss": two_tasks.LOSS,
        "image_size": "8", "image_pixels": "stored", "augment": "flip,crop", "monitor": "eval_loss/age",
    }  # fmt: skip


def texts(folder: pathlib.Path) -> dict[str, Any]:
    pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")
    made_bert.make_folder(folder / "tiny")
    made_bert.write_reviews(folder / "reviews.tsv", 14)
    return {
        "data": f"text:{folder}/reviews.tsv",
        "model": f"bert:{folder}/tiny,dropout=0.2",
        "max_tokens": 16,
        "metrics": "auc",
    }


def boxes(folder: pathlib.Path) -> dict[str, Any]:
    """Images with none to three boxes."""
    rows: list[list[Any]] = [["image", "x1", "y1", "x2", "y2", "class"]]
    for number in range(14):
        draw_image(folder / f"{number}.png", number)
        found = [[x, 2, x + 4, 9, "red" if x % 2 else "blue"] for x in range(1, 10, 3)[: number % 4]]
        rows += [[f"{number}.png", *each] for each in found or [[""] * 5]]
    write_rows(folder / "boxes.csv", rows)
    return {
        "data": f"boxes:{folder}/boxes.csv", "model": f"py:{__name__}:places,preprocess=tf", "loss": "centers",
        "image_size": str(SIZE), "augment": "flip,crop", "metrics": "ap50", "monitor": "eval_ap50",
    }  # fmt: skip


def masks(folder: pathlib.Path) -> dict[str, Any]:
    """Images with a class for each pixel; some are ignored."""
    for number in range(14):
        draw_image(folder / f"images/{number}.png", number)
        labels = np.random.default_rng(number).integers(0, CLASSES, (SIZE, SIZE), np.uint8)
        labels[: number % 5] = IGNORED
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(labels).save(folder / f"masks/{number}.png")
    return {
        "data": f"folder:{folder}", "masks": "classes", "model": f"py:{__name__}:pixels,preprocess=tf", "loss": "softmax+dice",
        "image_size": str(SIZE), "augment": "flip,rotate,color", "metrics": "miou", "monitor": "eval_miou",
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _leave_no_trace() -> Iterator[None]:
    """No pictures, which would take most of the time; and op determinism off again."""
    from engine.tensorflow_private import disable_op_determinism

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        yield
    disable_op_determinism()


class StopAfter(Listener):
    """Stops a run after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def handle(self, event: Any) -> None:
        self.left -= event.kind == "step"

    def should_stop(self) -> bool:
        return self.left <= 0


def arrays(path: pathlib.Path) -> dict[str, tuple[Any, bytes]]:
    with Npz(path) as npz:
        return {name: (npz.dtype(name), npz.read(name).tobytes()) for name in npz.names()}


def rows(out: pathlib.Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in found]


# The phases, after how many steps each part of the run stops, and how it is cached
ONE = ({"phase": ("name=all train=@all steps=5",), "cache": "off"}, (2,))
TWO = ({"phase": ("name=head train=head.* steps=3", "name=all train=@all steps=4"), "cache": "off"}, (2, 3))
CACHED = ({"phase": ("name=head train=head.* steps=7",), "cache": "require"}, (2, 3))
KINDS: tuple[Callable[[pathlib.Path], dict[str, Any]], ...] = (two_labels, texts, boxes, masks)
SLOW = [(kind, *course) for kind in KINDS for course in (TWO, CACHED)]


@pytest.mark.parametrize(
    ("kind", "course", "stops"),
    [
        *((kind, *ONE) for kind in KINDS if kind is not texts),  # test_text_with_masks.py has a quick one
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_a_run_that_stops_and_resumes_ends_with_the_same_bits(
    kind: Callable[[pathlib.Path], dict[str, Any]],
    course: dict[str, Any],
    stops: tuple[int, ...],
    tmp_path: pathlib.Path,
) -> None:
    """It stops in the middle of an epoch, and again in a later phase; with averages, micro-batches and the best checkpoint."""
    (tmp_path / "data").mkdir()
    given = {
        "weights": "none", "optimizer": "adamw", "clip_norm": 0.5, "ema": 0.8, "batch_size": 4, "micro_batches": 2,
        "eval_fraction": 0.25, "eval_every": 3, "log_every": 1, "checkpoint_every": 3, "keep_best": True, "seed": 6,
    } | kind(tmp_path / "data") | course  # fmt: skip
    if course["cache"] == "require":
        given["model"] = given["model"].replace(",dropout=0.2", "")  # below the frost line
        given |= {"cache_views": 2} if "augment" in given else {}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finetune(FinetuneConfig(**given, out=str(whole))).code == DONE
    for number, steps in enumerate(stops):
        config = FinetuneConfig(**given, out=str(parts), resume=number > 0)
        assert finetune(config, listener=StopAfter(steps)).code == STOPPED
    assert finetune(FinetuneConfig(**given, out=str(parts), resume=True)).code == DONE
    last = sorted((whole / "checkpoints").glob("step-*.npz"))[-1].name
    for name in ("trained.npz", f"checkpoints/{last}", "checkpoints/best.npz"):
        assert arrays(whole / name) == arrays(parts / name), name
    assert rows(whole) == rows(parts)
    runs = [json.loads((out / "run.json").read_text()) for out in (whole, parts)]
    for key in ("phases", "steps", "final", "freeze_proof", "exit"):
        assert runs[0][key] == runs[1][key], key
    assert runs[0]["freeze_proof"]["verified"]
    shown = [row["loss"] for row in rows(whole) if row["kind"] == "train"]
    assert len(set(shown)) == len(shown) > sum(stops)
