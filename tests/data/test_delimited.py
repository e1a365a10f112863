"""Delimited text has one reader: lines, quotes, ends and limits, with the number of the line in every complaint."""

from __future__ import annotations

import ast
import pathlib
from typing import Any

import pytest

import engine
from engine.data.delimited import Delimited, find_encoding
from engine.errors import InputError


def reader(folder: pathlib.Path, content: bytes, **given: Any) -> Delimited:
    path = folder / "a.csv"
    path.write_bytes(content)
    return Delimited(about="about", path=path, **given)


def rows(file: Delimited) -> list[tuple[int, list[str]]]:
    return [tuple(row) for row in file.rows()]  # type: ignore[misc]


def test_a_row_has_the_line_on_which_it_begins_with_and_without_quotes(tmp_path: pathlib.Path) -> None:
    content = b'a,b\n\n"x\ny", z\n  ,\nlast,"q ""q"""\n'
    assert rows(reader(tmp_path, content)) == [(1, ["a", "b"]), (3, ["x\ny", " z"]), (6, ["last", 'q "q"'])]
    plain = rows(reader(tmp_path, content, quotes=False))
    assert plain == [(1, ["a", "b"]), (3, ['"x']), (4, ['y"', " z"]), (5, ["  ", ""]), (6, ["last", '"q ""q"""'])]


def test_every_end_of_a_line_counts_or_the_line_feed_alone(tmp_path: pathlib.Path) -> None:
    content = b"a,b\r\nc,d\re,f\n"
    assert rows(reader(tmp_path, content)) == [(1, ["a", "b"]), (2, ["c", "d"]), (3, ["e", "f"])]
    alone = rows(reader(tmp_path, content, newline="\n", quotes=False))
    assert alone == [(1, ["a", "b"]), (2, ["c", "d\re", "f"])]


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (b"a\nb\ncaf\xe9\n", {"other_encoding": "do this"}, "about: line 3 is not UTF-8; do this"),
        (b'a,b\n"c\nd\n', {"other_quotes": "; or that"}, r"about: line 2 is not valid CSV \(.*\); or that"),
        (b"a\n" + b"x" * 50, {"longest_line": 20}, "about: line 2 has 20 characters or more; is it a file of rows"),
        (b"a\n" + b"x" * 50, {"longest_cell": 20}, r"about: line 2 is not valid CSV \(field larger than field limit"),
    ],
)
def test_what_is_wrong_has_its_line_and_the_way_out(
    tmp_path: pathlib.Path, content: bytes, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rows(reader(tmp_path, content, **given))


def test_a_row_of_another_width_is_named_and_what_is_no_file_too(tmp_path: pathlib.Path) -> None:
    file = reader(tmp_path, b"a,b\nc\nd,e,f\n")
    short, long = list(file.rows())[1:]
    with pytest.raises(InputError, match=r"about: line 2 has 1 cells, but the header has 2$"):
        file.check_width(short, 2, "the header", "; a hint")
    with pytest.raises(InputError, match="about: line 3 has 3 cells, but the first line has 2; a hint"):
        file.check_width(long, 2, "the first line", "; a hint")
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match=r"^about: (it is a folder|cannot be read)"):
            list(Delimited(about="about", path=path).lines())


def test_the_first_bytes_say_the_encoding() -> None:
    found = [find_encoding(start) for start in (b"a,b", b"\xef\xbb\xbfa", b"\xff\xfea\0", b"\xfe\xff\0a", b"a\0b", b"")]
    assert found == ["utf-8-sig", "utf-8-sig", "utf-16", "utf-16", None, "utf-8-sig"]


def test_nothing_else_in_the_engine_reads_delimited_text() -> None:
    root = pathlib.Path(engine.__file__).parent
    readers = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("reader", "DictReader")
        and ast.unparse(node.value) == "csv"
    ]
    assert readers == ["data/delimited.py"]
