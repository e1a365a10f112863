"""Draws frostline.png: a model from its images (bottom) to its loss (top), what trains in it, and its frost line.

Needs matplotlib (the extra ``report``).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.files import PathLike, write_bytes
from engine.frostline.line import FrostLine, Refused
from engine.selection.layer_groups import Part, elide_middle, group_parts, label_parts, merge_neighbours, part_names
from engine.selection.selection import Selection
from engine.sizes import format_bytes

State = Literal["trained", "partly", "below", "above", "frozen"]

_MOST_BOXES = 9  # on either side of a line
_MOST_PANELS = 12
_ACROSS = 3  # panels side by side
_WIDTH, _GAP, _LINE = 4.5, 0.12, 0.165  # inches: a panel, between boxes, of text
_INK, _ICE = "#1b2733", "#0072B2"
# fill and hatch; Okabe and Ito's orange and blues, told apart by hatches and words as well
_LOOK: dict[State, tuple[str, str]] = {
    "trained": ("#F0B54A", ""),
    "partly": ("#FBE6BF", "\\\\\\"),
    "below": ("#E3F1FA", ""),
    "above": ("#A9D3EE", "///"),
    "frozen": ("#E3F1FA", ""),
}


@dataclass(frozen=True)
class Panel:
    """One phase of a picture: a title and an optional note below it, what trains, and the frost line.

    ``line`` may also say why there is no frost line; None means that it was not looked for.
    """

    title: str
    selection: Selection
    line: FrostLine | Refused | None = None
    note: str = ""


@dataclass(frozen=True)
class Box:
    """Adjacent parts of a model that are in the same state.

    Attributes:
        label, count, parameters: the names of the parts, their number, and that of the parameters in their variables.
        state: "trained", "partly" (some of the weights train), frozen "below" or "above" the line, or "frozen" where
            there is no line.
        words: the state as it is written in the box.
    """

    label: str
    count: int
    parameters: int
    state: State
    words: str


def layout(panel: Panel) -> tuple[list[Box], list[Box]]:
    """The boxes below the line and those above it, from the images upwards; without a line all are above.

    A frozen variable is below the line if only the prefix reads it; a part that has other variables too is drawn on
    both sides.
    """
    selection = panel.selection
    below = set(panel.line.frozen_below) if isinstance(panel.line, FrostLine) else set()
    names = part_names(selection.variables)
    rows = [(entry.path, entry.size, names[entry.path]) for entry in selection.variables]
    sides = [group_parts(row for row in rows if (row[0] in below) is side) for side in (True, False)]
    return _boxes(sides[0], panel, "below"), _boxes(sides[1], panel, "above")


def _boxes(row: Sequence[Part], panel: Panel, side: State) -> list[Box]:
    selection, entries = panel.selection, panel.selection.variables.by_path()
    trained, moving = ({e.path for e in found} for found in (selection.trained, selection.moving))

    def verdict(run: Sequence[Part]) -> tuple[State, str]:
        inside = [entries[path] for part in run for path in part.paths]
        weights = [entry for entry in inside if entry.kind == "weight"]
        train = [entry for entry in weights if entry.path in trained]
        if not train:
            if panel.line is None:
                return "frozen", "frozen"
            return side, "frozen, below the line" if side == "below" else "frozen, but every step computes it"
        statistics = {entry.path in moving for entry in inside if entry.kind == "statistic"}
        words = {(): "", (True,): ", statistics move", (False,): ", statistics stay"}.get(
            tuple(statistics), ", some statistics move"
        )
        if len(train) == len(weights):
            return "trained", "trains" + words
        return "partly", f"{sum(e.size for e in train):,} of {sum(e.size for e in weights):,} train" + words

    def alike(part: Part) -> tuple[State, bool]:
        return verdict([part])[0], not moving.isdisjoint(part.paths)

    found = merge_neighbours(row, alike, most=_MOST_BOXES)
    return [Box(label_parts(run), len(run), sum(part.parameters for part in run), *verdict(run)) for run in found]


def draw(path: PathLike, panels: Sequence[Panel]) -> None:
    """Draws a panel for each phase into a PNG file, written atomically; raises ValueError if there are no panels."""
    if not panels:
        raise ValueError("panels=[]: expected at least one panel")
    from matplotlib.figure import Figure

    shown = panels[:_MOST_PANELS]
    across = min(len(shown), _ACROSS)
    rows = [shown[start : start + across] for start in range(0, len(shown), across)]
    columns = [[_Column(panel) for panel in row] for row in rows]
    heights = [max(column.height for column in row) for row in columns]
    more = f"and {len(panels) - len(shown)} more phases" if len(panels) > len(shown) else ""
    width, height = across * _WIDTH, sum(heights) + (0.3 if more else 0.0)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    top = height
    for row, tall in zip(columns, heights, strict=True):
        for number, column in enumerate(row):
            column.draw(axes, left=number * _WIDTH, top=top)
        top -= tall
    if more:
        _say(axes, width / 2, 0.15, more, ha="center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def _say(axes: Any, x: float, y: float, text: str, **how: Any) -> None:
    # names come from users: a $ in them does not begin a formula
    axes.text(x, y, text, **{"va": "center", "fontsize": 8.5, "color": _INK, "parse_math": False} | how)


class _Column:
    """A panel with its size in inches."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.below, self.above = layout(panel)
        self.facts = _facts(panel.line)
        self.sizes = {id(box): 0.48 + 0.06 * min((box.count - 1) ** 0.5, 8) for box in (*self.below, *self.above)}
        boxes = sum(self.sizes.values()) + _GAP * len(self.sizes)
        self.height = 1.45 + _LINE * bool(panel.note) + boxes + _LINE * len(self.facts) + 0.31 * bool(self.facts)

    def draw(self, axes: Any, *, left: float, top: float) -> None:
        middle, y = left + _WIDTH / 2, top - 0.3
        _say(axes, middle, y, elide_middle(self.panel.title, 36), ha="center", fontsize=11.5, fontweight="bold")
        if self.panel.note:
            y -= _LINE + 0.03
            _say(axes, middle, y, elide_middle(self.panel.note, 66), ha="center")
        y = self._end(axes, middle, y - 0.32, "loss")
        for box in reversed(self.above):
            y = self._box(axes, box, left, y)
        if isinstance(self.panel.line, FrostLine):
            y = self._line(axes, left, y)
        for box in reversed(self.below):
            y = self._box(axes, box, left, y)
        y = self._end(axes, middle, y - 0.13, "images") - 0.02
        if isinstance(self.panel.line, Refused):
            for fact in self.facts:
                y -= _LINE
                _say(axes, left + 0.3, y, fact, ha="left", fontsize=8)

    def _end(self, axes: Any, middle: float, y: float, name: str) -> float:
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "#8794a1", "linewidth": 0.8}
        _say(axes, middle, y, name, ha="center", bbox=box)
        return y - 0.13 - _GAP

    def _box(self, axes: Any, box: Box, left: float, top: float) -> float:
        from matplotlib.patches import FancyBboxPatch

        tall, middle = self.sizes[id(box)], left + _WIDTH / 2
        fill, hatch = _LOOK[box.state]
        axes.plot([middle, middle], [top, top + _GAP], color="#8794a1", linewidth=1.0, zorder=0)
        corner, width = (left + 0.3, top - tall), _WIDTH - 0.6
        style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.07", "linewidth": 0.9}
        with_hatch = {"facecolor": fill, "edgecolor": "white", "hatch": hatch}
        axes.add_patch(FancyBboxPatch(corner, width, tall, **style | with_hatch))
        axes.add_patch(FancyBboxPatch(corner, width, tall, **style, facecolor="none", edgecolor="#5b6b7a"))
        plate = {"boxstyle": "square,pad=0.12", "facecolor": fill, "edgecolor": "none"} if hatch else None
        _say(axes, middle, top - tall / 2 + 0.088, box.label, ha="center", fontsize=9, fontweight="bold", bbox=plate)
        count = f"{box.count} parts, " if box.count > 1 else ""
        size = "" if box.state == "partly" else f"{short_number(box.parameters)} parameters: "
        _say(axes, middle, top - tall / 2 - 0.095, count + size + box.words, ha="center", fontsize=8, bbox=plate)
        return top - tall - _GAP

    def _line(self, axes: Any, left: float, top: float) -> float:
        y = top - 0.06
        ends = [left + 0.12, left + _WIDTH - 0.12]
        axes.plot(ends, [y, y], color=_ICE, linewidth=2.2, linestyle=(0, (5, 2)))
        for number, fact in enumerate(self.facts):
            y -= _LINE
            weight = "bold" if number == 0 else "normal"
            _say(axes, left + 0.3, y, fact, ha="left", color=_ICE, fontweight=weight, fontsize=8)
        return y - 0.25


