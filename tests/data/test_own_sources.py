"""Sources that a user writes: examples by position, checked at every reading."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from engine import data
from engine.data.examples import ExampleSet, make_source
from engine.errors import InputError


class Numbers:
    """Images whose value is the example's number, with one label."""

    classes: Any = ("even", "odd")

    def __init__(self, count: int = 20, **change: Any) -> None:
        self.count, self.change, self.reads = count, change, 0

    def __len__(self) -> int:
        return self.count

    def read(self, positions: np.ndarray) -> Mapping[str, Any]:
        self.reads += 1
        images = np.zeros([len(positions), 4, 4, 1], np.uint8) + positions[:, None, None, None].astype(np.uint8)
        found = {"image": images, "label": positions % 2}
        for name, make in self.change.items():
            found[name] = make(positions) if callable(make) else make
        return {name: value for name, value in found.items() if value is not None}

    def fingerprint(self) -> str:
        return f"numbers {self.count}"


def test_a_set_of_examples_is_a_source_and_its_evaluation_part_is_held_out() -> None:
    assert isinstance(Numbers(), ExampleSet)
    source = make_source("py:a:b", Numbers(300))
    assert (len(source.train), source.eval is source.train, source.test) == (300, True, None)
    assert (source.classes, source.named, source.image_shape) == (("even", "odd"), True, (4, 4, 1))
    batch = source.train.read(np.array([7, 290, 3]))
    assert batch["image"][:, 0, 0, 0].tolist() == [7, 290 - 256, 3]
    assert batch["label"].tolist() == [1, 0, 1]


def test_inputs_are_read_when_they_are_needed_and_once_for_all_of_them() -> None:
    class Quick(Numbers):
        def read_labels(self, positions: np.ndarray) -> Mapping[str, Any]:
            return {"label": positions % 2}

    examples = Quick(600, other=lambda p: p[:, None].astype(np.float32))
    source = make_source("py:a:b", {"train": examples})
    assert examples.reads == 1, "the first example tells shapes and dtypes"
    batch = source.train.read(np.array([5, 6]))
    assert examples.reads == 2
    assert sorted(batch) == ["image", "index", "label", "other"]
    assert batch["other"].tolist() == [[5], [6]]
    slow = Numbers(600)
    make_source("py:a:b", slow)
    assert slow.reads == 1 + 3, "labels without read_labels are read in pieces"


def test_parts_tasks_and_weights_come_out_as_they_are_named() -> None:
    class Two(Numbers):
        classes: Any = {"kind": ("a", "b")}  # noqa: RUF012

        def __init__(self, count: int) -> None:
            tasks = {"label/kind": lambda p: p % 2, "label/size": lambda p: p / 2, "weight/size": lambda p: p * 0.0}
            super().__init__(count, label=None, **tasks)

    source = make_source("py:a:b", {"train": Two(12), "val": Two(6), "test": Two(3)})
    assert source.test is not None
    assert [len(part) for part in (source.train, source.eval, source.test)] == [12, 6, 3]
    assert [(task.name, task.classes) for task in source.tasks] == [("kind", ("a", "b")), ("size", ())]
    batch = source.eval.read(np.arange(2))
    assert sorted(batch) == ["image", "index", "label/kind", "label/size", "weight/size"]
    assert (batch["label/size"].dtype, batch["weight/size"].dtype) == (np.float32, np.float32)


def test_the_fingerprint_is_that_of_the_examples_and_their_labels() -> None:
    seen = {make_source("s", Numbers(count)).fingerprint() for count in (20, 20, 21)}
    seen.add(make_source("s", Numbers(label=lambda p: p * 0)).fingerprint())
    assert len(seen) == 3


def misnamed(positions: np.ndarray) -> Any:
    return np.zeros([len(positions), 2] if positions[0] == 0 else [len(positions), 3], np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "train is int without __len__, read and fingerprint; expected an object with __len__, read(positions) and fingerprint()"),
        ({}, "there is no part train, only nothing"),
        ({"train": Numbers(), "valid": Numbers()}, "'valid' is not a part; expected train, val, test"),
        (Numbers(0), "train has no examples"),
        (Numbers(image=None), "read() returns no input, only label"),
        (Numbers(label=None), "read() returns no label, only image"),
        (Numbers(image=np.zeros([3, 4, 4, 1], np.uint8)), "read()['image'] has shape [3, 4, 4, 1] for 1 positions"),
        (Numbers(image=lambda p: np.zeros([len(p), 4, 4, 1])), "read()['image'] is float64; expected uint8, float32, int32"),
        (Numbers(label=lambda p: np.array(["a"] * len(p))), "read()['label'] is <U1; expected classes as whole numbers from 0"),
        (Numbers(label=lambda p: p % 3), "train: the label of example 2 is 2; the classes are 0 to 1"),
        (Numbers(label=lambda p: p - 1), "train: the label of example 0 is -1"),
        (Numbers(seeds=lambda p: p), "read()['seeds'] is not a valid name"),
        (Numbers(weight=lambda p: p - 5.0), "read()['weight'][0]=-5: a weight is a finite number of at least 0"),
        (Numbers(more=misnamed), "read()['more'] has [3] float32 an example; the first example has [2] float32 an example"),
        ({"train": Numbers(), "val": Numbers(more=lambda p: p[:, None])}, "val has 'more', which train has not"),
        ({"train": Numbers(), "val": Numbers(image=lambda p: np.zeros([len(p), 5, 4, 1], np.uint8))}, "'image' is [5, 4, 1] uint8 in val"),
        (Numbers(**{"label/a": lambda p: p, "label": lambda p: p % 2}), "with several labels, each is called label/NAME"),
    ],
)  # fmt: skip
def test_what_does_not_keep_the_contract_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_source("py:a:b", given).train.read(np.arange(3, 6))
    assert message in str(caught.value)
    assert str(caught.value).startswith("data=py:a:b: ")


def test_a_user_names_a_function_a_class_or_the_thing_itself(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    (tmp_path / "own_source.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            class Squares:
                classes = ("even", "odd")
                def __len__(self):
                    return 40
                def read(self, positions):
                    return {"x": positions[:, None].astype(np.float32), "label": positions % 2}
                def fingerprint(self):
                    return "squares"
            def parts():
                return {"train": Squares(), "val": Squares()}
            squares = Squares()
            def wrong():
                raise KeyError("no data")
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    for name, count in (("Squares", 36), ("parts", 40), ("squares", 36)):
        source = data.open_data(f"py:own_source:{name}", say=lambda line: None)
        assert (len(source.train), source.train.input_name, source.image_shape) == (count, "x", (1,))
    for spec, message in (
        ("py:own_source:wrong", "data='py:own_source:wrong': it raised KeyError: 'no data'"),
        ("py:own_source:square", "own_source has no 'square'; nearest: squares"),
        ("py:own_sauce:a", "importing own_sauce raised ModuleNotFoundError"),
        ("py:own_source", "is not a valid source; expected py:module:source"),
    ):
        with pytest.raises(InputError) as caught:
            data.open_data(spec)
        assert message in str(caught.value)
    with pytest.raises(InputError, match=r"makes its images itself; leave out --image_size"):
        data.open_data("py:own_source:squares", image_size=8)
