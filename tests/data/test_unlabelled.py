"""Texts and tables without labels: what is read of them, by which names, and what is refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from engine.data.part import DataError
from engine.data.unlabelled import find_table, find_texts, open_table, open_texts


def texts(given: str, said: list[str] | None = None, **more: Any) -> list[tuple[Any, Any]]:
    asked: dict[str, Any] = {"columns": ("text",), "count": 1, "source": "text:a.tsv", "say": (said or []).append}
    found = open_texts(given, **asked | more)
    rows = list(found.read())
    assert len(rows) == found.count
    assert rows == list(found.read()), "it can be read again"
    return rows


def write(file: pathlib.Path, text: str) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_texts_come_with_the_number_of_their_line_or_the_name_of_their_file(tmp_path: pathlib.Path) -> None:
    lines = write(tmp_path / "a.txt", "\ufeffone, two\r\n\n  three\n")
    assert texts(str(lines)) == [(1, "one, two"), (3, "  three")]
    table = write(tmp_path / "a.csv", 'id,text,label\n1,"one\ntwo",x\n\n2,three,\n')
    assert texts(str(table)) == [(2, "one\ntwo"), (5, "three")], "labels are ignored, also empty ones"
    objects = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"n": n, "text": f"t{n}"}) for n in range(2)))
    assert texts(str(objects)) == [(1, "t0"), (2, "t1")]
    for name in ("d/10.txt", "d/9.txt", "d/more/1.txt", "d/.hidden.txt", "d/notes.md"):
        write(tmp_path / name, f"{name}\n")
    found = texts(f"{tmp_path}/d")
    assert [str(key.relative_to(tmp_path)) for key, _ in found] == ["d/9.txt", "d/10.txt", "d/more/1.txt"]
    assert found[0][1] == "d/9.txt\n"


def test_columns_go_by_the_names_of_the_run_or_as_they_are_given(tmp_path: pathlib.Path) -> None:
    pairs = write(tmp_path / "p.tsv", 'b\tlabel\ta\n"x"\t1\ty\n')
    assert texts(str(pairs), columns=("a", "b"), count=2) == [(2, ("y", '"x"'))]
    assert texts(str(pairs), columns=("a",), source="text:q.tsv,quotes=yes") == [(2, "y")]
    assert texts(str(pairs), columns=("b",), source="text:q.tsv,quotes=yes") == [(2, "x")], (
        "quotes as in the run's own files"
    )
    assert texts(f"{pairs},quotes=no", columns=("b",), source="text:q.tsv,quotes=yes") == [(2, '"x"')]
    bare = write(tmp_path / "q.csv", "1,good film\n2,bad film\n")
    assert texts(str(bare), columns=("2",)) == [(1, "good film"), (2, "bad film")]
    assert texts(f"{bare},header=yes", columns=("2",)) == [(2, "bad film")]
    semicolons = write(tmp_path / "r.dat", "text;n\ngood, film;1\n")
    assert texts(f"{semicolons},delimiter=semicolon") == [(2, "good, film")]


def test_texts_that_cannot_be_told_are_refused(tmp_path: pathlib.Path) -> None:
    table = write(tmp_path / "a.csv", "texts,label\ngood,x\n")
    lines, empty = write(tmp_path / "a.txt", "good\n"), write(tmp_path / "e.txt", "\n\n")
    write(tmp_path / "d/a.md", "good")
    long = write(tmp_path / "b.csv", "text,label\ngood,x\nbad\n")
    for given, more, message in (
        (table, {}, r"text=text: there is no such column; .* names texts and label; nearest: texts"),
        (table, {"columns": ()}, r"which column is the text\? .* 1: 'texts', 2: 'label'; --text_columns=label says"),
        (table, {"columns": ("texts",), "count": 2}, r"text_columns=texts: the model takes two texts .* expected 2"),
        (lines, {"count": 2}, r"takes two texts for an example, and a \.txt file has one"),
        (empty, {}, "there is no text in the file"),
        (f"{lines},header=yes", {}, r"header: a \.txt file has one text a line; leave it out"),
        (f"{table},label=x", {}, "label: it takes the options header, quotes and delimiter alone"),
        (f"{tmp_path}/d", {}, r"there are no \.txt files"),
        (f"{tmp_path}/a.cvs", {}, r"there is no such file; nearest: a\.csv"),
        (write(tmp_path / "a.md", "x"), {}, r"expected a name that ends in \.txt, \.tsv.*or a folder of \.txt files"),
        (long, {}, r"b\.csv: line 3 has 1 cells"),
    ):
        with pytest.raises(DataError, match=message):
            texts(str(given), **more)
    (tmp_path / "l.txt").write_bytes("gut für\n".encode("latin1"))
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        texts(f"{tmp_path}/l.txt")
    assert find_texts(str(lines)).path == lines


def table(given: str, said: list[str] | None = None, **more: Any) -> tuple[list[Any], np.ndarray]:
    asked: dict[str, Any] = {"columns": ("a", "b"), "count": 2, "source": "table:t.csv", "nan": "stop"}
    asked["say"] = [].append if said is None else said.append
    found = open_table(given, **asked | more)
    keys, values = zip(*found.read(), strict=True)
    assert len(keys) == found.count
    return list(keys), np.stack(values)


def test_features_are_found_by_their_names_and_arrays_by_their_number(tmp_path: pathlib.Path) -> None:
    file, said = write(tmp_path / "a.tsv", "id\tb\tlabel\ta\n7\t1.5\tx\t2\n\n8\t3\t\t4\n"), list[str]()
    keys, values = table(str(file), said)
    assert keys == [2, 4]
    assert values.dtype == np.float32
    assert values.tolist() == [[2, 1.5], [4, 3]]
    assert said == ["table: not used: id and label"]
    np.savez(tmp_path / "a.npz", x=values.astype(np.float64), y=[0, 1])
    said.clear()
    keys, found = table(f"{tmp_path}/a.npz", said)
    assert keys == [0, 1]
    np.testing.assert_array_equal(found, values)
    assert any("not read: y" in line for line in said)
    assert any("taken in the order of the run: a and b" in line for line in said)
    bare = write(tmp_path / "b.csv", "u,v\n1,2\n")
    assert table(str(bare), said, columns=())[1].tolist() == [[1, 2]]
    assert "are not recorded, so these are taken in their order: u and v" in said[-1]
    assert table(f"{file},features=b,features=a", columns=())[1].tolist() == [[1.5, 2], [3, 4]]


def test_a_column_is_used_once_also_where_two_features_of_the_run_have_equal_names(tmp_path: pathlib.Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    file = write(tmp_path / "a.csv", f"{composed},b,{decomposed}\n1,2,3\n")
    assert table(str(file), columns=(composed, "b", decomposed))[1].tolist() == [[1, 2, 3]]
    for columns, message in (
        ((decomposed, "b", composed), "the file has .* twice"),
        (("b", composed, "b"), "the file has .* twice"),
        (("b", "b", "b"), "two features are called 'b' where the model or the data name them"),
    ):
        with pytest.raises(DataError, match=message):
            table(str(file), columns=columns)


def test_missing_numbers_are_what_they_were_in_the_run(tmp_path: pathlib.Path) -> None:
    file, said = write(tmp_path / "a.csv", "a,b\n1,NA\n,2\n"), list[str]()
    with pytest.raises(DataError, match=r"line 2: b is 'NA', which is not a number; missing=NA says"):
        table(str(file), nan="zero")
    for given, source in ((f"{file},missing=NA", "table:t.csv"), (str(file), "csv:t.csv,features=*,missing=NA")):
        _, values = table(given, said, nan="zero", source=source)
        np.testing.assert_array_equal(values, [[1, np.nan], [np.nan, 2]])
        assert said.pop() == "data: 2 missing numbers are read as 0"
        with pytest.raises(DataError, match=r"line 2: b is empty \(2 such cells\); the model was trained without"):
            table(given, source=source)


def test_tables_that_do_not_fit_are_refused(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "a.csv", "a,b_,label\n1,2,3\n")
    np.savez(tmp_path / "a.npz", x=np.zeros([2, 3]))
    np.savez(tmp_path / "b.npz", X=np.zeros([2, 2]))
    np.savez(tmp_path / "c.npz", x=[[np.nan, 1]])
    for given, more, message in (
        (file, {}, r"trained on the features a and b; the file lacks b; nearest: b_"),
        (
            file,
            {"columns": ()},
            r"takes 2 features, .* and the file has 3 columns \(a, b_, label\); name those .* features=COLUMN",
        ),
        (f"{file},features=a,features=b_", {}, "the run names its features, which are found by them; leave it out"),
        (f"{file},label=label", {}, "label: it takes the options features, missing, delimiter and encoding alone"),
        (f"{file},standardise", {}, "standardise: it takes the options"),
        (f"{tmp_path}/a.npz", {}, "x has 3 columns; the model takes 2"),
        (f"{tmp_path}/b.npz", {}, "the file has no x; it has X"),
        (f"{tmp_path}/c.npz", {}, "x holds NaN or infinity; the model was trained without missing numbers"),
        (f"{tmp_path}/a.npz,missing=NA", {}, "missing: it is about a table of text, and an .npz file is none"),
        (tmp_path, {}, r"it is a folder; expected a file \.csv, \.tsv or \.npz"),
        (f"{tmp_path}/a.cvs", {}, r"there is no such file; nearest: a\.csv"),
    ):
        with pytest.raises(DataError, match=message):
            table(str(given), **more)
    assert find_table(str(file)).file == str(file)
