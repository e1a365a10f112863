"""Rows of a manifest that share an image: they are held out together, and where they are in two parts, that is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from engine.data.image_files import printable
from engine.data.part_names import PARTS
from engine.text import join_words


def group_rows(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """The number of each row's group, int64 [n]: rows that have an image in common, in whichever columns, are in one group.

    Groups are numbered from 0 in the order of their first rows.

    Example:
        >>> group_rows([["a", "b", "c"], ["x", "a", "y"]]).tolist()
        [0, 0, 1]
    """
    leader: dict[str, str] = {}

    def find(path: str) -> str:
        top = path
        while leader.setdefault(top, top) != top:
            top = leader[top]
        while leader[path] != top:
            leader[path], path = top, leader[path]
        return top

    for first, *others in zip(*columns, strict=True):
        for other in others:
            leader[find(other)] = find(first)
    number: dict[str, int] = {}
    return np.array([number.setdefault(find(path), len(number)) for path in columns[0]], np.int64)


def find_shares(columns: Sequence[Sequence[str]], *, say: Callable[[str], None] | None = None) -> np.ndarray:
    """A number in [0, 1) for each row, float64 [n], the same for rows that share an image.

    It depends on the path in the first column alone; of a group with several, on the first of these by name. ``say`` is
    called with a line if there is such a group.
    """
    groups = group_rows(columns)
    name: dict[int, str] = {}
    for group, path in zip(groups.tolist(), columns[0], strict=True):
        name[group] = min(path, name.get(group, path))
    if say is not None and len(name) < len(set(columns[0])):
        say(
            f"data: rows that share an image stay together when some are held out: {len(groups):,} rows are {len(name):,} "
            f"groups, the largest of {np.bincount(groups).max():,} rows"
        )
    share = {
        group: int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48
        for group, path in name.items()
    }
    return np.array([share[group] for group in groups.tolist()])


def warn_of_shared(columns: Sequence[Sequence[str]], part: np.ndarray, say: Callable[[str], None]) -> None:
    """Says where an image of the training part is in another part too, in whichever columns; ``part`` is that of ``Rows``."""
    paths: list[set[str]] = [set() for _ in PARTS]
    for column in columns:
        for path, own in zip(column, part, strict=True):
            paths[own].add(path)
    for other in (1, 2):
        if both := sorted(paths[0] & paths[other]):
            say(
                f"data: {len(both):,} images are in the training part and in {PARTS[other]}, so its figures are too good: "
                f"{printable(join_words(both, most=3))}"
            )
