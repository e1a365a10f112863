"""The charts of a report as SVG: the quality of strategies against their cost, and their learning curves.

They are drawn for the width of a phone. Colours come from the page's style, by class; shapes and dashes carry the same
information without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from engine.selection.layer_groups import elide_middle
from engine.study.formatting import MEBI, count, duration, quality
from engine.study.html.axes import Axis, choose_unit, linear_axis, time_axis
from engine.study.html.labels import place_names, spread_heights
from engine.study.html.markup import Child, Markup, join, tag
from engine.study.recommend import Recommendation, by_accuracy, find_efficient, gain
from engine.text import join_words

_WIDTH, _HEIGHT = 380.0, 300.0
_LEFT, _TOP, _BOTTOM = 56.0, 12.0, 42.0
_FONT = 11.5
_RING = 10.0  # the radius of the ring around the recommended run
_FAR = 8  # how many names may stand far from their marks
_CURVES = 8  # how many curves are distinguished; the others are drawn thin
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
_RUNNERS = ("engine", "engine_cached", "keras_fit", "v1_trainable", "v1_stop_gradient", "v1_var_list")


def _mark(number: int, x: float, y: float, r: float, **attributes: Any) -> Markup:
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


class _Plot:
    """The frame of a chart: axes, ticks and their names; maps values to coordinates."""

    def __init__(self, x: Axis, y: Axis, *, right: float, names: tuple[str, str]) -> None:
        self.x, self.y = x, y
        self.right, self.bottom = _WIDTH - right, _HEIGHT - _BOTTOM
        self.names = names

    def at(self, x: float, y: float) -> tuple[float, float]:
        return _LEFT + self.x.at(x) * (self.right - _LEFT), self.bottom - self.y.at(y) * (self.bottom - _TOP)

    def frame(self) -> Markup:
        parts: list[Child] = []
        for tick in self.y.ticks:
            _, y = self.at(self.x.low, tick)
            parts.append(tag("line", x1=_LEFT, x2=self.right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", self.y.text(tick), x=_LEFT - 6, y=y + 4, text_anchor="end", class_="tick"))
        for tick in self.x.ticks:
            x, _ = self.at(tick, self.y.low)
            parts.append(tag("line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4, class_="axis"))
            parts.append(tag("text", self.x.text(tick), x=x, y=self.bottom + 16, text_anchor="middle", class_="tick"))
        parts.append(tag("line", x1=_LEFT, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"))
        middle, (below, beside) = (_LEFT + self.right) / 2, self.names
        parts.append(tag("text", below, x=middle, y=_HEIGHT - 8, text_anchor="middle", class_="name"))
        place = f"translate(11 {(self.bottom + _TOP) / 2:.0f}) rotate(-90)"
        parts.append(tag("text", beside, transform=place, text_anchor="middle", class_="name"))
        return join(parts)


def _svg(key: str, title: str, description: str, *inside: Child) -> Markup:
    return tag(
        "svg", tag("title", title, id=f"{key}-t"), tag("desc", description, id=f"{key}-d"), *inside,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img", aria_labelledby=f"{key}-t {key}-d", class_="chart",
    )  # fmt: skip


def number_runners(study: Mapping[str, Any]) -> dict[str, int]:
    """The number of each runner's colour and shape."""
    here = dict.fromkeys(row["runner"] for row in study["results"])
    known = {name: number for number, name in enumerate(dict.fromkeys([*_RUNNERS, *here]))}
    return {name: known[name] for name in sorted(here, key=known.__getitem__)}


def draw_runner_key(study: Mapping[str, Any]) -> Markup:
    """Draws which shape stands for which runner."""
    items = []
    for name, number in number_runners(study).items():
        sign = tag("svg", _mark(number, 7.0, 7.0, 5.5), viewBox="0 0 14 14", class_="sign", aria_hidden="true")
        items.append(tag("li", sign, elide_middle(name, 30)))
    return tag("ul", *items, class_="key")


