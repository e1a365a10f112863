"""Manifests: which column is what, labels and weights, parts, and every bad cell with its line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import data
from engine.data.folder import share_of_name
from engine.data.part import DataError
from engine.data.source import open_undivided
from engine.errors import InputError

Write = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with 12 pictures of their own colour, p/0.png to p/11.png."""
    place = tmp_path_factory.mktemp("manifest")
    (place / "p").mkdir()
    for number in range(12):
        Image.fromarray(np.full((6, 5, 3), 20 * number, np.uint8)).save(place / f"p/{number}.png")
    return place


@pytest.fixture
def write(folder: pathlib.Path) -> Write:
    """Writes a manifest into the folder of the pictures; returns the name of the source without options."""

    def make(text: str | bytes, name: str = "m.csv", kind: str = "csv") -> str:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{kind}:{folder / name}"

    return make


def opened(spec: str, **options: Any) -> data.Source:
    return data.open_data(spec, **({"image_size": (6, 5), "say": lambda line: None} | options))


def vectors(spec: str, **options: Any) -> data.Source:
    return data.open_data(spec, **({"say": lambda line: None} | options))


def refused(spec: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(spec, **options)
    return str(caught.value)


PARTS = "path,label,split\n" + "".join(
    f"p/{n}.png,{('cat', 'dog', 'ant')[n % 3]},{'train' if n < 6 else 'val' if n < 9 else 'test'}\n" for n in range(12)
)


# ---- what is read
def test_a_manifest_with_plain_names_needs_no_options(write: Write) -> None:
    said: list[str] = []
    source = opened(write(PARTS), say=said.append)
    assert source.test is not None
    assert (source.classes, source.tasks) == (("ant", "cat", "dog"), ())
    assert [len(part) for part in (source.train, source.eval, source.test)] == [6, 3, 3]
    batch = source.eval.read(np.arange(3))
    assert sorted(batch) == ["image", "index", "label"]
    assert batch["image"][:, 0, 0, 0].tolist() == [120, 140, 160]
    assert batch["label"].tolist() == [1, 2, 0]
    assert batch["index"].tolist() == [6, 7, 8]
    assert said == [
        "data: columns: image path, label label, split split",
        "data: label label: 3 classes, ant, cat and dog",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", "|").encode(),
        lambda text: text.replace(",", "\t").encode("utf-16"),
        lambda text: text.replace("cat", '"cat"').replace("path", '"path"').encode(),
        lambda text: text.replace("\n", "\n\n").replace(",", " , ").encode(),
        lambda text: text.replace("val", "Validation").replace("split", "Split").encode(),
        lambda text: text.rstrip("\n").encode(),
    ],
    ids=["bom", "crlf", "semicolon", "tab", "pipe", "utf16", "quotes", "blanks", "case", "no_end"],
)
def test_every_way_of_writing_it_gives_the_same_examples(write: Write, change: Callable[[str], bytes]) -> None:
    source, plain = opened(write(change(PARTS), "other.csv")), opened(write(PARTS))
    assert source.classes == plain.classes
    assert source.fingerprint() == plain.fingerprint()


def test_cells_may_hold_delimiters_quotes_and_lines(write: Write) -> None:
    rows = ['p/0.png,"a, ""b"""', 'p/1.png,"two\nlines"', "p/2.png,c"]
    source = opened(
        write("\n".join(["path,label,split", *(f"{row},{part}" for part in ("train", "val") for row in rows)]))
    )
    assert source.classes == ('a, "b"', "c", "two\nlines")
    broken = 'path,label\np/0.png,"a\n\n"\n' + "p/1.png,b\n" * 4 + ",b\n"
    assert "line 9: path is empty" in refused(write(broken)), "lines within cells count"


