"""Texts for messages: nearest names, lists cut short, ranges."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence


def nearest(word: str, known: list[str], *, count: int = 3) -> str:
    """ "; nearest: ..." with the known words most like ``word``, or "" when none is like it."""
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.4)
    return f"; nearest: {', '.join(close)}" if close else ""


def listed(title: str, lines: Sequence[str], *, most: int = 8) -> str:
    """Some lines of a list under its title, "" when it is empty."""
    if not lines:
        return ""
    rest = f"\n    ... and {len(lines) - most} more" if len(lines) > most else ""
    return f"\n  {title} ({len(lines)}):\n    " + "\n    ".join(lines[:most]) + rest


def shorten(paths: Sequence[str], *, most: int = 5) -> str:
    """``blocks/0-3, norm, head``: first components, numbered ones as ranges."""
    found: dict[str, set[int]] = {}
    for path in paths:
        match = re.match(r"([^/]+)/(\d+)(?:/|$)", path)
        name, number = (match.group(1), int(match.group(2))) if match else (path.split("/")[0], None)
        found.setdefault(name, set())
        if number is not None:
            found[name].add(number)
    words = [f"{name}/{_ranges(sorted(numbers))}" if numbers else name for name, numbers in found.items()]
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def _ranges(numbers: Sequence[int]) -> str:
    words: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == previous + 1:
            previous = number
            continue
        words.append(str(start) if start == previous else f"{start}-{previous}")
        if number is not None:
            start = previous = number
    return "+".join(words)


def first_of(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
