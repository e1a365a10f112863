"""The charts of quality mode as SVG: quality against cost and under corruptions, sensitivity to the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.selection.layer_groups import elide_middle
from engine.study.formatting import MEBI, count, duration
from engine.study.html.axes import Axis, choose_unit, linear_axis, log_axis, time_axis
from engine.study.html.markup import Markup, join, tag
from engine.study.html.plot import CURVES, LEFT, Plot, draw_chart, draw_lines, draw_mark, draw_path, write_names
from engine.study.html.quality_view import View
from engine.study.quality.rows import Row, find_difference, is_number, seconds_of
from engine.text import join_words

_FAR = 8  # how many names may stand far from their marks
_EQUAL, _WORSE = 0, 2  # the marks of what cannot be told apart from the best, and of what is resolvably worse
_STRIP = 0.16  # of the height: below the values, where rates that diverged are marked
_RATIO = 10  # of the largest loss to the least, from which on an axis of losses is logarithmic
_SMALL = (180.0, 118.0)  # the size of the picture of a range test

COSTS = {
    "trained_parameters": "trained parameters",
    "job_seconds": "time of a run alone",
    "seconds": "time of training",
    "peak_rss_bytes": "peak memory of a run alone",
}


def cost_of(row: Row, kind: str) -> float | None:
    """The cost of a row, of a kind in ``COSTS``; None where it is unknown or 0."""
    if kind == "trained_parameters":
        value = row["trained_parameters"]
    elif kind == "peak_rss_bytes":
        value = (row["quality"].get("cost") or {}).get("peak_rss_bytes")
    else:
        value = seconds_of(row, kind)
    return float(value) if is_number(value) and value > 0 else None


def draw_key() -> Markup:
    """Draws what the two marks mean."""
    items = []
    for number, text in (
        (_EQUAL, "the best, and what cannot be told apart from it"),
        (_WORSE, "resolvably worse than the best or another one"),
    ):
        sign = tag("svg", draw_mark(number, 7.0, 7.0, 5.5), viewBox="0 0 14 14", class_="sign", aria_hidden="true")
        items.append(tag("li", sign, text))
    return tag("ul", *items, class_="key")


def draw_best(view: View, kind: str) -> Markup | None:
    """Draws each strategy's quality at its best against a cost; None where fewer than one strategy has that cost."""
    found = [(row, cost) for row in view.judged if (cost := cost_of(row, kind)) is not None]
    if not found:
        return None
    size, unit = 1.0, ""
    if kind == "peak_rss_bytes":
        size, unit = float(MEBI), "MiB"
    elif kind != "trained_parameters":
        size, unit = choose_unit(max(cost for _, cost in found))
    across = [cost / size for _, cost in found]
    x = (log_axis if kind == "trained_parameters" else linear_axis if kind == "peak_rss_bytes" else time_axis)(across)
    values = [float(row["quality"]["test"][view.metric]) for row, _ in found]
    bars = [_interval(view, row) for row, _ in found]
    y = linear_axis([*values, *(end for bar in bars if bar for end in bar)])
    scale = ", ".join(word for word in (unit, "logarithmic" if x.log else "") if word)
    better = "higher" if view.accuracy else "lower"
    plot = Plot(x, y, right=10.0, names=(f"{COSTS[kind]} ({scale})", f"{view.part} {view.metric} ({better} is better)"))
    parts, taken = [plot.frame()], []
    best = view.find(view.best)
    if best is not None:
        _, level = plot.at(x.low, float(best["quality"]["test"][view.metric]))
        parts.append(tag("line", x1=LEFT, x2=plot.right, y1=level, y2=level, class_="frontier"))
        taken.append((LEFT, level - 1, plot.right, level + 1))
    places = [plot.at(*point) for point in zip(across, values, strict=True)]
    for (at, _), bar in zip(places, bars, strict=True):
        if bar:
            top, bottom = (plot.at(x.low, end)[1] for end in (bar[1], bar[0]))
            parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="whisker"))
            parts += [tag("line", x1=at - 3, x2=at + 3, y1=end, y2=end, class_="whisker") for end in (top, bottom)]
            taken.append((at - 1.5, min(top, bottom), at + 1.5, max(top, bottom)))
    parts += _write_names(view, plot, [row for row, _ in found], places, taken)
    for (row, cost), place in reversed(list(zip(found, places, strict=True))):
        words = {
            "trained_parameters": f"{count(cost)} trained parameters",
            "peak_rss_bytes": f"{count(cost / MEBI)} MiB",
        }
        title = f"{row['strategy']}: {view.metric} {view.show(row['quality']['test'][view.metric])}, {words.get(kind) or duration(cost)}"
        parts.append(draw_mark(_number(view, row), *place, 5.0, title=title))
    title = f"{view.part.capitalize()} {view.metric} at the best learning rate against {COSTS[kind]}"
    text = f"{len(found)} strategies: {join_words((row['strategy'] for row, _ in found), most=12)}. The table has all numbers."
    return draw_chart(f"q-{kind}", title, text, *parts)


