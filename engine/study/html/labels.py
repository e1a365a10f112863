"""Where to write the names of points in a drawing, so that they cover neither points nor each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

_REACH = (3.5, 9.5, 17.5, 27.5)  # distances from a mark to its name


@dataclass(frozen=True)
class Place:
    """The place of a name: its anchor, at mid-height, and whether a line should connect it to its point."""

    x: float
    y: float
    anchor: Literal["start", "middle", "end"]
    far: bool


Rect = tuple[float, float, float, float]  # left, top, right, bottom


def width_of(text: str, size: float) -> float:
    """The approximate width of a text in this font size; wide characters count twice."""
    return size * sum(1.1 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def place_names(
    names: Sequence[tuple[str, float, float, float]], taken: Sequence[Rect], within: Rect, *, size: float, far: int
) -> list[Place | None]:
    """Finds a place for each name, in order, or None where there is no space; the first name always gets one.

    Args:
        names: (text, x, y, radius) of the named marks, the most important first.
        taken, within: the areas that no name may cover, and the area in which all must lie.
        size: the size of the font.
        far: how many names, from the first on, may stand far from their marks.
    """
    taken = list(taken)
    found: list[Place | None] = []
    for number, (text, x, y, radius) in enumerate(names):
        spots = {
            spot: _box(spot, width_of(text, size), size)
            for spot in _spots(x, y, [radius + r for r in (_REACH if number < far else _REACH[:2])])
        }
        inside = [spot for spot, box in spots.items() if _inside(box, within)]
        free = [spot for spot in inside if not any(_overlap(spots[spot], other) for other in taken)]
        chosen = next(iter(free or ((inside or list(spots)) if number == 0 else [])), None)
        if chosen is not None:
            taken.append(spots[chosen])
        found.append(chosen)
    return found


def _spots(x: float, y: float, reach: Sequence[float]) -> Iterator[Place]:
    for r in reach:
        far = r > reach[0]
        yield Place(x + r, y, "start", far)
        yield Place(x - r, y, "end", far)
        yield Place(x, y - r - 3, "middle", far)
        yield Place(x, y + r + 3, "middle", far)
        yield Place(x + r, y - r, "start", far)
        yield Place(x + r, y + r, "start", far)
        yield Place(x - r, y - r, "end", far)
        yield Place(x - r, y + r, "end", far)


def _box(spot: Place, width: float, size: float) -> Rect:
    left = spot.x - {"start": 0.0, "middle": width / 2, "end": width}[spot.anchor]
    return left, spot.y - size / 2, left + width, spot.y + size / 2


def _inside(box: Rect, within: Rect) -> bool:
    return box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def spread_heights(wanted: Sequence[float], *, apart: float, low: float, high: float) -> list[float]:
    """Moves heights as little as possible so that they lie between ``low`` and ``high`` and ``apart`` from each other."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    apart = min(apart, (high - low) / max(len(wanted) - 1, 1))
    found = [0.0] * len(wanted)
    least, most = low, high
    for n in order:
        found[n] = max(wanted[n], least)
        least = found[n] + apart
    for n in reversed(order):
        found[n] = min(found[n], most)
        most = found[n] - apart
    return found
