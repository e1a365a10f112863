"""What a study refuses to compare strategies on, because it judges by one label for each example."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from engine.data import Part, Source
from engine.data.part import Target
from engine.errors import InputError
from engine.study.config import StudyConfig
from engine.study.planning import check_comparable
from engine.study.quality.planning import choose_corruptions, describe_quality

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.array([0, 1, 0, 1], np.int64)


def task(tasks: tuple[Target, ...] = (), **changes: Any) -> Any:
    part = Part(**{"images": IMAGES, "labels": LABELS, "index": np.arange(4)} | changes)
    return types.SimpleNamespace(source=Source("made", ("a", "b"), part, part, None, tasks=tasks))


def test_images_with_one_label_are_compared_in_every_mode() -> None:
    for mode in ("cost", "quality", "both"):
        check_comparable(StudyConfig(mode=mode), task())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (task((Target("a"), Target("b")), label_name="label/a"), "these data have several labels for an example"),
        (task(columns={"weight": np.ones(4)}), "these data have weights"),
        (task(labels=np.zeros((4, 8, 8), np.uint8)), "these data have a label for each pixel or several boxes"),
    ],
)
@pytest.mark.parametrize("mode", ["cost", "quality"])
def test_labels_that_cannot_be_judged_are_refused(given: Any, message: str, mode: str) -> None:
    with pytest.raises(InputError, match=f"{message}; compare runs of finetune"):
        check_comparable(StudyConfig(mode=mode), given)


def test_other_inputs_than_an_image_are_for_quality_mode() -> None:
    vectors = task(images=np.zeros((4, 3), np.float32), input_name="features")
    check_comparable(StudyConfig(mode="quality"), vectors)
    with pytest.raises(InputError, match="has features; give --mode=quality"):
        check_comparable(StudyConfig(mode="cost"), vectors)


def test_only_images_are_seen_through_corruptions() -> None:
    images, vectors = task().source, task(images=np.zeros((4, 3), np.float32), input_name="features").source
    assert len(choose_corruptions(StudyConfig(mode="quality"), images)) == 15
    for corrupt in ("auto", "none"):
        assert choose_corruptions(StudyConfig(mode="quality", corrupt=corrupt), vectors) == ()
    assert describe_quality(StudyConfig(mode="quality"), vectors)["corrupt"] == []
    with pytest.raises(
        InputError, match=r"corrupt=noise:1: corruptions are of an image, .* has features; expected none"
    ):
        choose_corruptions(StudyConfig(mode="quality", corrupt="noise:1"), vectors)
