"""Chooses rules by their name, or by the names in a weights file."""

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
OWN = "frostline"  # the rules for our own files, where names are the variables' paths


@functools.cache
def shipped_rules() -> dict[str, Rules]:
    """Returns name -> rules of every shipped rule file."""
    return {path.stem: language.read_rules(path) for path in sorted(_FOLDER.glob("*.rules"))}


def get_rules(rules: Rules | PathLike) -> Rules:
    """Returns rules as given, from a file, or from a shipped file by its name; raises PortError if there is none."""
    if isinstance(rules, Rules):
        return rules
    text = os.fspath(rules)
    if text.removesuffix(".rules") in shipped_rules() and not pathlib.Path(text).is_file():
        return shipped_rules()[text.removesuffix(".rules")]
    if not pathlib.Path(text).exists():
        known = list(shipped_rules())
        raise PortError(
            f"rules={text}: there is no such file; the shipped rules are {', '.join(known)}{nearest(text, known)}"
        )
    return language.read_rules(text)


def choose_rules(source: TensorSource, variables: ModelVariables) -> Rules:
    """Returns the shipped rules whose ``detect`` lines all match a tensor; our own where names are variable paths.

    Raises PortError, with the first names of both sides and the shipped files, if no rules or several fit.
    """
    names = source.names()
    found = [rules for rules in shipped_rules().values() if rules.detect and _fits(rules, names)]
    if len(found) == 1:
        return found[0]
    ours = {path for entry in variables for path in entry.paths}
    if not found and ours & {shipped_rules()[OWN].without_prefix(name) for name in names}:
        return shipped_rules()[OWN]
    fitting = ", ".join(rules.name for rules in found)
    how = f"{len(found)} rule files match ({fitting})" if found else "no rule file matches"
    raise PortError(
        f"{source.path}: {how} its names; say with --rules=FILE which tensor becomes which variable "
        "(`frostline port-checkpoint --auto` proposes such a file)"
        + listed("in the file", [f"{name} {list(source.shape(name))}" for name in names], most=5)
        + listed("in the model", [f"{entry.path} {list(entry.variable.shape)}" for entry in variables], most=5)
        + f"\n  shipped rule files: {', '.join(shipped_rules())}"
    )


def _fits(rules: Rules, names: list[str]) -> bool:
    short = [rules.without_prefix(name) for name in names]
    return all(any(line.pattern.fullmatch(name) for name in short) for line in rules.detect)
