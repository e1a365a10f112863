"""Rows of text files: which column is what, and what is not a row."""

from __future__ import annotations

import json
import pathlib

import pytest

from engine.data import text_files
from engine.data.part import DataError
from engine.data.text_files import Columns, read_rows


def write(folder: pathlib.Path, name: str, text: str | bytes) -> pathlib.Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def rows(file: pathlib.Path, **columns: str | bool) -> list[tuple[str, str | None, str]]:
    return [(row.text, row.second, row.label) for row in read_rows(file, Columns(**columns))[1]]  # type: ignore[arg-type]


def test_columns_go_by_usual_names_by_given_names_or_by_numbers(tmp_path: pathlib.Path) -> None:
    named = write(tmp_path, "a.tsv", "id\tLabel\tText\n1\tham\thello\n\n2\tspam\tbuy it\n")
    expected = [("hello", None, "ham"), ("buy it", None, "spam")]
    assert rows(named) == expected
    assert rows(named, text="Text", label="Label") == expected
    assert rows(named, text="3", label="2") == expected  # the first line is one of names, and not an example
    bare = write(tmp_path, "b.tsv", "ham\tx\thello\nspam\ty\tbuy it\n")
    assert rows(bare, text="3", label="1") == expected
    two = write(tmp_path, "c.csv", 'hello,ham\n"buy it",spam\n')
    assert rows(two, label="2") == expected
    assert rows(two, text="1", label="2", header=True) == expected[1:]
    pairs = write(tmp_path, "d.tsv", "sentence1\tsentence2\tlabel\na\tb\t1\n")
    assert rows(pairs) == [("a", "b", "1")]


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.tsv", "id\tlabel\ttext\n1\tham\thello\n", {"text": "text", "label": "text"}),
        ("a.tsv", "id\tlabel\ttext\n1\tham\thello\n", {"text": "3", "label": "text"}),
        ("a.csv", "first,second,label\na,b,1\n", {"text": "first", "text_b": "first", "label": "label"}),
        ("a.jsonl", '{"text": "hello", "label": "ham"}\n', {"text": "text", "label": "text"}),
    ],
)
def test_one_column_is_not_two_things(tmp_path: pathlib.Path, name: str, text: str, asked: dict[str, str]) -> None:
    with pytest.raises(DataError, match=rf"{name}: text=\w+, \w+=\w+: they are the same column; expected two columns"):
        read_rows(write(tmp_path, name, text), Columns(**asked))  # type: ignore[arg-type]


def test_quotes_are_read_in_comma_separated_values_alone(tmp_path: pathlib.Path) -> None:
    comma = write(tmp_path, "a.csv", 'text,label\r\n"one, ""two""\nthree",x\r\n')
    assert rows(comma) == [('one, "two"\nthree', None, "x")]
    tab = write(tmp_path, "a.tsv", 'text\tlabel\n"so" he said\tx\n "open\ty\n')
    assert rows(tab) == [('"so" he said', None, "x"), (' "open', None, "y")]
    quoted = write(tmp_path, "b.tsv", 'text\tlabel\n"one\ttwo"\tx\n')
    with pytest.raises(DataError, match=r"b\.tsv: line 2 has 3 cells, but the first line has 2; .* quotes=yes"):
        rows(quoted)
    assert rows(quoted, quotes=True) == [("one\ttwo", None, "x")]
    with pytest.raises(
        DataError, match=r"a\.csv: line 2 is not valid CSV .*; if a double quote is a character.* quotes=no"
    ):
        rows(write(tmp_path, "a.csv", 'text,label\n"so" he said,x\n'))


def test_json_lines_have_an_object_each(tmp_path: pathlib.Path) -> None:
    good = [{"text": "hello", "label": "ham"}, {"label": True, "text": "buy it", "more": []}, {"text": "x", "label": 3}]
    file = write(tmp_path, "a.jsonl", "\ufeff" + "\n".join(map(json.dumps, good)))
    assert rows(file) == [("hello", None, "ham"), ("buy it", None, "true"), ("x", None, "3")]
    for line, message in (
        ('{"text": "x"}', r"line 2: it has no 'label'; it has text"),
        ('{"text": null, "label": 1}', r"line 2: 'text' is null; expected a text or a number"),
        ('{"text": "x", "label": ["a", "b"]}', r"line 2: 'label' is \[\"a\", \"b\"\]; expected a text or a number"),
        ('{"text": "\\ud800", "label": 1}', "half of a surrogate pair"),
        ('["x", 1]', "line 2 is list; expected an object"),
        ("{", "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ):
        with pytest.raises(DataError, match=message):
            rows(write(tmp_path, "b.jsonl", json.dumps(good[0]) + "\n" + line))
    with pytest.raises(DataError, match="one object a line, not a list"):
        rows(write(tmp_path, "c.json", "[\n{}]"))


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        (
            "a.tsv",
            "ham\tx\thello\n",
            {},
            r"which column is the text\? The first line has 1: 'ham', .* ,text=3,label=1 ",
        ),
        ("a.tsv", "ham\tx\thello\n", {"text": "3"}, r"which column is the label\?"),
        ("a.tsv", "text\tlabel\tclass\nx\ty\tz\n", {}, r"which column is the label\?"),
        ("a.csv", "ham;hello\nspam;buy\n", {}, "add delimiter="),
        ("a.csv", "text,label\nx,y\n", {"text": "txet"}, "text=txet: there is no such column; .*; nearest: text"),
        ("a.csv", "text,text,label\nx,y,z\n", {"text": "text"}, "2 columns are called 'text'; give the number of one"),
        ("a.csv", "x,y\n", {"text": "1", "label": "3"}, "label=3: expected the number of a column, 1 to 2"),
        ("a.csv", "x,y\n", {"text": "0", "label": "1"}, "text=0: expected the number of a column, 1 to 2"),
        ("a.csv", "", {}, "the file is empty"),
        ("a.jsonl", "\n", {}, "the file is empty"),
        ("a.csv", b"text,label\ncaf\xe9,x\n", {}, "line 2 is not UTF-8; .*latin-1"),
        ("a.csv", "text,label\nx,y\n".encode("utf-16"), {}, "UTF-16 text; save it as UTF-8"),
    ],
)
def test_what_is_not_clear_or_not_valid_is_refused(
    tmp_path: pathlib.Path, name: str, content: str | bytes, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows(write(tmp_path, name, content), **columns)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_MOST", 1000)
    with pytest.raises(DataError, match="line 1 has 1,000 characters or more"):
        rows(write(tmp_path, "a.tsv", "x" * 1000))
    with pytest.raises(DataError, match="field larger than field limit"):
        rows(write(tmp_path, "a.csv", '"' + "xxxx\n" * 1000))
    with pytest.raises(DataError, match="a folder; expected a regular file"):
        rows(tmp_path)
