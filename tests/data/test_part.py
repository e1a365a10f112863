"""Part: what it is made of fits together, or is refused when it is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.data import DataError, Part

IMAGES = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1)
LABELS = np.arange(5)
SOME = np.array([4, 1, 2])


def test_labels_belong_to_positions_and_images_to_the_index() -> None:
    part = Part(IMAGES, LABELS[SOME], SOME)
    read = part.read(np.array([2, 0]))
    np.testing.assert_array_equal(read["image"], IMAGES[[2, 4]])
    np.testing.assert_array_equal(read["label"], [2, 4])
    again = part.take(np.array([1, 1])).read(np.array([0, 1]))
    np.testing.assert_array_equal(again["label"], [1, 1])
    assert len(Part(IMAGES, LABELS[:0], SOME[:0])) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"labels": LABELS},
            r"labels: shape \[5\] for an index of length 3; expected one entry per position .*labels\[index\]",
        ),
        ({"labels": np.float32(1.0)}, r"labels: shape \[\] for an index of length 3"),
        ({"hold_out": np.zeros(5)}, r"hold_out: shape \[5\] for an index of length 3"),
        ({"index": np.array([4, 5, 2])}, r"index\[1\]=5: there are 5 images, numbered from 0"),
        ({"index": np.array([0, 1, -1])}, r"index\[2\]=-1: there are 5 images"),
        ({"index": np.array([True, False, True])}, r"index: bool \[3\]; expected int64 \[m\]"),
        ({"index": SOME[:, None]}, r"index: int64 \[3, 1\]; expected int64 \[m\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Part(**{"images": IMAGES, "labels": LABELS[SOME], "index": SOME} | changes)
