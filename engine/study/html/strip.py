"""What each strategy trains: an SVG with a strip of the model's parts for each strategy, narrow enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.selection.layer_groups import Part, elide_middle, group_parts, label_parts, merge_neighbours
from engine.study.formatting import count, percent
from engine.study.html.markup import Child, Markup, tag

_WIDTH, _HEAD, _ROW, _BAR = 380.0, 74.0, 38.0, 16.0
_RIGHT = 20.0  # left free for the last part's name
_LETTER = 3.9  # the horizontal extent of a letter in a rotated name
_MOST = 14  # columns
_NEARLY = 0.9  # a part counts as trained if this share of what could train does


def draw_strip(study: Mapping[str, Any]) -> Markup | None:
    """Draws the strips. Columns are parts of the model, from the images to the loss; their width grows with the logarithm of
    the number of parameters."""
    strategies = study["strategies"]
    row = group_parts((v["path"], v["parameters"], v["block"]) for v in study["variables"])
    if not row or not strategies:
        return None
    trained = [frozenset(strategy["trained"]) for strategy in strategies]
    sizes = {variable["path"]: variable["parameters"] for variable in study["variables"]}

    reached = frozenset().union(*trained)
    if sum(sizes[path] for path in reached & sizes.keys()) < _NEARLY * sum(sizes.values()):
        reached = frozenset(sizes)  # no strategy trains nearly all: everything can train

    def some(run: tuple[Part, ...], which: frozenset[str]) -> int:
        return sum(sizes[path] for part in run for path in part.paths if path in which)

    def state(run: tuple[Part, ...], which: frozenset[str]) -> str:
        found = some(run, which)
        return "trained" if found and found >= _NEARLY * some(run, reached) else "partly" if found else "frozen"

    columns = merge_neighbours(row, lambda part: tuple(state((part,), which) for which in trained), most=_MOST)
    weights = [4 + math.log10(1 + _parameters(run)) + 0.6 * min(len(run) - 1, 6) for run in columns]
    edges = [0.0]
    for weight in weights:
        edges.append(edges[-1] + (_WIDTH - _RIGHT) * weight / sum(weights))
    parts_: list[Child] = [_pattern()]
    for left, right, run in zip(edges[:-1], edges[1:], columns, strict=True):
        middle = (left + right) / 2 + 4
        name = label_parts(run, most=min(13, int((_WIDTH - middle) / _LETTER)))
        turned = f"translate({middle:.1f} {_HEAD - 5:.1f}) rotate(-48)"
        parts_.append(tag("text", name, tag("title", _names(run)), transform=turned, class_="part"))
    for number, (strategy, which) in enumerate(zip(strategies, trained, strict=True)):
        top = _HEAD + number * _ROW
        share = strategy["parameters"] / max(study["parameters"], 1)
        phases = f", in {len(strategy['phases'])} phases" if len(strategy["phases"]) > 1 else ""
        text = f"{count(strategy['parameters'])} parameters ({percent(share)}){phases}"
        name = strategy["name"]
        parts_.append(tag("text", elide_middle(name, 24), tag("title", name), x=1.0, y=top + 12, class_="label"))
        parts_.append(tag("text", text, x=_WIDTH - 1, y=top + 12, text_anchor="end", class_="tick"))
        for left, right, run in zip(edges[:-1], edges[1:], columns, strict=True):
            kind, found = state(run, which), some(run, which)
            words = f"{_names(run)}: {count(found)} of {count(_parameters(run))} parameters are trained"
            corner = {"x": left + 1, "y": top + 17, "width": right - left - 1.5, "height": _BAR, "rx": 2.0}
            parts_.append(tag("rect", tag("title", words), **corner, class_=f"cell {kind}"))
    height = _HEAD + _ROW * len(strategies)
    description = (
        f"A strip for each of {len(strategies)} strategies, with the images on the left and the loss on the right. "
        "Filled parts are trained, hatched parts are partly trained, empty parts are frozen."
    )
    return tag(
        "svg", tag("title", "What each strategy trains", id="s-t"), tag("desc", description, id="s-d"), *parts_,
        viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_labelledby="s-t s-d", class_="strip",
    )  # fmt: skip


def draw_strip_key() -> Markup:
    """Draws what filled, hatched and empty mean."""
    items = []
    for kind, text in (("trained", "trained"), ("partly", "partly trained"), ("frozen", "frozen")):
        cell = tag("rect", x=1.0, y=1.0, width=20.0, height=12.0, rx=2.0, class_=f"cell {kind}")
        items.append(tag("li", tag("svg", cell, viewBox="0 0 22 14", class_="sign wide", aria_hidden="true"), text))
    return tag("ul", *items, class_="key")


def _pattern() -> Markup:
    """The hatching pattern; ``draw_strip_key`` uses it too."""
    line = tag("path", d="M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4", class_="hatch-line")
    ground = tag("rect", width=8.0, height=8.0, class_="hatch-ground")
    pattern = tag("pattern", ground, line, id="hatch", width=8.0, height=8.0, patternUnits="userSpaceOnUse")
    return tag("defs", pattern)


def _parameters(run: tuple[Part, ...]) -> int:
    return sum(part.parameters for part in run)


def _names(run: tuple[Part, ...]) -> str:
    return run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name} ({len(run)} parts)"