def draw_costs(study: Mapping[str, Any], advice: Recommendation, cost: str) -> Markup | None:
    """Draws accuracy (or loss) against ``job_seconds`` or ``peak_rss_bytes``; None if there is nothing to draw."""
    accuracy = by_accuracy(study)
    key, what = ("eval_accuracy", "accuracy") if accuracy else ("eval_loss", "loss")
    time = cost == "job_seconds"
    rows = [r for r in study["results"] if not r["failed"] and (r[cost] or 0) > 0 and gain(study, r) is not None]
    if not rows:
        return None
    size, name = choose_unit(max(r[cost] for r in rows)) if time else (float(MEBI), "MiB")
    points = [(r[cost] / size, float(r[key])) for r in rows]
    x = time_axis(p[0] for p in points) if time else linear_axis(p[0] for p in points)
    better = "higher is better" if accuracy else "lower is better"
    log = ", logarithmic" if x.log else ""
    below = f"{'time of the whole job' if time else 'peak memory of the process'} ({name}{log})"
    plot = _Plot(x, linear_axis(p[1] for p in points), right=10.0, names=(below, f"evaluation {what} ({better})"))
    best = find_efficient([(r[cost], gain(study, r) or 0.0) for r in rows])
    places, stairs = [plot.at(*point) for point in points], _stairs(plot, [points[n] for n in best])
    parts = [plot.frame(), *_connections(rows, places), tag("polyline", points=_path(stairs), class_="frontier")]
    stands = {(c.strategy, c.runner) for c in advice.candidates}
    numbers = number_runners(study)
    main = [n for n, r in enumerate(rows) if (r["strategy"], r["runner"]) in stands]
    for n in sorted(range(len(rows)), key=lambda n: (n in main, n in best)):
        title = f"{rows[n]['strategy']}, {rows[n]['runner']}: {what} {quality(rows[n][key], accuracy=accuracy)}, "
        title += duration(rows[n][cost]) if time else f"{count(rows[n][cost] / MEBI)} MiB"
        faint, r = ("", 5.5) if n in main else ("", 4.5) if n in best else ("faint", 3.5)
        parts.append(_mark(numbers[rows[n]["runner"]], *places[n], r, class_=faint, title=title))
    chosen = (advice.chosen.strategy, advice.chosen.runner) if advice.chosen else None
    ranked = sorted(main, key=lambda n: ((rows[n]["strategy"], rows[n]["runner"]) != chosen, n not in best))
    far = 1 + min(len([n for n in ranked if n in best]), _FAR)
    parts += _names(plot, ranked, rows, places, stairs, chosen=chosen, far=far)
    title = f"Evaluation {what} against {'time' if time else 'memory'}"
    best_names = join_words(dict.fromkeys(rows[n]["strategy"] for n in best), most=12)
    text = f"{len(rows)} runs. On the efficient frontier: {best_names}. The table has all numbers."
    return _svg(f"a-{cost}", title, text, *parts)


