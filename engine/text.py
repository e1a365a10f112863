"""Text for messages and terminals: nearest names, shortened lists, ranges, aligned tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

from engine.errors import InputError
from engine.patterns import Pattern, PatternError

_LONGEST, _MOST_KNOWN = 400, 2000  # characters and words that are compared: a hostile file has any number of either


def nearest(word: str, known: Sequence[str], *, count: int = 3) -> str:
    """Returns "; nearest: ..." with the known words most similar to ``word``, or "" if none is similar.

    Example:
        >>> nearest("hed", ["head", "norm"])
        '; nearest: head'
    """
    close = difflib.get_close_matches(word[:_LONGEST], known[:_MOST_KNOWN], n=count, cutoff=0.4)
    return f"; nearest: {', '.join(close)}" if close else ""


def join_some(names: Sequence[str], *, most: int = 5) -> str:
    """Joins the first names and says how many more there are.

    Example:
        >>> join_some(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(title: str, lines: Sequence[str], *, most: int = 8) -> str:
    """Returns the first lines of a list, indented under a title; "" if the list is empty."""
    if not lines:
        return ""
    rest = f"\n    ... and {len(lines) - most} more" if len(lines) > most else ""
    return f"\n  {title} ({len(lines)}):\n    " + "\n    ".join(lines[:most]) + rest


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Formats rows of cells, the heading first, as aligned text. The last column is not padded.

    All rows have the same number of cells; ``right`` are the numbers of right-aligned columns.

    Example:
        >>> print(table([("", "size"), ("head", "97"), ("norm", "1,024")], right={1}))
               size
        head     97
        norm  1,024
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if len(rows[0]) - 1 not in right:
        widths[-1] = 0
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def shorten(paths: Sequence[str], *, most: int = 5) -> str:
    """Summarises paths by their first components, with numbered components as ranges.

    Example:
        >>> shorten(["blocks/0/norm", "blocks/1/norm", "head/kernel"])
        'blocks/0-1, head'
    """
    found: dict[str, set[int]] = {}
    for path in paths:
        match = re.match(r"([^/]+)/(\d+)(?:/|$)", path)
        name, number = (match.group(1), int(match.group(2))) if match else (path.split("/")[0], None)
        found.setdefault(name, set())
        if number is not None:
            found[name].add(number)
    words = [f"{name}/{_ranges(sorted(numbers))}" if numbers else name for name, numbers in found.items()]
    return join_some(words, most=most)


def compile_pattern(pattern: str, *, name: str) -> Pattern:
    """Compiles a regular expression that a user gave; an InputError names the argument if it is not valid."""
    try:
        return Pattern(pattern, label=f"{name}={cut(pattern)!r}")
    except PatternError as error:
        raise InputError(f"{name}={cut(pattern)!r} is not a valid regular expression ({error})") from None


def cut(text: str, most: int = 100) -> str:
    """The beginning of a text that may be long.

    Example:
        >>> cut("abcdefgh", 6)
        'abc...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def parse_number(text: str) -> float | None:
    """The number that a text such as ``1e-3`` is; None if it is not a number. NaN and infinity are numbers here.

    Example:
        >>> parse_number("1e-3"), parse_number("1_000"), parse_number("fast")
        (0.001, None, None)
    """
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


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


def join_words(words: Iterable[object], *, most: int = 6) -> str:
    """An enumeration for a sentence: all words, or the first ones and how many more there are.

    Example:
        >>> join_words("abc"), join_words("abc", most=2)
        ('a, b and c', 'a and 2 more')
    """
    texts = [str(word) for word in words]
    if len(texts) > most:
        texts = [*texts[: most - 1], f"{len(texts) - most + 1} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