def _number(view: View, row: Row) -> int:
    return _EQUAL if not view.best or row["strategy"] in view.level else _WORSE


def _interval(view: View, row: Row) -> tuple[float, float] | None:
    """Where the interval of the difference to the best strategy ends, drawn from that strategy's value."""
    best = view.find(view.best)
    found = None if best is None or row is best else find_difference(row, best)
    if found is None or best is None:
        return None
    middle = float(best["quality"]["test"][view.metric])
    return middle + found["low"], middle + found["high"]


def _write_names(
    view: View, plot: Plot, rows: Sequence[Row], places: Sequence[tuple[float, float]], taken: Sequence[tuple[float, float, float, float]]
) -> list[Markup]:  # fmt: skip
    covered = [*taken, *((x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y in places)]
    ringed = bool(rows) and rows[0]["strategy"] == view.recommended
    names = [(row["strategy"], *place) for row, place in zip(rows, places, strict=True)]
    return write_names(plot, names, covered, ringed=ringed, far=_FAR)


def draw_shift(view: View) -> Markup | None:
    """Draws each strategy's quality under the corruptions against that on clean images."""
    under = [(row["quality"].get("shifted") or {}).get("mean") or {} for row in view.judged]
    rows = [row for row, mean in zip(view.judged, under, strict=True) if is_number(mean.get(view.metric))]
    if not rows:
        return None
    points = [
        (float(r["quality"]["test"][view.metric]), float(r["quality"]["shifted"]["mean"][view.metric])) for r in rows
    ]
    names = (f"{view.part} {view.metric}, clean", f"mean {view.metric} under corruptions")
    plot = Plot(linear_axis(p[0] for p in points), linear_axis(p[1] for p in points), right=10.0, names=names)
    places, parts = [plot.at(*point) for point in points], [plot.frame()]
    parts += _write_names(view, plot, rows, places, [])
    for row, place, (clean, shifted) in reversed(list(zip(rows, places, points, strict=True))):
        title = f"{row['strategy']}: {view.metric} {view.show(clean)} clean, {view.show(shifted)} under corruptions"
        parts.append(draw_mark(_number(view, row), *place, 5.0, title=title))
    return draw_chart(
        "q-shift", f"{view.metric.capitalize()} on clean and on corrupted images", f"{len(rows)} strategies.", *parts
    )


# ---- learning rates


def draw_rates(view: View) -> Markup | None:
    """Draws evaluation quality against the learning rate, a curve for each strategy; diverged rates lie at the bottom."""
    order = [*view.judged, *(row for row in view.rows if row not in view.judged)]
    key = f"eval_{_measure(order)}"
    rates = {row["strategy"]: (row.get("quality") or {}).get("rates") or [] for row in order}
    lines = {name: [(r["learning_rate"], float(r[key])) for r in sorted(found, key=lambda r: r["learning_rate"]) if r["status"] == "done" and is_number(r[key])] for name, found in rates.items()}  # fmt: skip
    known = [rate for found in rates.values() for rate in found]
    values = [float(r[key]) for r in known if r["status"] != "diverged" and is_number(r[key])]
    diverged = any(r["status"] == "diverged" for r in known)
    if not known or not (values or diverged):
        return None
    plot = Plot(
        log_axis(r["learning_rate"] for r in known),
        _below(_value_axis(values, key), empty=diverged),
        right=98.0,
        names=("learning rate (logarithmic)", f"evaluation {key.removeprefix('eval_')}"),
    )
    drawn = [(name, points) for name, points in lines.items() if points]
    parts = [plot.frame(), *draw_lines(plot, drawn, chosen=view.recommended, below=22.0 if diverged else 4.0)]
    numbers = {name: number for number, (name, _) in enumerate(drawn[:CURVES])}
    for row in order:
        parts += _mark_rates(plot, row, rates[row["strategy"]], key, numbers.get(row["strategy"]))
    if diverged:
        y = plot.bottom - 9.0
        failed = [(name, r) for name, found in rates.items() for r in found if r["status"] == "diverged"]
        for value in dict.fromkeys(r["learning_rate"] for _, r in failed):
            here = [name for name, r in failed if r["learning_rate"] == value]
            parts.append(
                _cross(
                    plot.at(value, plot.y.low)[0], y, f"diverged at {value:g}: {join_words(here, most=12)}", len(here)
                )
            )
        parts.append(tag("text", "diverged", x=plot.right + 22, y=y + 4, class_="tick"))
    tried = f"{len(known)} learning rates of {len(order)} strategies"
    return draw_chart(
        "q-rates", f"Evaluation {key.removeprefix('eval_')} against the learning rate", f"{tried}.", *parts
    )


def _measure(rows: Sequence[Row]) -> str:
    """What chose the rates, as far as it is known: the accuracy or the loss."""
    chosen = [row["quality"]["chosen"]["by"] for row in rows if (row.get("quality") or {}).get("chosen")]
    if chosen:
        return str(chosen[0]).removeprefix("eval_")
    rates = [rate for row in rows for rate in (row.get("quality") or {}).get("rates") or ()]
    return "accuracy" if any(is_number(rate["eval_accuracy"]) for rate in rates) else "loss"


def _value_axis(values: Sequence[float], key: str) -> Axis:
    if not values:
        return Axis(0.0, 1.0, ())
    if key == "eval_loss" and min(values) > 0 and max(values) > _RATIO * min(values):
        return log_axis(values)
    return linear_axis(values)


def _below(axis: Axis, *, empty: bool) -> Axis:
    """The axis with an empty strip below its values."""
    if not empty:
        return axis
    if axis.log:
        return replace(axis, low=axis.low * (axis.low / axis.high) ** _STRIP)
    return replace(axis, low=axis.low - _STRIP * (axis.high - axis.low))


def _mark_rates(plot: Plot, row: Row, rates: Sequence[Mapping[str, Any]], key: str, number: int | None) -> list[Markup]:
    """Draws the rates of a strategy on its curve: a ring around the chosen one, faint marks for those that were dropped."""
    parts: list[Markup] = []
    chosen = (row.get("quality") or {}).get("chosen") or {}
    for rate in rates:
        if rate["status"] == "diverged" or not is_number(rate[key]) or number is None:
            continue
        x, y = plot.at(rate["learning_rate"], float(rate[key]))
        faint = rate["status"] == "dropped"
        title = f"{row['strategy']} at {rate['learning_rate']:g}: {rate[key]:.4g}" + (
            f", dropped after {rate['steps']} steps" if faint else ""
        )
        parts.append(draw_mark(number, x, y, 2.6 if faint else 3.4, class_="faint" if faint else "", title=title))
        if rate["learning_rate"] == chosen.get("learning_rate"):
            parts.append(tag("circle", cx=x, cy=y, r=7.0, class_=f"pick curve c{number}"))
    return parts


def _cross(x: float, y: float, title: str, number: int) -> Markup:
    """A cross with the number of strategies it stands for."""
    drawn = tag("path", tag("title", title), d=f"M{x - 4:.1f},{y - 4:.1f} l8,8 m-8,0 l8,-8", class_="cross")
    return join([drawn, tag("text", count(number), x=x + 6, y=y + 4, class_="tick") if number > 1 else None])


def draw_range_tests(view: View) -> list[Markup]:
    """Draws a small picture for each range test: the smoothed loss while the learning rate rises."""
    return [drawn for number, row in enumerate(view.rows) if (drawn := _draw_range_test(row, number)) is not None]


def _draw_range_test(row: Row, number: int) -> Markup | None:
    test = (row.get("quality") or {}).get("range_test") or {}
    points = [
        (r, v)
        for r, v in zip(test.get("learning_rates") or (), test.get("losses") or (), strict=False)
        if is_number(v) and r > 0
    ]
    if not points:
        return None
    first = points[0][1]
    low = min(v for _, v in points)
    top = max(first + 0.6 * max(first - low, 0.05 * abs(first)), low + 1e-9)  # what rises above has left the picture
    x, y = log_axis(r for r, _ in points), linear_axis([low, top])
    width, height = _SMALL

    def at(rate: float, loss: float) -> tuple[float, float]:
        return 8 + x.at(rate) * (width - 16), height - 20 - y.at(min(loss, top)) * (height - 42)

    parts = [tag("text", elide_middle(row["strategy"], 24), x=8.0, y=15.0, class_="label")]
    parts.append(tag("line", x1=8.0, x2=width - 8, y1=height - 18, y2=height - 18, class_="axis"))
    ticks = [t for t in x.ticks if 0.04 < x.at(t) < 0.96] or list(x.ticks)
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 3))]
    parts += [
        tag("text", x.text(t), x=8 + x.at(t) * (width - 16), y=height - 5, text_anchor="middle", class_="tick")
        for t in ticks
    ]
    suggested = test.get("suggested")
    if is_number(suggested) and x.low <= suggested <= x.high:
        place = 8 + x.at(suggested) * (width - 16)
        parts.append(tag("line", x1=place, x2=place, y1=22.0, y2=height - 18, class_="frontier"))
        right = place > 0.7 * width
        here = {"x": place + (-4 if right else 4), "y": 30.0, "text_anchor": "end" if right else "start"}
        parts.append(tag("text", f"{suggested:.3g}", **here, class_="tick"))
    parts.append(tag("polyline", points=draw_path([at(*point) for point in points]), class_="curve c0"))
    words = f"The loss at learning rates from {points[0][0]:g} to {points[-1][0]:g}"
    words += f"; {suggested:g} is suggested." if is_number(suggested) else "; no rate is suggested."
    key = f"q-range-{number}"
    return tag(
        "svg", tag("title", f"Range test of {row['strategy']}", id=f"{key}-t"), tag("desc", words, id=f"{key}-d"), *parts,
        viewBox=f"0 0 {width:g} {height:g}", role="img", aria_labelledby=f"{key}-t {key}-d", class_="small",
    )  # fmt: skip
