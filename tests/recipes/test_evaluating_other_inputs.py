"""Other data are evaluated only if their inputs are those of the model, and if names that are matched are names of their own."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.class_names import match_names, same_names
from engine.data.examples import make_source
from engine.data.features import Features, order_columns
from engine.data.part import Part, Source, Target
from engine.data.source import open_data
from engine.errors import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import OpenedRun
from engine.runs.saved_flags import DataFacts
from engine.training.precision import parse as parse_precision

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # which look alike
OWN = """
import numpy as np

class Made:
    def __init__(self, **inputs):
        self.inputs = inputs
    def __len__(self):
        return 4
    def read(self, positions):
        arrays = {name: np.zeros([len(positions), *shape], dtype) for name, (shape, dtype) in self.inputs.items()}
        return arrays | {"label": positions % 2}
    def fingerprint(self):
        return "made"
"""


def opened(*, shape: tuple[int, ...] = (8, 8, 3), loss: str = "softmax", outputs: int = 2, **facts: Any) -> OpenedRun:
    """A model of which only the facts are looked at."""
    given: dict[str, Any] = {"class_names": None, "columns": None, "images": None, "eval_size": 4, "fingerprint": None}
    data = DataFacts(image_shape=shape, outputs=outputs, **given | facts)
    config = FinetuneConfig(model="cnn:mini", loss=loss)
    model: Any = None
    numbers = parse_precision("float32")
    return OpenedRun(
        path=None, config=config, run={}, model=model, variables=model, data=data, numbers=numbers, weights="random"
    )


@pytest.fixture
def made(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a source of the user's own with these inputs; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = 0

    def write(**inputs: tuple[tuple[int, ...], str]) -> str:
        nonlocal count
        count += 1
        name = f"{tmp_path.name.replace('-', '_')}_{count}"
        (tmp_path / f"{name}.py").write_text(f"{OWN}\nsource = Made(**{inputs!r})\n")
        return f"py:{name}:source"

    return write


IMAGE, META = ((8, 8, 3), "uint8"), ((3,), "float32")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"meta": ((5,), "float32")}, "input meta: an example has shape [5], but the model takes [3]"),
        ({"meta": ((2,), "float32")}, "input meta: an example has shape [2], but the model takes [3]"),
        ({"meta": ((3, 1), "float32")}, "input meta: an example has shape [3, 1], but the model takes [3]"),
        ({"meta": ((3,), "int64")}, "input meta: an example has int64, but the model was trained on float32"),
        ({"image": ((6, 6, 3), "uint8")}, "has shape [6, 6, 3], but the model takes [8, 8, 3]; resize them to 8x8"),
        ({"image": ((8, 6, 3), "uint8")}, "input image: an example has shape [8, 6, 3]"),
        ({"image": ((8, 8, 4), "uint8")}, "input image: an example has 4 channels, and the model takes 3"),
        ({"other": ((3,), "float32")}, "an example has image, meta and other, but the model takes image and meta"),
        ({}, None),
        ({"image": ((8, 8, 1), "float32")}, None),
        ({"image": ((8, 8, 3), "float32")}, None),
    ],
)  # fmt: skip
def test_every_input_must_have_the_shape_and_the_kind_that_the_model_takes(
    made: Any, inputs: dict[str, Any], message: str | None
) -> None:
    run = opened(inputs={"image": IMAGE, "meta": META})
    spec = made(**{"image": IMAGE, "meta": META} | inputs)
    if message is None:
        assert open_examples(run, data=spec).part.image_shape == (8, 8, 3)
        return
    with pytest.raises(InputError) as caught:
        open_examples(run, data=spec)
    assert message in str(caught.value)
    assert spec in str(caught.value)


def test_a_second_image_is_not_recoloured_and_a_run_with_one_input_takes_one(made: Any) -> None:
    pair = opened(inputs={"left": IMAGE, "right": IMAGE})
    with pytest.raises(
        InputError, match=r"input right: an example has shape \[8, 8, 1\], but the model takes \[8, 8, 3\]"
    ):
        open_examples(pair, data=made(left=IMAGE, right=((8, 8, 1), "uint8")))
    assert len(open_examples(pair, data=made(left=((8, 8, 1), "uint8"), right=IMAGE)).part) == 4
    with pytest.raises(InputError, match="input right: an example has int64, but the model was trained on uint8"):
        open_examples(pair, data=made(left=IMAGE, right=((8, 8, 3), "int64")))
    alone = opened()
    with pytest.raises(InputError, match="an example has image and meta, but the model takes image"):
        open_examples(alone, data=made(image=IMAGE, meta=META))
    with pytest.raises(InputError, match="resize them to 8x8"):
        open_examples(alone, data=made(image=((6, 6, 3), "uint8")))
    tokens = opened(shape=(4,), inputs={"tokens": ((4,), "int32")})
    assert len(open_examples(tokens, data=made(tokens=((4,), "int64"))).part) == 4
    with pytest.raises(InputError, match="input tokens: an example has float32, but the model was trained on int32"):
        open_examples(tokens, data=made(tokens=((4,), "float32")))


# ---- names


def source_of(labels: np.ndarray, **fields: Any) -> Source:
    part = Part(np.zeros([len(labels), 8, 8, 3], np.uint8), labels, np.arange(len(labels)))
    return Source("made", fields.pop("classes", ()), part, part, None, **fields)


def features_of(*names: str) -> Source:
    rows = np.arange(2.0 * len(names), dtype=np.float32).reshape(2, -1)
    part = Part(Features(rows, names), np.zeros(2, np.int64), np.arange(2), input_name="features")
    return Source("made", ("0", "1"), part, part, None, named=False)


@pytest.mark.parametrize("pair", [("a", "a"), (COMPOSED, DECOMPOSED)])
@pytest.mark.parametrize("what", ["classes", "columns of labels", "features", "classes of one"])
def test_names_that_count_as_equal_are_refused_where_data_are_opened(what: str, pair: tuple[str, str]) -> None:
    labels, names = np.zeros([4, 3], np.float32), (pair[0], "b", pair[1])
    made = {
        "classes": lambda: source_of(np.zeros(4, np.int64), classes=names),
        "columns of labels": lambda: source_of(labels, columns=names),
        "features": lambda: features_of(*names),
        "classes of one": lambda: source_of(np.zeros(4, np.int64), classes=("x",), tasks=(Target("one", names),)),
    }[what]()
    with pytest.raises(InputError) as caught:
        make_source("made", made)
    assert f"the {what} 0 and 2, counted from 0, are both called {pair[0]!r}" in str(caught.value)
    assert ("NFC and NFD" in str(caught.value)) == (pair[0] != pair[1])


def test_every_kind_of_file_is_asked_for_names_of_their_own(tmp_path: pathlib.Path) -> None:
    images = np.zeros([4, 8, 8, 1], np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(4) % 2, class_names=np.array(["a", "a"]))
    np.savez(
        tmp_path / "b.npz",
        train_images=images,
        train_labels=np.ones([4, 2]),
        class_names=np.array([COMPOSED, DECOMPOSED]),
    )
    rows = "".join(f"{number},{number + 1},{(COMPOSED, DECOMPOSED)[number % 2]}\n" for number in range(8))
    (tmp_path / "c.csv").write_text(f"x,z,label\n{rows}", encoding="utf-8")
    rows = "".join(f"{number},{number + 1},{'ab'[number % 2]}\n" for number in range(8))
    (tmp_path / "d.csv").write_text(f"{COMPOSED},{DECOMPOSED},label\n{rows}", encoding="utf-8")
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / f"photos/train/{name}").mkdir(parents=True)
        Image.fromarray(np.zeros([8, 8, 3], np.uint8)).save(tmp_path / f"photos/train/{name}/0.png")
    for spec in (*(f"npz:{tmp_path}/{name}.npz" for name in "ab"), *(f"table:{tmp_path}/{name}.csv" for name in "cd")):
        with pytest.raises(InputError, match="are both called"):
            open_data(spec, say=lambda line: None)
    with pytest.raises(InputError, match="are both called"):
        open_data(f"folder:{tmp_path}/photos", image_size=8, say=lambda line: None)


@pytest.mark.parametrize(
    ("run", "data", "refused"),
    [
        (("a", "b", "a"), ("b", "a", "a"), True),
        ((COMPOSED, "b", DECOMPOSED), ("b", DECOMPOSED, COMPOSED), True),
        ((COMPOSED, "b", DECOMPOSED), (DECOMPOSED, "b", COMPOSED), True),
        ((COMPOSED, "b", DECOMPOSED), (COMPOSED, "b", DECOMPOSED), False),
        (("a", "b", "a"), ("a", "b", "a"), False),
        ((COMPOSED, "b", "c"), (DECOMPOSED, "b", "c"), False),
        ((COMPOSED, "b", "c"), ("b", DECOMPOSED, "c"), False),
    ],
)
def test_repeated_names_are_matched_only_where_their_order_is_the_same(
    run: tuple[str, ...], data: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.recipes import evaluation_data

    source = source_of(np.arange(12, dtype=np.float32).reshape(4, 3), columns=data)
    monkeypatch.setattr(evaluation_data, "open_undivided", lambda *_, **__: source)
    columns = opened(loss="mse", outputs=3, columns=run)
    vectors, said = features_of(*data), []
    if refused:
        with pytest.raises(InputError, match="two columns of labels are called"):
            open_examples(columns, data="py:a:b")
        with pytest.raises(InputError, match="two features are called"):
            order_columns(vectors, run, say=said.append)
        return
    same = (
        np.array([data.index(DECOMPOSED if name == COMPOSED else name) for name in run])
        if data != run
        else np.arange(3)
    )
    np.testing.assert_array_equal(open_examples(columns, data="py:a:b").part.labels, source.train.labels[:, same])
    taken = order_columns(vectors, run, say=said.append).train.images[np.arange(2)]
    np.testing.assert_array_equal(taken, vectors.train.images[np.arange(2)][:, same])


def test_classes_that_repeat_in_a_run_are_refused_only_if_data_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.recipes import evaluation_data

    run = opened(outputs=3, class_names=("a", "b", "a"))
    source = source_of(np.array([0, 0, 0, 0]), classes=("b",))
    monkeypatch.setattr(evaluation_data, "open_undivided", lambda *_, **__: source)
    assert open_examples(run, data="py:a:b").part.labels.tolist() == [1] * 4
    source = dataclasses.replace(source, classes=("a",))
    with pytest.raises(InputError, match="two classes are called 'a' where the model or the data name them"):
        open_examples(run, data="py:a:b")


def test_many_names_are_matched_at_once() -> None:
    names = [str(number) for number in range(50_000)]
    assert match_names("data=x", "features", names[::-1], names) == list(range(50_000))[::-1]


def test_a_head_is_taken_as_it_is_only_if_equal_names_are_spelt_alike() -> None:
    from engine.porting.class_order import match_classes
    from engine.porting.errors import PortError

    names, file = (COMPOSED, "b", DECOMPOSED), pathlib.Path("a.npz")
    assert match_classes(file, names, names, outputs=(3, 3)) is None
    assert match_classes(file, (COMPOSED, "b"), (DECOMPOSED, "b"), outputs=(2, 2)) is None
    with pytest.raises(PortError, match="twice, so its outputs cannot be told apart"):
        match_classes(file, names, names[::-1], outputs=(3, 3))
    assert [same_names(names, each) for each in (names, names[::-1])] == [True, False]


def test_data_of_another_kind_are_refused_as_such(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\nhello\ta\nbye\tb\n")
    with pytest.raises(InputError, match="these are texts, and the model takes images"):
        open_examples(opened(), data=f"text:{tmp_path}/t.tsv")
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=np.arange(4) % 2)
    with pytest.raises(InputError, match="the model gives a class to each pixel, and these data have no masks"):
        open_examples(opened(outputs_of="pixel"), data=f"npz:{tmp_path}/d.npz")
    for kind in ("images", "masks"):
        (tmp_path / "scenes" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = images[0] if kind == "images" else np.eye(8, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scenes" / kind / f"{number}.png")
    with pytest.raises(InputError, match="these data have masks, and the model does not give a class to each pixel"):
        open_examples(opened(outputs_of="example"), data=f"folder:{tmp_path}/scenes")
    with pytest.raises(InputError, match="these data have masks, and the model does not give a class to each pixel"):
        open_examples(opened(outputs_of="example", class_names=("a", "b")), data=f"folder:{tmp_path}/scenes")