def _connections(rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """Draws a thin line through the runs of each strategy."""
    together: dict[str, list[tuple[float, float]]] = {}
    for row, at in zip(rows, places, strict=True):
        together.setdefault(row["strategy"], []).append(at)
    several = [sorted(found) for found in together.values() if len(found) > 1]
    return [tag("polyline", points=_path(found), class_="same") for found in several]


def _stairs(plot: _Plot, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the frontier: the best quality for each cost."""
    steps: list[tuple[float, float]] = []
    for x, y in (plot.at(*point) for point in points):
        steps += [(x, steps[-1][1])] if steps else []
        steps.append((x, y))
    return [*steps, (plot.right, steps[-1][1])]


def _names(
    plot: _Plot, ranked: Sequence[int], rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, float]],
    stairs: Sequence[tuple[float, float]], *, chosen: tuple[str, str] | None, far: int,
) -> list[Markup]:  # fmt: skip
    """Writes strategies' names next to the runs that represent them, where there is space; circles the chosen run."""
    rings = [_RING if (rows[n]["strategy"], rows[n]["runner"]) == chosen else 0.0 for n in ranked]
    texts = [
        (elide_middle(rows[n]["strategy"], 18), *places[n], max(ring, 4.5))
        for n, ring in zip(ranked, rings, strict=True)
    ]
    taken = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for x, y in places]
    taken += [(x - r, y - r, x + r, y + r) for _, x, y, r in texts[:1] if r == _RING]
    for (x, y), (to_x, to_y) in pairwise(stairs):
        taken.append((min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1))
    within = (_LEFT + 2, _TOP - 4, plot.right + 8, plot.bottom - 2)
    found = place_names(texts, taken, within, size=_FONT, far=far)
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


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def draw_curves(study: Mapping[str, Any], advice: Recommendation, over: str) -> Markup | None:
    """Draws evaluation accuracy (or loss) over ``seconds`` or over steps (``step``), with a curve for each strategy."""
    accuracy = by_accuracy(study)
    key, what = ("eval_accuracy", "accuracy") if accuracy else ("eval_loss", "loss")
    time = over == "seconds"
    drawn = []
    for name, curve in _shown(study, advice):
        points = [(p[over], p[key]) for p in curve["points"] if p[over] is not None and p[key] is not None]
        points = [p for p in points if p[0] > 0 or not time]
        if points:
            drawn.append((name, points))
    if not drawn:
        return None
    longest = max(x for _, points in drawn for x, _ in points)
    size, unit_name = choose_unit(longest) if time else (1.0, "steps")
    drawn = [(name, [(x / size, y) for x, y in points]) for name, points in drawn]
    everywhere = [p for _, points in drawn for p in points]
    ends = [points[-1][0] for _, points in drawn]
    across = [p[0] for p in everywhere]
    x = time_axis([*ends, *across]) if time and max(ends) > 30 * min(ends) else linear_axis(across, zero=True)
    log = ", logarithmic" if x.log else ""
    below = f"time ({unit_name}{log})" if time else "steps"
    plot = _Plot(x, linear_axis(p[1] for p in everywhere), right=98.0, names=(below, f"evaluation {what}"))
    parts: list[Child] = [plot.frame()]
    for _, points in drawn[_CURVES:]:
        parts.append(tag("polyline", points=_path([plot.at(*p) for p in points]), class_="other"))
    shown = drawn[:_CURVES]
    heights = spread_heights(
        [plot.at(*points[-1])[1] for _, points in shown], apart=_FONT + 2.5, low=_TOP + 2, high=plot.bottom - 4
    )
    for number, ((name, points), y) in enumerate(zip(shown, heights, strict=True)):
        places = [plot.at(*p) for p in points]
        parts.append(tag("polyline", tag("title", name), points=_path(places), class_=f"curve c{number} d{number}"))
        parts.append(tag("line", x1=places[-1][0], y1=places[-1][1], x2=plot.right + 6, y2=y, class_="lead"))
        parts.append(_mark(number, *places[-1], 4.5))
        parts.append(_mark(number, plot.right + 11, y, 4.0))
        style = "label chosen" if advice.chosen and name == advice.chosen.strategy else "label"
        parts.append(tag("text", elide_middle(name, 10), tag("title", name), x=plot.right + 18, y=y + 4, class_=style))
    title = f"Evaluation {what} over {'time' if time else 'steps'}"
    last = [f"{name} ends at {quality(points[-1][1], accuracy=accuracy)}" for name, points in shown]
    return _svg(f"l-{over}", title, f"{len(drawn)} learning curves: {join_words(last, most=_CURVES)}.", *parts)


def _shown(study: Mapping[str, Any], advice: Recommendation) -> list[tuple[str, Mapping[str, Any]]]:
    """The curve of the run that represents each strategy, the most informative first."""
    stands = {(c.strategy, c.runner): c for c in advice.candidates}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for curve in sorted(study["curves"], key=lambda c: c["repeat"]):
        first.setdefault((curve["strategy"], curve["runner"]), curve)
    if not stands:  # no run is usable: show what there is
        return [(strategy, curve) for (strategy, _), curve in first.items()]
    frontier = [advice.candidates[n] for n in find_efficient([(c.seconds, c.gain) for c in advice.candidates])]
    between = max(1, round(len(frontier) / _CURVES))  # of a long frontier, only some
    order = [advice.chosen, advice.reference, frontier[-1], *frontier[::between], *advice.candidates]
    names = dict.fromkeys((c.strategy, c.runner) for c in order if c)
    return [(key[0], first[key]) for key in names if key in first]
