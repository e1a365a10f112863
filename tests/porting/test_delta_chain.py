"""BASE+DELTA as a text: a path may contain plus signs, and what exists decides."""

from __future__ import annotations

import pathlib

import pytest

from engine.errors import InputError
from engine.porting.deltas.chain import Chain, parse_chain


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npz", "b.npz", "c++/d.npz", "x+y.npz", "old.ckpt.index", "v1.ckpt-00000-of-00002"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("auto", ["auto"]),
        ("a.npz+b.npz", ["a.npz", "b.npz"]),
        ("auto+a.npz+b.npz", ["auto", "a.npz", "b.npz"]),
        ("imagenet+c++/d.npz", ["imagenet", "c++/d.npz"]),
        ("c++/d.npz+a.npz", ["c++/d.npz", "a.npz"]),
        ("x+y.npz", ["x+y.npz"]),
        ("x+y.npz+x+y.npz", ["x+y.npz", "x+y.npz"]),
        ("old.ckpt+a.npz", ["old.ckpt", "a.npz"]),
        ("v1.ckpt+a.npz", ["v1.ckpt", "a.npz"]),
        ("missing.npz", ["missing.npz"]),
    ],
)
def test_what_exists_decides_where_a_text_is_split(here: pathlib.Path, text: str, parts: list[str]) -> None:
    assert parse_chain(text) == Chain(parts[0], tuple(parts[1:]))
    assert parse_chain(pathlib.Path(text)) == Chain(parts[0], tuple(parts[1:]))


def test_what_is_missing_or_has_two_meanings_is_told(here: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"nor, read as BASE\+DELTA, 'no.npz'$"):
        parse_chain("a.npz+no.npz")
    (here / "run").mkdir()
    (here / "run/trained.npz").touch()
    with pytest.raises(InputError, match=r"the delta of a run is its file run/trained\.npz$"):
        parse_chain("a.npz+run")
    with pytest.raises(InputError, match="expected a file before the plus sign"):
        parse_chain("+a.npz")
    with pytest.raises(InputError, match="nor, read as"):
        parse_chain("+".join("ab" * 30))
    (here / "a.npz+b.npz").touch()
    with pytest.raises(InputError, match=r"it means 'auto' \+ 'a.npz\+b.npz' and 'auto' \+ 'a.npz' \+ 'b.npz'"):
        parse_chain("auto+a.npz+b.npz")
