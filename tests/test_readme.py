"""What the README shows works as printed."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from engine import data

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_is_ten_lines_and_works_as_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data.open_source("fashion_mnist_mini")
    fewer = dataclasses.replace(source, train=source.train.take(np.arange(0, 4500, 3)))  # an epoch of a third
    monkeypatch.setattr(data, "open_source", {"fashion_mnist_mini": fewer}.__getitem__)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10
    assert "scripts" not in code
    exec(code, {})
    printed = capsys.readouterr().out
    assert "item 2 `@blocks[-2:]`" in printed
    assert re.search(r"loss [01]\.\d{3}, frozen variables that changed: \[\]", printed), printed


def test_the_commands_of_the_first_screen_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    for target in commands:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_flag_that_the_readme_names_exists() -> None:
    from absl import flags

    from scripts import finetune_flags

    known = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[finetune_flags.__name__]}
    named = set(re.findall(r"--([a-z_]+)", README)) - {"helpfull"}
    assert named <= known
    assert len(named) > 5


def test_files_that_the_readme_shows_are_there() -> None:
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).is_file(), name