def test_several_labels_are_tasks_with_missing_ones_and_weights(write: Write) -> None:
    text = "file,species,age,w,part\np/0.png,cat,1.5,1,train\np/1.png,dog,,2,train\np/2.png,,3,0.5,train\np/3.png,cat,2,1,dev\n"
    source = opened(write(text) + ",label=species,label=age,weight=w,weight=w:age,split=part".replace("weight=w,", ""))
    assert [(task.name, task.classes) for task in source.tasks] == [("species", ("cat", "dog")), ("age", ())]
    batch = source.train.read(np.arange(3))
    assert sorted(batch) == ["image", "index", "label/age", "label/species", "weight/age", "weight/species"]
    assert batch["label/species"].tolist() == [0, 1, 0]
    assert batch["weight/species"].tolist() == [1, 1, 0]
    assert batch["label/age"].tolist() == [1.5, 0, 3]
    assert batch["weight/age"].tolist() == [1, 0, 0.5]
    assert sorted(source.eval.read(np.arange(1))) == sorted(batch), "all parts have the same arrays"
    every = opened(write(text) + ",label=species,label=age,weight=w,split=part")
    assert every.train.read(np.arange(3))["weight/species"].tolist() == [1, 2, 0]


def test_several_columns_of_images_are_inputs_by_their_names(write: Write) -> None:
    text = "left,right,same\n" + "".join(
        f"p/{n}.png,p/{(n + 1) % 12}.png,{'yes' if n % 4 else 'no'}\n" for n in range(0, 12, 2)
    )
    source = opened(write(text) + ",image=left,image=right,label=same", eval_fraction=0.4)
    batch = source.train.read(np.arange(len(source.train)))
    assert {"left", "right"} < set(batch)
    number = batch["left"][:, 0, 0, 0] // 20
    np.testing.assert_array_equal(batch["right"][:, 0, 0, 0] // 20, (number + 1) % 12)
    np.testing.assert_array_equal(batch["label"], number % 4 // 2)


def test_numbers_beside_images_are_a_second_input(write: Write) -> None:
    text = "path,label,x1,x2,id\n" + "".join(f"p/{n}.png,{'ab'[n % 2]},{n},{n / 2},{n}\n" for n in range(12))
    said: list[str] = []
    source = opened(write(text) + ",image=path,features=x*", eval_fraction=0.3, say=said.append)
    batch = source.train.read(np.arange(3))
    np.testing.assert_array_equal(batch["features"][:, 0], batch["image"][:, 0, 0, 0] // 20)
    assert (batch["features"].shape, batch["features"].dtype) == ((3, 2), np.float32)
    assert "not used: id" in said[0]


def test_a_row_is_held_out_by_its_path_alone(write: Write) -> None:
    rows = [f"p/{n}.png,{'ab'[n % 2]}\n" for n in range(12)]
    first = opened(write("path,label\n" + "".join(rows)), eval_fraction=0.4)
    other = opened(write("path,label\n" + "".join(reversed(rows)), "back.csv"), eval_fraction=0.4)

    def paths(source: data.Source, part: data.Part) -> set[str]:
        return {source.train.images.name(number) for number in part.index}  # type: ignore[attr-defined]

    assert paths(first, first.eval) == paths(other, other.eval) != set()


def test_whole_numbers_are_asked_about_and_both_answers_work(write: Write) -> None:
    spec = write("path,label\n" + "".join(f"p/{n}.png,{n % 11}\n" for n in range(12)))
    assert "label=label:class if they are the names of classes, label=label:number if they are amounts" in refused(spec)
    amounts = opened(spec + ",label=label:number", eval_fraction=0.3)
    assert (amounts.classes, amounts.train.labels.dtype) == ((), np.float32)
    text = "path,label,split\n" + "".join(f"p/{n}.png,{n % 11},train\n" for n in range(12)) + "p/0.png,10,val\n"
    names = opened(write(text) + ",label=label:class")
    assert names.classes == tuple(map(str, range(11))), "10 comes after 9"


def test_a_changed_cell_changes_the_fingerprint(write: Write) -> None:
    seen = {opened(write(PARTS)).fingerprint()}
    for old, new in (("p/0.png,cat", "p/0.png,dog"), ("p/0.png", "p/11.png"), ("ant,train", "ant,val")):
        seen.add(opened(write(PARTS.replace(old, new, 1), "changed.csv")).fingerprint())
    assert len(seen) == 4


# ---- what is refused
BAD: dict[str, tuple[str, str, str]] = {
    "empty": ("", "", "the file is empty"),
    "header only": ("path,label\n", "", "there are no rows below the header"),
    "no label column": ("path,kind\np/0.png,a\n", "", "no column is called label; label=COLUMN names the one to learn; the columns are path, kind"),
    "no image column": ("img,label\np/0.png,a\n", "", "no column is called image, path or file"),
    "unknown column": (PARTS, ",label=lable", "label=lable: there is no such column; nearest: label; the columns are path, label, split"),
    "unknown option": (PARTS, ",lable=label", "`lable` is not an option; expected one of image, features, label"),
    "two for an image": ("path,file,label\np/0.png,p/1.png,a\n", "", "path and file could each be the image; image=path says which"),
    "one for two": (PARTS, ",image=path,label=path", "the column 'path' is used for two things"),
    "twice in the header": ("path,label,label\np/0.png,a,b\n", "", "the header names label twice"),
    "too few cells": ("path,label\np/0.png,a\np/1.png\n", "", "line 3 has 1 cells, but the header has 2"),
    "too many cells": ("path,label\np/0.png,a,b\n", "", "line 2 has 3 cells, but the header has 2; a cell with the delimiter"),
    "open quote": ('path,label\np/0.png,"a\np/1.png,b\n', "", "line 2 is not valid CSV (unexpected end of data)"),
    "missing files": (PARTS.replace("p/3", "q/3").replace("p/8", "q/8"), "", "2 of 12 files in the column path do not exist: q/3.png (line 5), q/8.png (line 10); paths are relative to"),
    "backslashes": (PARTS.replace("p/3", "p\\3"), "", "their names have \\ where / is expected"),
    "part": (PARTS.replace("val", "vall"), "", "line 8: split is 'vall'; expected train, val or test; nearest: val"),
    "two words for a part": (PARTS.replace("val", "dev").replace("8.png,ant,dev", "8.png,ant,Val"), "", "line 10: split: 'Val' and 'dev' (line 8) both mean the part val; whether they are one part is not known"),
    "no train": (PARTS.replace("train", "test"), "", "no row is of the part train, by the column split"),
    "class of the test part": (PARTS + "p/0.png,fox,test\n", "", "line 14: label 'fox' appears only in the part test"),
    "one class": ("path,label\np/0.png,a\np/1.png,a\n", "", "label has only one class, 'a'"),
    "empty labels": ("path,label\np/0.png,\np/1.png,\n", "", "the column label is empty, so there is nothing to learn"),
    "no label counts": ("path,label,weight\np/0.png,a,0\np/1.png,b,0\n", "", "no row of the training part has a label that counts"),
    "numbers and texts": ("path,label\np/0.png,1.5\np/1.png,old\n", "", "label has numbers, such as '1.5' on line 2, and texts, such as 'old' on line 3"),
    "NA among classes": (PARTS.replace("cat", "NA"), "", "line 2: label is 'NA': missing=NA if it means a missing label"),
    "nan among numbers": ("path,label\np/0.png,1.5\np/1.png,nan\n", "", "line 3: label is 'nan': missing=nan"),
    "bad number": ("path,label\np/0.png,1.5\np/1.png,2x\n", ",label=label:number", "line 3: label is '2x', which is not a number"),
    "decimal comma": ("path;label\np/0.png;1,5\n", ",label=label:number", "line 2: label is '1,5', which is not a number (decimals have a point)"),
    "infinite": ("path,label\np/0.png,1.5\np/1.png,inf\n", ",label=label:number", "line 3: label is 'inf', which is not a number (too large)"),
    "weight below zero": ("path,label,weight\np/0.png,a,-1\np/1.png,b,1\n", "", "line 2: weight is -1; a weight is at least 0"),
    "no weight": ("path,label,weight\np/0.png,a,\np/1.png,b,1\n", "", "line 2: weight is empty"),
    "weight of no label": (PARTS.replace("split", "weight"), ",weight=weight:age", "'age' is not a label; the labels are label"),
    "latin-1": ("", "", "line 2 is not UTF-8; save the file as UTF-8, or say what it is, such as encoding=latin-1"),
    "encoding": (PARTS, ",encoding=latin1x", "encoding='latin1x' is not the name of an encoding"),
    "binary": ("", "", "not a text file"),
    "delimiter": (PARTS, ",delimiter=ab", "delimiter='ab': expected comma, semicolon, tab, pipe, space, or one character"),
    "unclear delimiter": ("path;a,label\np/0.png;1,b\n", "", "the header could be divided by comma and semicolon; say which, as in delimiter=comma"),
    "reserved name": ("index,other,label\np/0.png,p/1.png,a\n", ",image=index,image=other", "image=index: a batch has something else of this name"),
    "nothing to standardise": (PARTS, ",standardise", "standardise: there are no features"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_its_line_and_the_way_out(write: Write, case: str) -> None:
    text, options, message = BAD[case]
    content: str | bytes = text
    if case == "latin-1":
        content = "path,label\np/0.png,café\np/1.png,b\n".encode("latin-1")
    if case == "binary":
        content = bytes(range(256)) * 4
    spec = write(content, "bad.csv")
    found = refused(spec + options)
    assert message in found
    assert found.startswith(f"data={spec}")


def test_what_cannot_be_a_file_is_refused(write: Write, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such file" in refused(f"csv:{folder}/none.csv")
    assert "it is a folder" in refused(f"csv:{folder}")
    assert "expected csv:FILE" in refused("csv:,label=a")
    assert "line 2 is not valid CSV (field larger than field limit" in refused(
        write("path,label\np/0.png," + "x" * 200_000 + "\n")
    )
    monkeypatch.setattr("engine.data.csv_file._LONGEST_LINE", 100)
    assert "line 2 has 100 characters or more" in refused(write("path,label\np/0.png," + "x" * 100 + "\n"))
    monkeypatch.setattr("engine.data.csv_file.LARGEST", 10)
    assert "the limit is 10 bytes" in refused(write(PARTS))


def test_a_text_that_means_a_missing_label_can_be_named(write: Write) -> None:
    source = opened(write(PARTS.replace("ant", "NA")) + ",missing=NA")
    assert source.classes == ("cat", "dog")
    assert source.train.read(np.arange(6))["weight"].tolist() == [1, 1, 0, 1, 1, 0]
    assert opened(write(PARTS.replace("ant", "NA")) + ",label=label:class").classes == ("NA", "cat", "dog")


def test_skipping_bad_images_leaves_out_rows_that_lack_a_file_or_hold_none(write: Write, folder: pathlib.Path) -> None:
    (folder / "p/broken.png").write_bytes(b"no image")
    text = PARTS + "p/broken.png,cat,train\np/gone.png,dog,train\n"
    assert "1 of 14 files" in refused(write(text))
    source = opened(write(text), bad_images="skip")
    assert (len(source.train), source.skipped) == (6, ("p/broken.png", "p/gone.png"))


def test_an_image_in_two_parts_is_told(write: Write) -> None:
    said: list[str] = []
    opened(write(PARTS + "p/0.png,cat,val\n"), say=said.append)
    assert "data: 1 images are in the training part and in val, so its figures are too good: p/0.png" in said


def pairs(*rows: tuple[int, int]) -> str:
    """A manifest of pairs of pictures; the label is whether the left one's number is even."""
    lines = [f"p/{left}.png,p/{right}.png,{'ab'[left % 2]}.\n" for left, right in rows]
    return "left,right,label\n" + "".join(lines)


PAIRED = ",image=left,image=right"


def numbers(part: data.Part) -> list[tuple[int, int]]:
    batch = part.read(np.arange(len(part)))
    return [
        (int(a), int(b)) for a, b in zip(batch["left"][:, 0, 0, 0] // 20, batch["right"][:, 0, 0, 0] // 20, strict=True)
    ]


def test_pairs_that_share_any_image_are_held_out_together(write: Write) -> None:
    rows = [(0, 1), (2, 0), (3, 2), (4, 5), (6, 5), (7, 8), (9, 7), (10, 11), (1, 3)]
    groups = [{0, 1, 2, 3}, {4, 5, 6}, {7, 8, 9}, {10, 11}]
    said: list[str] = []
    source = opened(write(pairs(*rows)) + PAIRED, eval_fraction=0.6, say=said.append)
    trained, held = ({each for pair in numbers(part) for each in pair} for part in (source.train, source.eval))
    assert trained & held == set()
    assert all(group <= trained or group <= held for group in groups)
    assert trained | held == set(range(12))
    line = "data: rows that share an image stay together when some are held out: 9 rows are 4 groups, the largest of 4 rows"
    assert line in said
    back = opened(write(pairs(*rows[::-1])) + PAIRED, eval_fraction=0.6)
    assert sorted(numbers(back.eval)) == sorted(numbers(source.eval)), "the order of rows does not matter"


def test_pairs_that_share_nothing_are_held_out_as_a_single_image_is(write: Write) -> None:
    rows = [(number, number + 6) for number in range(6)] * 2
    said: list[str] = []
    paired = opened(write(pairs(*rows)) + PAIRED, eval_fraction=0.4, say=said.append)
    alone = opened(write(pairs(*rows)) + ",image=left", eval_fraction=0.4)
    np.testing.assert_array_equal(paired.train.index, alone.train.index)
    assert not any("stay together" in line for line in said)


def test_pairs_of_which_too_many_belong_together_are_not_divided(write: Write) -> None:
    chain = [(number, (number + 1) % 12) for number in range(12)]
    found = refused(write(pairs(*chain)) + PAIRED, eval_fraction=0.3)
    assert "all 12 images of csv:" in found
    assert (
        "belong together, through the images that they share, so none can be held out by itself; mark rows as val"
        in found
    )
    shares = {number: share_of_name(f"p/{number}.png") for number in range(12)}
    low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    found = refused(
        write(pairs(*((low, number) for number in range(12) if number != high), (high, high))) + PAIRED,
        eval_fraction=0.4,
    )
    assert "this holds out 11 of the 12 rows" in found
    assert "because so many belong together through the images that they share" in found


def test_an_image_in_two_parts_as_another_input_is_told(write: Write) -> None:
    text = pairs((0, 1), (2, 3), (4, 0)).replace("label\n", "label,split\n").replace(".\n", ".,train\n")
    lines = text.splitlines()
    lines[3] = lines[3].replace("train", "val")
    lines += ["p/1.png,p/5.png,b.,train", "p/3.png,p/7.png,b.,val"]
    said: list[str] = []
    opened(write("\n".join(lines)) + PAIRED, say=said.append)
    assert (
        "data: 2 images are in the training part and in val, so its figures are too good: p/0.png and p/3.png" in said
    )
    assert not any("stay together" in line for line in said)


def test_holding_out_leaves_every_class_of_every_task(write: Write) -> None:
    text = "path,label,age\n" + "".join(f"p/{n}.png,{'b' if n == 5 else 'a'},{n}.5\n" for n in range(12))
    error = refused(write(text) + ",label=label,label=age", eval_fraction=0.99)
    assert "eval_fraction=0.99: this " in error
    assert "mark rows as val in a column split" in error


# ---- tables
TABLE = "x1,x2,label,split\n" + "".join(f"{n},{n * n},{'ab'[n % 2]},{'train' if n < 8 else 'val'}\n" for n in range(12))


def test_a_table_takes_every_other_column_as_a_feature(write: Write) -> None:
    source = vectors(write(TABLE, kind="table"))
    batch = source.train.read(np.arange(8))
    assert sorted(batch) == ["features", "index", "label"]
    np.testing.assert_array_equal(batch["features"], np.array([[n, n * n] for n in range(8)], np.float32))
    assert source.image_shape == (2,)
    unnamed = vectors(write("," + TABLE.replace("\n", "\n7,").removesuffix("7,"), kind="table"))
    assert unnamed.image_shape == (2,), "a column without a name is no feature"
    assert unnamed.fingerprint() == source.fingerprint()


def test_standardising_is_by_the_training_part_alone_and_told(write: Write) -> None:
    said: list[str] = []
    source = vectors(write(TABLE, kind="table") + ",standardise", say=said.append)
    rows = np.array([[n, n * n] for n in range(12)], np.float64)
    mean, deviation = rows[:8].mean(axis=0), rows[:8].std(axis=0)
    for part, own in ((source.train, rows[:8]), (source.eval, rows[8:])):
        expected = ((own - mean) / deviation).astype(np.float32)
        np.testing.assert_array_equal(part.read(np.arange(len(part)))["features"], expected)
    assert (
        said[-1]
        == "data: features standardised by the mean and deviation of the training part: x1 (3.5, 2.291) and x2 (17.5, 16.68)"
    )
    other = write("x1,x2,label\n1,1,a\n2,4,b\n3,9,a\n4,16,b\n", "new.csv", "table")
    place = source.name.split(":")[1].split(",")[0]
    found = data.source.open_undivided(  # type: ignore[attr-defined]
        f"{other},standardise={place}", image_size=None, bad_images="stop", image_cache=0, say=lambda line: None
    )
    np.testing.assert_array_equal(
        found.train.read([0])["features"], ((rows[1:2] - mean) / deviation).astype(np.float32)
    )
    whole = vectors(write(TABLE.replace(",val", ",train"), kind="table") + ",standardise", eval_fraction=0.25)
    np.testing.assert_allclose(whole.train.read(np.arange(9))["features"].mean(axis=0), 0, atol=1e-6)
    assert "no column split says which rows its training part is" in refused_vectors(f"{other},standardise={other[6:]}")


def refused_vectors(spec: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        vectors(spec, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TABLE.replace("3,9", "3,"), "", "line 5: x2 is empty (1 such cells); --nan=zero reads missing numbers as 0"),
        (TABLE.replace("3,9", "3,high"), "", "line 5: x2 is 'high', which is not a number"),
        (TABLE.replace("3,9", "3,NA"), "", "line 5: x2 is 'NA', which is not a number; missing=NA says that"),
        (TABLE.replace("3,9", "3,1e39"), "", "line 5: x2 is '1e39', which is not a number (too large)"),
        (TABLE, ",image=x1", "image=x1: a table has no images"),
        (TABLE, ",features=y*", "features=y*: there is no such column"),
        ("label\na\nb\n", "", "no column is left for features; the columns are label"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(write: Write, text: str, options: str, message: str) -> None:
    assert message in refused_vectors(write(text, kind="table") + options)


def test_the_numbers_of_a_table_are_held_against_the_memory_while_they_are_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = 200
    heading = ",".join([*(f"x{number}" for number in range(columns)), "label"])
    rows = [",".join([*["1"] * columns, "ab"[number % 2]]) for number in range(500)]
    spec = write("\n".join([heading, *rows, "no row"]), "wide.csv", "table")
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "100000")
    monkeypatch.setattr("engine.data.manifest_rows._CHECKED", 20_000)
    assert "its numbers takes 156 KiB, more than the 97.7 KiB that may be used; --memory_limit" in refused_vectors(spec)


def test_options_about_images_are_refused_for_vectors(write: Write) -> None:
    from engine.data.image_options import ImageOptions

    assert "these data have no images; leave out --image_size" in refused_vectors(
        write(TABLE, kind="table"), image_size=8
    )
    pad = ImageOptions(image_fit="pad")
    assert "leave out --image_fit" in refused_vectors(write(TABLE, kind="table"), images=pad)


def test_missing_numbers_are_zero_where_that_is_asked_for_and_the_mean_where_they_are_standardised(
    write: Write,
) -> None:
    from engine.data.image_options import ImageOptions

    zero = ImageOptions(nan="zero")
    source = vectors(write(TABLE.replace("3,9", "3,"), kind="table"), images=zero)
    assert source.train.read([3])["features"].tolist() == [[3, 0]]
    scaled = vectors(write(TABLE.replace("3,9", "3,"), kind="table") + ",standardise", images=zero)
    assert scaled.train.read([3])["features"][0, 1] == 0
    others = np.array([n * n for n in range(8) if n != 3], np.float64)
    found = scaled.train.read([2])["features"][0, 1]
    assert found == np.float32((4 - others.mean()) / others.std())


def test_arrays_of_vectors_are_read_from_an_npz_file(tmp_path: pathlib.Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 3
    np.savez(tmp_path / "t.npz", x=x, y=y, val_x=x[:4], val_y=y[:4], class_names=np.array(["a", "b", "c"]))
    source = vectors(f"table:{tmp_path / 't.npz'}")
    assert (source.classes, len(source.train), len(source.eval)) == (("a", "b", "c"), 20, 4)
    np.testing.assert_array_equal(source.train.read([3])["features"][0], x[3].astype(np.float32))
    np.savez(tmp_path / "f.npz", x=x, y=y / 2)
    assert vectors(f"table:{tmp_path / 'f.npz'},standardise").classes == ()
    for name, arrays, message in (
        ("no y", {"x": x}, "the file has no y; it has x"),
        ("rank", {"x": x[:, 0], "y": y}, "x is float64 [20]; expected numbers [n, D]"),
        ("nan", {"x": x * np.nan, "y": y}, "x holds NaN or infinity; --nan=zero"),
        ("length", {"x": x, "y": y[:3]}, "y is int64 [3] for 20 vectors"),
        ("negative", {"x": x, "y": y - 1}, "y[0]=-1 is out of range"),
        (
            "width",
            {"x": x, "y": y, "val_x": x[:, :2], "val_y": y},
            "val has x [20, 2] and y int64 [20], but train has [20, 3]",
        ),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert message in refused_vectors(f"table:{tmp_path / name}.npz")
    assert "an .npz file has no columns" in refused_vectors(f"table:{tmp_path / 't.npz'},label=y")


def test_columns_of_labels_in_arrays_have_the_names_of_the_file(tmp_path: pathlib.Path) -> None:
    arrays = {"x": np.ones([6, 2]), "y": np.eye(2)[np.arange(6) % 2] * 0.5}
    np.savez(tmp_path / "t.npz", **arrays, class_names=np.array(["red", "blue"]))
    source = data.open_data(f"table:{tmp_path}/t.npz", eval_fraction=0.5, say=lambda line: None)
    assert source.class_names == source.columns == ("red", "blue")
    np.savez(tmp_path / "t.npz", **arrays, class_names=np.array(["red", "blue", "green"]))
    with pytest.raises(DataError, match="class_names has 3 names for labels of 2 columns; expected one for each"):
        data.open_data(f"table:{tmp_path}/t.npz", say=lambda line: None)


def test_moments_are_those_of_a_training_part_or_none(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "old.npz", val_x=np.ones([6, 2]), val_y=np.arange(6) % 2)
    np.savez(tmp_path / "new.npz", x=np.ones([6, 2]), y=np.arange(6) % 2)
    given: dict[str, Any] = {"image_size": None, "bad_images": "stop", "image_cache": 0, "say": lambda line: None}
    with pytest.raises(
        DataError, match=r"standardise=.*old.npz: it has no x, the training part whose mean is asked for"
    ):
        open_undivided(f"table:{tmp_path}/new.npz,standardise={tmp_path}/old.npz", **given, to_train=False)
