"""Names of the user's own code in flags: what is imported, and what is said when it cannot be."""

from __future__ import annotations

import pathlib

import pytest

from engine.errors import InputError
from engine.outside_names import call_named, import_function, import_named

CODE = """
limit = 3
def twice(x):
    return 2 * x
def broken():
    raise SystemExit("stop\\nhere")
"""


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    (tmp_path / "own_names_of_a_test.py").write_text(CODE)
    (tmp_path / "own_names_that_raise.py").write_text("import sys\nsys.exit('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_names_of_a_test"


def test_a_name_is_imported_from_the_working_directory(module: str) -> None:
    assert import_named("metric", f"py:{module}:limit") == 3
    assert import_function("loss", f"py:{module}:twice")(4) == 8
    assert import_function("loss", f"py:{module}:twice weight=2", name=f"{module}:twice")(4) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("py:{}:tvice", "loss='py:.*:tvice': .* has no 'tvice'; nearest: twice"),
        ("py:{}:limit", "loss='.*': .*:limit is an int; expected a function that can be called"),
        ("py:{}", "is not a valid function; expected py:module:function"),
        ("py:own_names_that_raise:x", "importing own_names_that_raise raised SystemExit: no"),
        ("py:own_names_nowhere:x", "importing own_names_nowhere raised ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_in_a_name_is_told_with_its_flag(module: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_function("loss", text.format(module))


def test_what_the_users_function_raises_is_told_on_one_line(module: str) -> None:
    broken = import_function("loss", f"py:{module}:broken")
    with pytest.raises(InputError, match=r"loss=.py:x.: it raised SystemExit: stop here$"):
        call_named("loss", "py:x", broken)
