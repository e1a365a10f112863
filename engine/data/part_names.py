"""The parts of data, the words that name them, and what is asked where two words could mean one part."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text import nearest

PARTS = ("train", "val", "test")
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


def find_part(word: str) -> str | None:
    """The part that a word names, such as "val" for "validation"; None if it names none."""
    return next((part for part in PARTS if word.lower() in PART_NAMES[part]), None)


def suggest_part(word: str) -> str:
    """The end of a message about a word that names no part: the nearest ones."""
    return nearest(word.lower(), [name for names in PART_NAMES.values() for name in names])


class PartWords:
    """The words by which a column names the parts of its rows; each part has one word, in whatever case."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}  # part -> its word, and the line that first has it

    def read(self, word: str, line: int) -> str | None:
        """The part that a word on a line names; None if it names none. Raises ValueError, which says both lines, for a second word."""
        part = find_part(word)
        if part is None:
            return None
        first, at = self._seen.setdefault(part, (word, line))
        if first.lower() != word.lower():
            raise ValueError(
                f"{word!r} and {first!r} (line {at}) both mean the part {part}; whether they are one part is not known, so "
                "write one word for all rows of a part"
            )
        return part


def list_named(names: Sequence[str], part: str) -> list[str]:
    """Those of these names that could name a part, sorted."""
    return sorted(name for name in names if find_part(name) == part)


def find_misnamed(names: Sequence[str], whats: Sequence[str], own: Sequence[str]) -> tuple[str, str] | None:
    """Of arrays such as "valid_images", the first that names a part by a word that is not read, and the name that is.

    ``whats`` are what arrays hold, such as "images", and ``own`` the names that are read.
    """
    for name in names:
        word, _, what = name.rpartition("_")
        part = find_part(word)
        if part is not None and what in whats and name not in own:
            return name, f"{part}_{what}" if f"{part}_{what}" in own else what
    return None