def _facts(line: FrostLine | Refused | None) -> list[str]:
    """The lines of text at the frost line, or the reasons why there is none."""
    if line is None:
        return []
    if isinstance(line, Refused):
        found = [part for reason in line.reasons for part in textwrap.wrap(reason, 66)]
        return ["no frost line:", *found[:12], *(["…"] if len(found) > 12 else [])]
    found = [f"frost line: {format_bytes(line.bytes)} per example cross it"]
    for tensor in line.tensors[:3]:
        found.append(f"{elide_middle(tensor.name, 38)} {list(tensor.shape)} {tensor.dtype.name}")
        found += [f"    after {elide_middle(tensor.after, 56)}"] if tensor.after else []
    if len(line.tensors) > 3:
        found.append(f"and {len(line.tensors) - 3} more")
    found.append(f"below it: {share(line.forward_share)} of the forward pass, {share(line.step_share)} of the step")
    return found


def short_number(count: int) -> str:
    """A count with three significant digits: 970, 47.6 K, 8.1 M."""
    value, units = float(count), ["", " K", " M", " G", " T"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g}{units[0]}"


def share(part: float) -> str:
    """A share in percent; nearly all of something is not shown as 100%."""
    return "over 99.9%" if 0.9995 <= part < 1 else f"{part:.1%}"
