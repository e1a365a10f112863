"""The examples that a study keeps for its runs are those of the data, with all that counts in the loss."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.data.part import Part, Source
from engine.study.job import keep_examples, open_examples


def part(count: int, **given: Any) -> Part:
    rng = np.random.default_rng(count)
    images, labels = rng.integers(0, 256, (count, 4, 4, 3), np.uint8), np.arange(count) % 2
    return Part(images, **{"labels": labels, "index": np.arange(count)} | given)


def weights(count: int) -> dict[str, np.ndarray]:
    return {"weight": np.linspace(0, 2, count, dtype=np.float32)}


def test_examples_are_kept_with_their_weights(tmp_path: pathlib.Path) -> None:
    source = Source("csv:m.csv", ("a", "b"), part(9, columns=weights(9)), part(4), None)
    keep_examples(tmp_path, source)
    kept = open_examples(SimpleNamespace(data="csv:m.csv"), tmp_path)  # type: ignore[arg-type]
    assert (kept.name, kept.classes) == (source.name, source.classes)
    for one, other in ((kept.train, source.train), (kept.eval, source.eval)):
        found, expected = one.read(np.arange(len(one))), other.read(np.arange(len(other)))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_numbers_of_classes_do_not_become_names(tmp_path: pathlib.Path) -> None:
    for names, named in ((("0", "1"), False), (("a", "b"), True)):
        keep_examples(tmp_path, Source("npz:n.npz", names, part(9), part(4), None, named=named))
        kept = open_examples(SimpleNamespace(data="npz:n.npz"), tmp_path)  # type: ignore[arg-type]
        assert (kept.classes, kept.named) == (names, named)


@pytest.mark.parametrize(
    "given",
    [
        lambda count: {"label_name": "label/kind", "columns": {"label/age": np.zeros(count, np.float32)}},
        lambda count: {"labels": np.zeros((count, 4, 4), np.uint8)},
        lambda count: {"labels": np.zeros((count, 2, 5), np.float32)},
    ],
    ids=["two labels", "masks", "boxes"],
)
def test_what_the_file_could_not_hold_is_not_kept(tmp_path: pathlib.Path, given: Any) -> None:
    keep_examples(tmp_path, Source("own", ("a", "b"), part(9, **given(9)), part(4, **given(4)), None))
    assert not list(tmp_path.iterdir())
