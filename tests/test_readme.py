"""What the README shows works as printed."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.training import layers
from engine import data

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example_is_ten_lines_and_works_as_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data.open_data("fashion_mnist_mini")
    fewer = dataclasses.replace(source, train=source.train.take(np.arange(0, 4500, 3)))  # an epoch of a third
    monkeypatch.setattr(data, "open_source", {"fashion_mnist_mini": fewer}.__getitem__)
    (code,) = [block for block in python_blocks() if "compat_v1" not in block]
    assert len([line for line in code.splitlines() if line]) == 10
    assert "scripts" not in code
    exec(code, {})
    printed = capsys.readouterr().out
    assert "item 2 `@blocks[-2:]`" in printed
    assert re.search(r"loss [01]\.\d{3}, frozen variables that changed: \[\]", printed), printed


def test_the_tf1_example_works_as_printed() -> None:
    def build() -> Any:
        x = layers.layer_norm(layers.dense(tf.ones([2, 3]), 4, name="body"), name="head/norm")
        return tf.reduce_mean(tf.square(layers.dense(x, 2, name="head")))

    (code,) = [block for block in python_blocks() if "compat_v1" in block]
    names: dict[str, Any] = {"build": build, "optimizer": tf.compat.v1.train.AdamOptimizer(0.1)}
    with tf.Graph().as_default():
        exec(code, names)
    assert [variable.op.name for _, variable in names["gradients"].applied] == ["head/kernel", "head/bias"]


def test_the_commands_of_the_first_screen_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    for target in commands:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def flags_of(program: str) -> set[str]:
    files = [ROOT / f"scripts/{program}{end}.py" for end in ("", "_flags")]
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text)) | {"help", "helpfull"}


def test_every_flag_that_the_readme_names_exists() -> None:
    commands = re.findall(r"python -m scripts\.(\w+)((?:[^\n`]|\\\\\n)*)", README.replace("\\\n", " "))
    assert len(commands) > 12
    for program, words in commands:
        named = set(re.findall(r"--([a-z_]+)", words))
        assert named <= flags_of(program), program
    every = set().union(*(flags_of(program) for program, _ in commands))
    assert set(re.findall(r"--([a-z_]+)", README)) <= every


def test_files_that_the_readme_shows_are_there() -> None:
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).is_file(), name
