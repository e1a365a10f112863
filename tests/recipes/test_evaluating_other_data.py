"""Other data are evaluated although there is nothing to train on in them: no such part, one class alone, no class at all."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.image_options import ImageOptions
from engine.data.source import open_undivided
from engine.errors import InputError
from engine.models.registry import build_model
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import OpenedRun
from engine.runs.saved_flags import DataFacts
from engine.selection.variables import name_variables
from engine.training.precision import parse as parse_precision

NAMES = ("ant", "bee", "cat")


def untrained(names: tuple[str, ...] | None = NAMES, outputs: int = 3, size: int = 8) -> OpenedRun:
    """A small model of random weights for colour images, as if a run had trained it."""
    model = build_model("cnn:mini", image_shape=(size, size, 3), outputs=outputs, seed=2)
    facts = DataFacts(
        image_shape=(size, size, 3), outputs=outputs, class_names=names, columns=None, images=None, eval_size=64, fingerprint=None
    )  # fmt: skip
    return OpenedRun(
        path=None,
        config=FinetuneConfig(model="cnn:mini"),
        run={},
        model=model,
        variables=name_variables(model.network),
        data=facts,
        numbers=parse_precision("float32"),
        weights="random",
    )


@pytest.fixture(scope="module")
def opened() -> OpenedRun:
    return untrained()


@pytest.fixture
def photos(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory, with the pictures 0.png to 5.png."""
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def csv(*rows: tuple[str, str]) -> str:
    lines = ["path,label,split", *(f"{number}.png,{label},{part}" for number, (label, part) in enumerate(rows))]
    pathlib.Path("m.csv").write_text("\n".join(lines))
    return "csv:m.csv"


@pytest.mark.parametrize(
    ("rows", "part", "name", "labels"),
    [
        ([("cat", "test"), ("ant", "test"), ("cat", "test")], None, "test", [2, 0, 2]),
        ([("cat", "val"), ("bee", "val")], None, "eval", [2, 1]),
        ([("bee", "train"), ("bee", "train")], None, "all", [1, 1]),
        ([("bee", "train"), ("cat", "test")], None, "test", [2]),
        ([("bee", "val"), ("cat", "test")], "test", "test", [2]),
    ],
)
def test_a_manifest_without_a_training_part_or_with_one_class_is_evaluated(
    photos: pathlib.Path, opened: OpenedRun, rows: list[tuple[str, str]], part: str | None, name: str, labels: list[int]
) -> None:
    examples = open_examples(opened, data=csv(*rows), part=part)
    assert (examples.name, examples.part.labels.tolist()) == (name, labels)
    figures = evaluate(opened, examples).figures
    assert np.isfinite(figures["loss"])
    assert figures["data"]["examples"] == len(labels)


