"""docs/extending.md: the parts that it shows pass their kits, and train, as printed."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable

import pytest

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs/extending.md").read_text(encoding="utf-8")
TEST, *PARTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def my_parts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The file my_parts.py of the page, in the working directory."""
    (tmp_path / "my_parts.py").write_text("\n".join(PARTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


def command(start: str) -> list[str]:
    """The words of the command on the page that begins so."""
    text = PAGE[PAGE.index(f"    {start}") :].partition("\n\n")[0].replace("\\\n", " ")
    return shlex.split(text)[2:]


def test_each_part_is_at_most_20_lines() -> None:
    for part in PARTS:
        body = re.sub(r"\A.*?(?=^(@|class |def ))", "", part, flags=re.DOTALL | re.MULTILINE)
        assert len([line for line in body.splitlines() if line.strip()]) <= 20, part


@pytest.mark.usefixtures("my_parts")
def test_the_parts_pass_their_kits() -> None:
    names: dict[str, Callable[[], None]] = {}
    exec(TEST, names)
    names["test_my_parts"]()


def test_the_parts_train_together(my_parts: pathlib.Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(
        *command("frostline finetune --data=py:my_parts"), "--out=run", "--log_every=1", "--keep_best"
    )
    assert code == 0, err
    final = json.loads((my_parts / "run/run.json").read_text())["final"]
    assert final["eval_worst_recall"] == 1.0
    assert final["eval_f1"] == 1.0
    assert "evaluation worst_recall: " in out
