"""Chooses rules by their name, or by the names in a weights file."""

from __future__ import annotations

import functools
import os
import pathlib
import re

from engine.files import PathLike
from engine.porting.errors import PortError
from engine.porting.readers.source import TensorSource
from engine.porting.rules import language
from engine.porting.rules.language import Rules
from engine.selection.variables import ModelVariables
from engine.text import listed, nearest

_FOLDER = pathlib.Path(__file__).parent
OWN = "frostline"  # the rules for our own files, where names are the variables' paths


@functools.cache
def shipped_rules() -> dict[str, Rules]:
    """Returns name -> rules of every shipped rule file."""
    return {name: _shipped(name) for name in _shipped_paths()}


@functools.cache
def _shipped_paths() -> dict[str, pathlib.Path]:
    return {path.stem: path for path in sorted(_FOLDER.rglob("*.rules"))}


@functools.cache
def _shipped(name: str) -> Rules:
    return language.read_rules(_shipped_paths()[name])


@functools.cache
def _detecting(name: str) -> Rules:
    """Returns the lines of a shipped file that decide whether it fits a file; the others take longer to read."""
    lines = _shipped_paths()[name].read_text().splitlines()
    return language.parse_rules("\n".join(line for line in lines if re.match("detect|prefix", line)), name=name)


def get_rules(rules: Rules | PathLike) -> Rules:
    """Returns rules as given, from a file, or from a shipped file by its name; raises PortError if there is none."""
    if isinstance(rules, Rules):
        return rules
    text = os.fspath(rules)
    if text.removesuffix(".rules") in _shipped_paths() and not pathlib.Path(text).is_file():
        return _shipped(text.removesuffix(".rules"))
    if not pathlib.Path(text).exists():
        known = list(_shipped_paths())
        raise PortError(
            f"rules={text}: there is no such file; the shipped rules are {', '.join(known)}{nearest(text, known)}"
        )
    return language.read_rules(text)


def choose_rules(source: TensorSource, variables: ModelVariables) -> Rules:
    """Returns the shipped rules whose ``detect`` lines all match a tensor; our own where names are variable paths.

    Of several, those remain whose rules all match a variable, since one checkpoint may be for more than one network.
    Raises PortError, with the first names of both sides and the shipped files, if no rules or several fit.
    """
    names = source.names()
    fits = [name for name in _shipped_paths() if (d := _detecting(name)).detect and _fits(d, names)]
    found = [_shipped(name) for name in fits]
    if len(found) > 1:
        found = [rules for rules in found if _is_for(rules, variables)] or found
    if len(found) == 1:
        return found[0]
    ours = {path for entry in variables for path in entry.paths}
    if not found and ours & {_shipped(OWN).without_prefix(name) for name in names}:
        return _shipped(OWN)
    fitting = ", ".join(rules.name for rules in found)
    how = f"{len(found)} rule files match ({fitting})" if found else "no rule file matches"
    raise PortError(
        f"{source.path}: {how} its names; say with --rules=FILE which tensor becomes which variable "
        "(`frostline port-checkpoint --auto` proposes such a file)"
        + listed("in the file", [f"{name} {list(source.shape(name))}" for name in names], most=5)
        + listed("in the model", [f"{entry.path} {list(entry.variable.shape)}" for entry in variables], most=5)
        + f"\n  shipped rule files: {', '.join(_shipped_paths())}"
    )


def _is_for(rules: Rules, variables: ModelVariables) -> bool:
    paths = {path for entry in variables for path in entry.paths}
    return all(rule.optional or any(rule.pattern.fullmatch(path) for path in paths) for rule in rules.rules)


def _fits(rules: Rules, names: list[str]) -> bool:
    short = [rules.without_prefix(name) for name in names]
    return all(any(line.pattern.fullmatch(name) for name in short) for line in rules.detect)


def find_fitting(source: TensorSource, more: tuple[pathlib.Path, ...] = ()) -> dict[pathlib.Path, Rules]:
    """Returns the shipped rule files whose ``detect`` lines all match a tensor, for whatever model, and those of ``more``."""
    names = source.names()
    shipped = {path: shipped_rules()[path.stem] for path in sorted(_FOLDER.rglob("*.rules"))}
    every = shipped | {path: language.read_rules(path) for path in more}
    return {path: rules for path, rules in every.items() if rules.detect and _fits(rules, names)}
