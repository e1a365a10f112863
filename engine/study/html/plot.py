"""What all charts of a report share: the frame with its axes, marks that differ without colour, names that cover nothing.

They are drawn for the width of a phone. Colours come from the page's style, by class; shapes and dashes carry the same
information without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.selection.layer_groups import elide_middle
from engine.study.html.axes import Axis
from engine.study.html.labels import Rect, place_names, spread_heights
from engine.study.html.markup import Child, Markup, join, tag

WIDTH, HEIGHT = 380.0, 300.0
LEFT, TOP, BOTTOM = 56.0, 12.0, 42.0
RING = 10.0  # the radius of the ring around what is recommended
CURVES = 8  # how many curves are distinguished; the others are drawn thin
_FONT = 11.5
# corners, turn, and the radius of every second corner
_POLYGONS = (
    (4, 0, 1),
    (4, math.pi / 4, 1),
    (3, 0, 1),
    (3, math.pi, 1),
    (8, math.pi / 4, 0.35),
    (5, 0, 1),
    (10, 0, 0.45),
)


def draw_mark(number: int, x: float, y: float, r: float, **attributes: Any) -> Markup:
    """Draws the shape of a number around a point."""

    def polygon(corners: int, turn: float, inner: float = 1.0) -> str:
        sizes = [r * (inner if n % 2 else 1.0) for n in range(corners)]
        angles = [turn + 2 * math.pi * n / corners for n in range(corners)]
        return " ".join(
            f"{x + s * math.sin(a):.1f},{y - s * math.cos(a):.1f}" for s, a in zip(sizes, angles, strict=True)
        )

    attributes["class_"] = f"mark c{number % 8} {attributes.get('class_') or ''}".strip()
    title = attributes.pop("title", None)
    inside = tag("title", title) if title else None
    if number % 8 == 0:
        return tag("circle", inside, cx=x, cy=y, r=0.9 * r, **attributes)
    corners, turn, inner = _POLYGONS[number % 8 - 1]
    return tag("polygon", inside, points=polygon(corners, turn, inner), **attributes)


class Plot:
    """The frame of a chart: axes, ticks and their names; maps values to coordinates."""

    def __init__(self, x: Axis, y: Axis, *, right: float, names: tuple[str, str]) -> None:
        self.x, self.y = x, y
        self.right, self.bottom = WIDTH - right, HEIGHT - BOTTOM
        self.names = names

    def at(self, x: float, y: float) -> tuple[float, float]:
        return LEFT + self.x.at(x) * (self.right - LEFT), self.bottom - self.y.at(y) * (self.bottom - TOP)

    def frame(self) -> Markup:
        parts: list[Child] = []
        for tick in self.y.ticks:
            _, y = self.at(self.x.low, tick)
            parts.append(tag("line", x1=LEFT, x2=self.right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", self.y.text(tick), x=LEFT - 6, y=y + 4, text_anchor="end", class_="tick"))
        for tick in self.x.ticks:
            x, _ = self.at(tick, self.y.low)
            parts.append(tag("line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4, class_="axis"))
            parts.append(tag("text", self.x.text(tick), x=x, y=self.bottom + 16, text_anchor="middle", class_="tick"))
        parts.append(tag("line", x1=LEFT, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"))
        middle, (below, beside) = (LEFT + self.right) / 2, self.names
        parts.append(tag("text", below, x=middle, y=HEIGHT - 8, text_anchor="middle", class_="name"))
        place = f"translate(11 {(self.bottom + TOP) / 2:.0f}) rotate(-90)"
        parts.append(tag("text", beside, transform=place, text_anchor="middle", class_="name"))
        return join(parts)


def draw_chart(key: str, title: str, description: str, *inside: Child) -> Markup:
    """An SVG of a chart with its title and description."""
    return tag(
        "svg", tag("title", title, id=f"{key}-t"), tag("desc", description, id=f"{key}-d"), *inside,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_labelledby=f"{key}-t {key}-d", class_="chart",
    )  # fmt: skip


def draw_path(points: Sequence[tuple[float, float]]) -> str:
    """Points as the attribute of a polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def write_names(
    plot: Plot, names: Sequence[tuple[str, float, float]], taken: Sequence[Rect], *, ringed: bool, far: int
) -> list[Markup]:
    """Writes names next to their marks, where there is space.

    Args:
        plot: the frame.
        names: (name, x, y) of the marks, the most important first.
        taken: areas that no name may cover, besides the marks.
        ringed: whether the first mark is recommended: it gets a ring, and its name is bold.
        far: how many names, from the first on, may stand far from their marks.
    """
    rings = [RING if ringed and number == 0 else 0.0 for number in range(len(names))]
    texts = [(elide_middle(name, 18), x, y, max(ring, 4.5)) for (name, x, y), ring in zip(names, rings, strict=True)]
    covered = [*taken, *((x - r, y - r, x + r, y + r) for _, x, y, r in texts[:1] if r == RING)]
    found = place_names(texts, covered, (LEFT + 2, TOP - 4, plot.right + 8, plot.bottom - 2), size=_FONT, far=far)
    parts = []
    for (text, x, y, _), ring, spot in zip(texts, rings, found, strict=True):
        if ring:
            parts.append(tag("circle", cx=x, cy=y, r=ring, class_="ring"))
        if spot is not None:
            if spot.far:
                parts.append(tag("line", x1=x, y1=y, x2=spot.x, y2=spot.y, class_="lead"))
            style = "label chosen" if ring else "label"
            parts.append(tag("text", text, x=spot.x, y=spot.y + 4, text_anchor=spot.anchor, class_=style))
    return parts


def draw_lines(
    plot: Plot,
    drawn: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    chosen: str | None,
    below: float = 4.0,
) -> list[Markup]:
    """Draws curves (name, points), the most important first, with the names of the first ones on the right.

    ``below`` is what names leave free above the lower axis.
    """
    parts = [
        tag("polyline", points=draw_path([plot.at(*p) for p in points]), class_="other") for _, points in drawn[CURVES:]
    ]
    shown = drawn[:CURVES]
    ends = [plot.at(*points[-1])[1] for _, points in shown]
    heights = spread_heights(ends, apart=_FONT + 2.5, low=TOP + 2, high=plot.bottom - below)
    for number, ((name, points), y) in enumerate(zip(shown, heights, strict=True)):
        places = [plot.at(*p) for p in points]
        parts.append(tag("polyline", tag("title", name), points=draw_path(places), class_=f"curve c{number} d{number}"))
        parts.append(tag("line", x1=places[-1][0], y1=places[-1][1], x2=plot.right + 6, y2=y, class_="lead"))
        parts.append(draw_mark(number, *places[-1], 4.5))
        parts.append(draw_mark(number, plot.right + 11, y, 4.0))
        style = "label chosen" if name == chosen else "label"
        parts.append(tag("text", elide_middle(name, 10), tag("title", name), x=plot.right + 18, y=y + 4, class_=style))
    return parts
