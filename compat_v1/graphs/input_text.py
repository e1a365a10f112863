"""Parses what a user writes about the inputs of an old graph: which are fed, their shapes, and fixed values."""

from __future__ import annotations

import ast
import re
from typing import Any

from compat_v1.errors import GraphError
from engine.files import FileError, Npz

_ITEM = re.compile(r"(?P<name>[^=\[\]\s]+)\s*(?P<shape>\[[^\]]*\])?\s*(?:=\s*(?P<value>.+))?", re.DOTALL)
_BETWEEN = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")  # a comma outside of quotes
_EXPECTED = "expected a number, True or False, a list of them such as [300, 280], or FILE.npz as the value"


def parse_inputs(text: str) -> dict[str, Any]:
    """Parses the inputs of a graph, separated by commas, into name -> None, a shape (a tuple) or a value.

    ``NAME`` is fed, ``NAME[None,32,32,3]`` is fed with this shape (None or ? for an unknown length), and
    ``NAME=VALUE`` is fixed, where VALUE is a number, True, False, a quoted text, a list, or an .npz file with the array
    NAME or with one array. Raises GraphError for anything else, and FileError if a file cannot be read.

    Example:
        >>> parse_inputs("images[None,32,32,3], lengths=[300, 280], is_training=False")
        {'images': (None, 32, 32, 3), 'lengths': [300, 280], 'is_training': False}
    """
    found: dict[str, Any] = {}
    for item in _split(text):
        match = _ITEM.fullmatch(item)
        if match is None or (match["shape"] is not None and match["value"] is not None):
            raise GraphError(f"inputs={item}: expected NAME, NAME[LENGTH,...] or NAME=VALUE; {_EXPECTED}")
        name, shape, value = match["name"], match["shape"], match["value"]
        if name in found:
            raise GraphError(f"inputs={item}: {name} is given twice")
        found[name] = (
            parse_value(item, name, value.strip()) if value is not None else _shape(item, shape) if shape else None
        )
    return found


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    items = [""]
    for part in _BETWEEN.split(text):
        closed = items[-1].count("[") + items[-1].count("(") <= items[-1].count("]") + items[-1].count(")")
        if items[-1] and closed:
            items.append(part)
        else:
            items[-1] += ("," if items[-1] else "") + part
    return [item.strip() for item in items if item.strip()]


def _shape(item: str, text: str) -> tuple[int | None, ...]:
    lengths: list[int | None] = []
    for word in filter(None, (word.strip() for word in text[1:-1].split(","))):
        if word not in ("None", "?", "-1") and not word.isdecimal():
            raise GraphError(f"inputs={item}: {word} is not a valid length; expected a whole number, or None")
        lengths.append(int(word) if word.isdecimal() else None)
    return tuple(lengths)


def parse_value(item: str, name: str, text: str) -> Any:
    """Reads the value of an input: a number, True, False, a text, a list or an .npz file; GraphError for anything else."""
    if text.endswith(".npz"):
        return _array(item, name.partition(":")[0], text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise GraphError(f"inputs={item}: {_EXPECTED}") from None
    if not _is_value(value):
        raise GraphError(f"inputs={item}: {_EXPECTED}")
    return value


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return isinstance(value, (bool, int, float, str))


def _array(item: str, name: str, path: str) -> Any:
    try:
        with Npz(path) as file:
            names = file.names()
            chosen = next(
                (each for each in names if each in (name, f"{name}:0")), names[0] if len(names) == 1 else None
            )
            if chosen is None:
                raise GraphError(f"inputs={item}: {path} holds {len(names)} arrays and none called {name}")
            return file.read(chosen)
    except FileError as error:
        raise GraphError(f"inputs={item}: {error}") from None
