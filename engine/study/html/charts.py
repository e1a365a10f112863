"""The charts of a report as SVG: the quality of strategies against their cost, and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from engine.selection.layer_groups import elide_middle
from engine.study.formatting import MEBI, count, duration, quality
from engine.study.html.axes import choose_unit, linear_axis, time_axis
from engine.study.html.markup import Markup, tag
from engine.study.html.plot import CURVES, Plot, draw_chart, draw_lines, draw_mark, draw_path, write_names
from engine.study.recommend import Recommendation, by_accuracy, find_efficient, gain
from engine.text import join_words

_FAR = 8  # how many names may stand far from their marks
_RUNNERS = ("engine", "engine_cached", "keras_fit", "v1_trainable", "v1_stop_gradient", "v1_var_list")


def number_runners(study: Mapping[str, Any]) -> dict[str, int]:
    """The number of each runner's colour and shape."""
    here = dict.fromkeys(row["runner"] for row in study["results"])
    known = {name: number for number, name in enumerate(dict.fromkeys([*_RUNNERS, *here]))}
    return {name: known[name] for name in sorted(here, key=known.__getitem__)}


def draw_runner_key(study: Mapping[str, Any]) -> Markup:
    """Draws which shape stands for which runner."""
    items = []
    for name, number in number_runners(study).items():
        sign = tag("svg", draw_mark(number, 7.0, 7.0, 5.5), viewBox="0 0 14 14", class_="sign", aria_hidden="true")
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
    plot = Plot(x, linear_axis(p[1] for p in points), right=10.0, names=(below, f"evaluation {what} ({better})"))
    best = find_efficient([(r[cost], gain(study, r) or 0.0) for r in rows])
    places, stairs = [plot.at(*point) for point in points], _stairs(plot, [points[n] for n in best])
    parts = [plot.frame(), *_connections(rows, places), tag("polyline", points=draw_path(stairs), class_="frontier")]
    stands = {(c.strategy, c.runner) for c in advice.candidates}
    numbers = number_runners(study)
    main = [n for n, r in enumerate(rows) if (r["strategy"], r["runner"]) in stands]
    for n in sorted(range(len(rows)), key=lambda n: (n in main, n in best)):
        title = f"{rows[n]['strategy']}, {rows[n]['runner']}: {what} {quality(rows[n][key], accuracy=accuracy)}, "
        title += duration(rows[n][cost]) if time else f"{count(rows[n][cost] / MEBI)} MiB"
        faint, r = ("", 5.5) if n in main else ("", 4.5) if n in best else ("faint", 3.5)
        parts.append(draw_mark(numbers[rows[n]["runner"]], *places[n], r, class_=faint, title=title))
    chosen = (advice.chosen.strategy, advice.chosen.runner) if advice.chosen else None
    ranked = sorted(main, key=lambda n: ((rows[n]["strategy"], rows[n]["runner"]) != chosen, n not in best))
    far = 1 + min(len([n for n in ranked if n in best]), _FAR)
    parts += _names(plot, ranked, rows, places, stairs, chosen=chosen, far=far)
    title = f"Evaluation {what} against {'time' if time else 'memory'}"
    best_names = join_words(dict.fromkeys(rows[n]["strategy"] for n in best), most=12)
    text = f"{len(rows)} runs. On the efficient frontier: {best_names}. The table has all numbers."
    return draw_chart(f"a-{cost}", title, text, *parts)


def _connections(rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """Draws a thin line through the runs of each strategy."""
    together: dict[str, list[tuple[float, float]]] = {}
    for row, at in zip(rows, places, strict=True):
        together.setdefault(row["strategy"], []).append(at)
    several = [sorted(found) for found in together.values() if len(found) > 1]
    return [tag("polyline", points=draw_path(found), class_="same") for found in several]


def _stairs(plot: Plot, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the frontier: the best quality for each cost."""
    steps: list[tuple[float, float]] = []
    for x, y in (plot.at(*point) for point in points):
        steps += [(x, steps[-1][1])] if steps else []
        steps.append((x, y))
    return [*steps, (plot.right, steps[-1][1])]


def _names(
    plot: Plot, ranked: Sequence[int], rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, float]],
    stairs: Sequence[tuple[float, float]], *, chosen: tuple[str, str] | None, far: int,
) -> list[Markup]:  # fmt: skip
    """Writes strategies' names next to the runs that represent them, where there is space; circles the chosen run."""
    taken = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for x, y in places]
    for (x, y), (to_x, to_y) in pairwise(stairs):
        taken.append((min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1))
    first = rows[ranked[0]] if ranked else None
    ringed = first is not None and (first["strategy"], first["runner"]) == chosen
    return write_names(plot, [(rows[n]["strategy"], *places[n]) for n in ranked], taken, ringed=ringed, far=far)


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
    plot = Plot(x, linear_axis(p[1] for p in everywhere), right=98.0, names=(below, f"evaluation {what}"))
    parts = [plot.frame(), *draw_lines(plot, drawn, chosen=advice.chosen.strategy if advice.chosen else None)]
    title = f"Evaluation {what} over {'time' if time else 'steps'}"
    last = [f"{name} ends at {quality(points[-1][1], accuracy=accuracy)}" for name, points in drawn[:CURVES]]
    return draw_chart(f"l-{over}", title, f"{len(drawn)} learning curves: {join_words(last, most=CURVES)}.", *parts)


def _shown(study: Mapping[str, Any], advice: Recommendation) -> list[tuple[str, Mapping[str, Any]]]:
    """The curve of the run that represents each strategy, the most informative first."""
    stands = {(c.strategy, c.runner): c for c in advice.candidates}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for curve in sorted(study["curves"], key=lambda c: c["repeat"]):
        first.setdefault((curve["strategy"], curve["runner"]), curve)
    if not stands:  # no run is usable: show what there is
        return [(strategy, curve) for (strategy, _), curve in first.items()]
    frontier = [advice.candidates[n] for n in find_efficient([(c.seconds, c.gain) for c in advice.candidates])]
    between = max(1, round(len(frontier) / CURVES))  # of a long frontier, only some
    order = [advice.chosen, advice.reference, frontier[-1], *frontier[::between], *advice.candidates]
    names = dict.fromkeys((c.strategy, c.runner) for c in order if c)
    return [(key[0], first[key]) for key in names if key in first]
