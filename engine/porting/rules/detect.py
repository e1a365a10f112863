"""Chooses the rules: by name, or by the names in the file."""

from __future__ import annotations

import functools
import os
import pathlib

from engine.files import PathLike
from engine.porting.errors import PortError
from engine.porting.readers.source import TensorSource
from engine.porting.rules import language
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables
from engine.text import listed, nearest

_FOLDER = pathlib.Path(__file__).parent
OWN = "frostline"  # names are the variables' paths


@functools.cache
def shipped() -> dict[str, Rules]:
    """Name -> rules of every shipped rule file."""
    return {path.stem: language.read(path) for path in sorted(_FOLDER.glob("*.rules"))}


def named(rules: Rules | PathLike) -> Rules:
    """Rules as given, from a file, or a shipped file's name.

    Raises:
        PortError: there is no such file and no such name, or it says nothing sensible.
    """
    if isinstance(rules, Rules):
        return rules
    text = os.fspath(rules)
    if text.removesuffix(".rules") in shipped() and not pathlib.Path(text).is_file():
        return shipped()[text.removesuffix(".rules")]
    if not pathlib.Path(text).is_file():
        known = list(shipped())
        raise PortError(f"rules={text}: no such file; shipped are {', '.join(known)}{nearest(text, known)}")
    return language.read(text)


def choose(source: TensorSource, variables: ModelVariables) -> Rules:
    """The shipped rules whose ``detect`` lines all find a tensor; our own when names are variable paths.

    Raises:
        PortError: none or several; lists the first names of both sides and the shipped files.
    """
    names = source.names()
    found = [rules for rules in shipped().values() if rules.detect and _fits(rules, names)]
    if len(found) == 1:
        return found[0]
    ours = {path for entry in variables for path in entry.paths}
    if not found and ours & {shipped()[OWN].without_prefix(name) for name in names}:
        return shipped()[OWN]
    how = f"{len(found)} rule files fit ({', '.join(rules.name for rules in found)})" if found else "no rule file fits"
    raise PortError(
        f"{source.path}: {how} its names; --rules=FILE says what becomes what"
        + listed("in the file", [f"{name} {list(source.shape(name))}" for name in names], most=5)
        + listed("in the model", [f"{entry.path} {list(entry.variable.shape)}" for entry in variables], most=5)
        + f"\n  shipped rule files: {', '.join(shipped())}"
    )


def _fits(rules: Rules, names: list[str]) -> bool:
    short = [rules.without_prefix(name) for name in names]
    return all(any(line.pattern.fullmatch(name) for name in short) for line in rules.detect)
