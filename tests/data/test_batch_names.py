"""The names in a batch, and parts with several inputs, labels and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.data import EvalBatches, Part, Source, TrainBatches
from engine.data.batch_names import is_input, join_inputs, label_name, list_inputs, weight_name
from engine.data.part import DataError


def part(**changes: Any) -> Part:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "images": rng.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8),
        "labels": np.array([0, 1, 0, 1, 0], np.int64),
        "index": np.array([5, 4, 3, 2, 1], np.int64),
        "inputs": {"age": np.arange(6, dtype=np.float32)[:, None]},
        "label_name": "label/kind",
        "columns": {"label/size": np.linspace(0, 1, 5, dtype=np.float32), "weight/size": np.array([1, 0, 1, 1, 1.0])},
    }
    return Part(**given | changes)


def test_what_is_neither_label_nor_weight_nor_identity_is_an_input() -> None:
    names = [
        "image",
        "tokens",
        "label",
        "label/a",
        "weight",
        "weight/a",
        "seeds",
        "index",
        "examples",
        "frozen0",
        "frozen_1",
    ]
    assert [name for name in names if is_input(name)] == ["image", "tokens"]
    assert list_inputs(["b", "a", "label"]) == ("a", "b")
    assert (label_name(), label_name("x"), weight_name(), weight_name("x")) == (
        "label",
        "label/x",
        "weight",
        "weight/x",
    )
    assert join_inputs({"a": 1, "label": 2}) == 1


def test_inputs_go_by_number_and_columns_by_position() -> None:
    read = part().read(np.array([1, 4]))
    assert sorted(read) == ["age", "image", "index", "label/kind", "label/size", "weight/size"]
    assert read["age"].ravel().tolist() == [4, 1]
    assert read["index"].tolist() == [4, 1]
    assert read["weight/size"].tolist() == [0, 1]
    assert read["label/kind"].tolist() == [1, 0]
    taken = part().take(np.array([2, 1])).read(np.array([1]))
    assert taken["age"].item() == 4
    assert taken["weight/size"].item() == 0


def test_batches_prepare_images_and_pass_other_inputs_on() -> None:
    batches = TrainBatches(part(), batch_size=2, augment=("flip",))
    batch = batches.at(0)
    assert batch["image"].dtype == "float32"
    assert batch["age"].numpy().dtype == np.float32
    assert set(batches.prepared(np.array([1, 2]), 0)) == {"image", "age"}
    plain = next(iter(EvalBatches(part(), batch_size=5)))
    assert plain["age"].numpy().ravel().tolist() == [5, 4, 3, 2, 1]
    assert plain["weight/size"].tolist() == [1, 0, 1, 1, 1]


def test_vectors_alone_are_not_augmented() -> None:
    vectors = part(images=np.ones((6, 3), np.float32), input_name="features", inputs={})
    assert next(iter(EvalBatches(vectors, batch_size=2)))["features"].shape == (2, 3)
    with pytest.raises(DataError, match="augment=flip: the data have no images, only features"):
        TrainBatches(vectors, batch_size=2, augment=("flip",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"label": np.ones((6, 1), np.float32)}}, "'label' is not a valid name of an input"),
        ({"inputs": {"image": np.ones((6, 1), np.float32)}}, "two are called 'image'"),
        ({"inputs": {"age": np.ones((5, 1), np.float32)}}, "age: 5 examples, but image has 6"),
        ({"inputs": {"age": np.full((6, 1), np.nan, np.float32)}}, "age: float32 with values that are not finite"),
        ({"inputs": {"age": np.array(["a"] * 6)}}, "age: <U1"),
        ({"columns": {"size": np.ones(5)}}, "'size' is not a valid name; expected weight, label/TASK or weight/TASK"),
        ({"columns": {"weight": np.ones(4)}}, "weight: shape"),
        ({"columns": {"label/kind": np.ones(5)}}, "'label/kind' is the name of"),
        ({"images": np.ones((6, 3), np.float32)}, "expected \\[n, height, width, channels\\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        part(**changes)


def test_the_fingerprint_changes_with_each_array() -> None:
    def fingerprint(**changes: Any) -> str:
        own = part(**changes)
        return Source("made", ("a", "b"), own, own, None).fingerprint()

    first = part()
    changed = {name: np.flip(values).copy() for name, values in first.columns.items()}
    others = [
        fingerprint(inputs={"age": np.ones((6, 1), np.float32)}),
        fingerprint(inputs={"size": first.inputs["age"]}),
        *(fingerprint(columns=dict(first.columns) | {name: values}) for name, values in changed.items()),
    ]
    assert fingerprint() not in others
    assert len(set(others)) == len(others)
