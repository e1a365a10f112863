"""In what the facts of several workers differ, in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.text import cut, join_some, join_words

_MISSING = object()
_LONGEST = 60  # characters of a value that are shown


def find(facts: Sequence[Any], name: Callable[[int], str], *, most: int = 8) -> str:
    """What differs among the facts of all workers, JSON values, a line for each; "" if nothing does.

    Example:
        >>> find([{"flags": {"--seed": 1}}, {"flags": {"--seed": 2}}], "worker {}".format)
        'flags: --seed is 1 on worker 0 and 2 on worker 1'
    """
    lines = [f"{': '.join(keys)} {_values(values, name)}" for keys, values in _differing((), list(facts))]
    rest = f"\n  ... and {len(lines) - most} more" if len(lines) > most else ""
    return "\n  ".join(lines[:most]) + rest


def _differing(keys: tuple[str, ...], values: list[Any]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The innermost values that differ, each with the keys that lead to it."""
    if len(set(map(_text, values))) == 1:
        return
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            yield from _differing((*keys, key), [value.get(key, _MISSING) for value in values])
    elif all(isinstance(value, list) and len(value) == len(values[0]) > 1 for value in values):
        for place in range(len(values[0])):
            yield from _differing((*keys, f"item {place + 1}"), [value[place] for value in values])
    else:
        yield keys, values


def _text(value: Any) -> str:
    """A text by which values are compared, since 1, 1.0 and true are equal in Python, and NaN is not equal to itself."""
    return "-" if value is _MISSING else json.dumps(value, sort_keys=True)


def _values(values: list[Any], name: Callable[[int], str]) -> str:
    """Each value, and the workers that have it: "is 1 on worker 0 and 2 on worker 1"."""
    having: dict[str, list[int]] = {}
    shown: dict[str, str] = {}
    for worker, value in enumerate(values):
        having.setdefault(text := _text(value), []).append(worker)
        shown[text] = value if isinstance(value, str) and value.strip() else text
    pairs = enumerate(zip(*shown.values(), strict=False))
    same = next((place for place, each in pairs if len(set(each)) > 1), min(map(len, shown.values())))
    words = [
        f"{'missing' if text == '-' else _shorten(shown[text], same)} on {join_some([name(w) for w in workers], most=3)}"
        for text, workers in having.items()
    ]
    return f"is {join_words(words, most=4)}"


def _shorten(text: str, same: int) -> str:
    """The part of a value that shows the difference: ``same`` characters at its beginning do not."""
    if len(text) > _LONGEST and same > _LONGEST // 2:
        return f"...{cut(text[same - _LONGEST // 4 :], _LONGEST)}"
    return cut(text, _LONGEST)