@pytest.mark.parametrize(
    ("rows", "part", "message"),
    [
        ([("cat", "test")], "train", "part=train: csv:m.csv has no part train; it has test"),
        ([("cat", "test")], "eval", "part=eval: csv:m.csv has no evaluation part; it has test"),
        ([("cat", "test")], "all", "part=all: csv:m.csv is divided; expected one of test"),
        ([("cat", "train")], "eval", "--part=all takes all of its examples"),
        ([("cat", "train")], "test", "part=test: csv:m.csv has no part test"),
        (
            [("cow", "test"), ("dog", "test")],
            None,
            "the model knows no class cow and dog; its classes are ant, bee and cat",
        ),
    ],
)
def test_the_part_that_is_asked_for_must_exist_and_the_model_must_know_its_classes(
    photos: pathlib.Path, opened: OpenedRun, rows: list[tuple[str, str]], part: str | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        open_examples(opened, data=csv(*rows), part=part)
    assert message in str(caught.value)


def test_names_of_classes_are_not_taken_in_their_order_where_some_are_missing(photos: pathlib.Path) -> None:
    nameless = untrained(None)
    with pytest.raises(
        InputError, match="the 3 classes of the model have no names, so which of them these are is not known"
    ):
        open_examples(nameless, data=csv(("cat", "test"), ("ant", "test")))
    by_number = csv(("2", "test"), ("0", "test")) + ",label=label:class"
    assert open_examples(nameless, data=by_number).part.labels.tolist() == [2, 0]


def undivided(spec: str, **options: Any) -> Any:
    given = {"image_size": None, "bad_images": "stop", "image_cache": 1 << 20, "say": lambda line: None} | options
    return open_undivided(spec, **given)


def images(count: int) -> np.ndarray:
    return np.zeros([count, 8, 8, 3], np.uint8)


def write_npz(folder: pathlib.Path) -> str:
    np.savez(folder / "a.npz", test_images=images(3), test_labels=np.array([2, 0, 2]))
    return f"npz:{folder}/a.npz"


def write_table(folder: pathlib.Path) -> str:
    np.savez(folder / "t.npz", test_x=np.ones([3, 2]), test_y=np.array([2, 0, 2]))
    return f"table:{folder}/t.npz"


def write_rows(folder: pathlib.Path) -> str:
    (folder / "t.csv").write_text("x,label,split\n1.5,cat,test\n2.5,ant,test\n3.5,cat,test\n")
    return f"table:{folder}/t.csv"


def write_boxes(folder: pathlib.Path) -> str:
    rows = "0.png,1,1,4,4,cat,test\n1.png,2,2,5,5,ant,test\n2.png,0,0,3,3,cat,test\n"
    (folder / "b.csv").write_text("image,x1,y1,x2,y2,class,split\n" + rows)
    return f"boxes:{folder}/b.csv"


def write_folder(folder: pathlib.Path) -> str:
    for number, name in enumerate(("cat", "ant", "cat")):
        (folder / f"d/test/{name}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(1)[0]).save(folder / f"d/test/{name}/{number}.png")
    return f"folder:{folder}/d"


def write_class(folder: pathlib.Path) -> str:
    write_folder(folder)
    (folder / "one").mkdir()
    (folder / "d/test/cat").rename(folder / "one/cat")
    return f"folder:{folder}/one"


def write_masks(folder: pathlib.Path) -> str:
    for kind, value in (("images", images(1)[0]), ("masks", np.eye(8, dtype=np.uint8))):
        (folder / f"s/test/{kind}").mkdir(parents=True)
        for number in range(3):
            Image.fromarray(value).save(folder / f"s/test/{kind}/{number}.png")
    return f"folder:{folder}/s"


WRITERS: dict[str, tuple[Callable[[pathlib.Path], str], str, int]] = {
    "npz": (write_npz, "test", 3),
    "arrays of vectors": (write_table, "test", 3),
    "vectors": (write_rows, "test", 3),
    "boxes": (write_boxes, "test", 3),
    "folder": (write_folder, "test", 3),
    "one class": (write_class, "train", 2),
    "masks": (write_masks, "test", 3),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source_may_lack_what_only_training_needs(photos: pathlib.Path, kind: str) -> None:
    make, part, count = WRITERS[kind]
    spec = make(photos)
    given = {"image_size": 8} if kind in ("boxes", "folder", "one class", "masks") else {}
    with pytest.raises(InputError):
        undivided(spec, **given)
    source = undivided(spec, **given, to_train=False)
    assert {name: len(getattr(source, name) or ()) for name in ("train", "test")} == {"train": 0, "test": 0} | {
        part: count
    }
    if source.train.labels.ndim == 1:
        labels = getattr(source, part).labels
        assert next(source.classes[label] for label in labels) in ("cat", "2", "ant")


def test_texts_and_sources_of_ones_own_may_lack_it_too(tmp_path: pathlib.Path) -> None:
    from engine.data.examples import make_source
    from engine.data.text_layout import find_parts
    from engine.data.text_name import parse_text_name
    from engine.data.text_source import _sort_classes

    (tmp_path / "test.tsv").write_text("text\tlabel\nhello\tham\n")
    name = parse_text_name(f"text:{tmp_path}")
    with pytest.raises(InputError, match="but no file train"):
        find_parts("text:x", name, print)
    assert list(find_parts("text:x", name, lambda line: None, to_train=False)) == ["test"]
    assert _sort_classes("text:x", tmp_path, ["ham"], to_train=False) == ("ham",)

    class Own:
        def __len__(self) -> int:
            return 4

        def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
            return {"x": np.zeros([len(positions), 2], np.float32), "label": positions % 3}

        def fingerprint(self) -> str:
            return "own"

    with pytest.raises(InputError, match="there is no part train"):
        make_source("py:a:b", {"test": Own()})
    source = make_source("py:a:b", {"test": Own()}, to_train=False)
    assert source.test is not None
    assert (len(source.train), len(source.test), source.classes) == (0, 4, ("0", "1", "2"))


def test_an_option_of_the_run_does_not_keep_other_data_out(photos: pathlib.Path) -> None:
    spec = csv(("cat", "test"), ("ant", "test"))
    assert len(undivided(spec, image_size=8, images=ImageOptions(nan="zero"), to_train=False).test) == 2


def test_figures_that_one_class_cannot_have_are_missing_and_not_wrong(photos: pathlib.Path, opened: OpenedRun) -> None:
    examples = open_examples(opened, data=csv(("bee", "test"), ("bee", "test")))
    figures = evaluate(opened, examples, named="accuracy,f1,auc").figures
    assert figures["accuracy"] in (0.0, 0.5, 1.0)
    assert not np.isfinite(figures.get("auc") or np.nan)


def test_an_export_is_calibrated_and_checked_on_what_there_is(
    photos: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow.python.framework import config  # there is no public way to switch determinism off again

    from engine import finetune
    from engine.export.opening import open_subject
    from engine.runs import picture, records

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    own = csv(("cat", "train"), ("ant", "train"), ("cat", "val"))
    fields = {"model": "cnn:mini", "weights": "none", "train": "@head", "steps": 1, "batch_size": 2, "image_size": "8"}
    assert finetune(FinetuneConfig(**fields, data=own, out="run", cache="off")).code == 0  # type: ignore[arg-type]
    config.disable_op_determinism()
    pathlib.Path("other.csv").write_text("path,label,split\n3.png,cat,test\n4.png,cat,test\n")
    subject = open_subject("run", data="csv:other.csv")
    assert (len(subject.training), len(subject.examples)) == (2, 2)


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "Test", "testing", "eval"])
def test_the_only_part_of_a_folder_may_have_any_name_of_a_part(
    photos: pathlib.Path, opened: OpenedRun, name: str
) -> None:
    spec = write_folder(photos)
    (photos / "d/test").rename(photos / f"d/{name}")
    said: list[str] = []
    examples = open_examples(opened, data=spec, say=said.append)
    part = "test" if name.lower().startswith("test") else "eval"
    assert (examples.name, len(examples.part), sorted(set(examples.part.labels))) == (part, 3, [0, 2])
    assert f"data: the folder {name} is the part {'val' if part == 'eval' else part}" in said
    spec = write_masks(photos)
    (photos / "s/test").rename(photos / f"s/{name}")
    source = undivided(spec, image_size=8, to_train=False)
    assert [len(found) for found in (source.train, source.eval, source.test or ())] == (
        [0, 0, 3] if part == "test" else [0, 3, 0]
    )


def test_no_way_out_is_a_flag_that_the_program_has_not(photos: pathlib.Path) -> None:
    for number, name in enumerate(("valid", "test", "training")):
        (photos / f"flat/{name}").mkdir(parents=True)
        Image.fromarray(images(1)[0]).save(photos / f"flat/{name}/{number}.png")
    (photos / "mixed/val/a").mkdir(parents=True)
    (photos / "mixed/other").mkdir(parents=True)
    for place in ("mixed/val/a", "mixed/other"):
        Image.fromarray(images(1)[0]).save(photos / f"{place}/0.png")
    for folder in ("flat", "mixed"):
        for to_train in (True, False):
            with pytest.raises(InputError) as caught:
                undivided(f"folder:{photos}/{folder}", image_size=8, to_train=to_train)
            assert ("--parts=off" in str(caught.value)) == to_train


def masks_of(folder: pathlib.Path, *numbers: np.ndarray, names: str | None = None) -> str:
    """A folder of images whose masks have these numbers, to be evaluated."""
    shutil.rmtree(folder / "one", ignore_errors=True)
    for kind in ("images", "masks"):
        (folder / "one" / kind).mkdir(parents=True)
    for number, mask in enumerate(numbers):
        Image.fromarray(images(1)[0]).save(folder / f"one/images/{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"one/masks/{number}.png")
    if names is not None:
        (folder / "one/classes.txt").write_text(names)
    return f"folder:{folder}/one"


@pytest.mark.parametrize("number", [0, 1, 7, 40])
def test_masks_of_one_class_are_evaluated_and_trained_on_only_where_names_settle_it(
    tmp_path: pathlib.Path, number: int
) -> None:
    flat = np.full((8, 8), number)
    spec = masks_of(tmp_path, flat, flat)
    source = undivided(spec, image_size=8, to_train=False)
    assert set(np.unique(source.train.labels)) == {number}
    with pytest.raises(InputError, match=f"all pixels that count are {number}"):
        undivided(spec, image_size=8)
    spec = masks_of(tmp_path, flat, flat, names="".join(f"class {each}\n" for each in range(41)))
    assert len(undivided(spec, image_size=8).classes) == 41


def test_masks_whose_numbers_cannot_be_known_are_refused_with_a_way_out_that_there_is(tmp_path: pathlib.Path) -> None:
    object_255 = 255 * np.eye(8)
    objects = np.arange(64).reshape(8, 8)
    for masks in ((object_255,), (objects % 3, objects % 5, objects % 7)):
        spec = masks_of(tmp_path, *masks)
        with pytest.raises(InputError) as caught:
            undivided(spec, image_size=8, to_train=False)
        assert "name the classes in classes.txt" in str(caught.value)
        assert "--masks=" not in str(caught.value)
        spec = masks_of(tmp_path, *masks, names="".join(f"class {each}\n" for each in range(8)))
        assert len(undivided(spec, image_size=8, to_train=False).classes) == 8
    with pytest.raises(InputError, match=r"all pixels that count are 0 \(255 is ignored\)"):
        undivided(masks_of(tmp_path, object_255, names="ground\nobject"), image_size=8)
    spec = masks_of(tmp_path, np.full((8, 8), 255))
    with pytest.raises(InputError, match="every pixel of the masks is ignored, as the run read its own"):
        undivided(spec, image_size=8, to_train=False)
