"""Groups the units that can correspond by their shapes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from engine.porting.proposals.fitting import Fit, Layout, Shape, fit_shape
from engine.porting.proposals.units import CELLS, Item, Unit

_LONE = frozenset({"lone", "gamma", "alpha", "other"})
Shapes = tuple[tuple[str, Shape, str, bool, bool], ...]


def shapes_of(unit: Unit) -> Shapes:
    """Returns everything that decides which units a unit can be paired with."""
    return tuple(sorted((i.role, i.shape, i.type, i.table, i.still) for i in unit.items.values()))


def match_roles(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """Returns which roles of two units correspond; nothing for units of different kinds."""
    common = sorted(set(one) & set(other))
    if "kernel" in one or "kernel" in other:
        if "kernel" in common:
            return [(role, role) for role in common]
        lone = len(one) == len(other) == 1 and "other" in (*one, *other)
        return [(one[0], other[0])] if lone else []
    if len(common) >= min(2, max(len(one), len(other))):
        return [(role, role) for role in common]
    if len(one) == len(other) == 1 and {one[0], other[0]} <= _LONE:
        return [(one[0], other[0])]
    return []


def fit_item(source: Item, target: Item, layout: Layout) -> Fit | None:
    """Finds how one variable becomes another; None if it cannot."""
    if source.type != target.type or math.prod(source.shape) != math.prod(target.shape):
        return None
    if source.role in CELLS and source.shape != target.shape:
        return None
    kernels = source.role == target.role == "kernel" and not source.still and not (target.still and target.table)
    role = "kernel" if kernels else ""
    return fit_shape(source.shape, target.shape, role, layout, table=source.table or target.table)


def _cost(one: Shapes, other: Shapes, layout: Layout) -> float | None:
    """Returns the log odds lost to imperfect fits; None if the units cannot correspond."""
    left = {role: Item("", shape, kind, role, table, still) for role, shape, kind, table, still in one}
    right = {role: Item("", shape, kind, role, table, still) for role, shape, kind, table, still in other}
    pairs = match_roles(list(left), list(right))
    if not pairs:
        return None
    cost = 0.8 * (len(left) + len(right) - 2 * len(pairs))
    for a, b in pairs:
        found = fit_item(left[a], right[b], layout)
        if found is None:
            return None
        cost += 3 * (1 - found.quality) + 0.7 * (a != b) + 1.5 * (left[a].table != right[b].table)
    return cost


class Groups(NamedTuple):
    """Units that may correspond by shape: the number of the group of each unit on either side."""

    sources: list[int]
    targets: list[int]
    costs: dict[tuple[Shapes, Shapes], float]


def group_units(sources: Sequence[Unit], targets: Sequence[Unit], layout: Layout) -> Groups:
    """Groups units that can be paired, first by their number of elements and then by all shapes of a unit."""
    left = [shapes_of(unit) for unit in sources]
    right = [shapes_of(unit) for unit in targets]
    by_size: dict[int, set[Shapes]] = defaultdict(set)
    for shapes, unit in zip(right, targets, strict=True):
        by_size[unit.size].add(shapes)
    costs: dict[tuple[Shapes, Shapes], float] = {}
    parent: dict[tuple[str, Shapes], tuple[str, Shapes]] = {}

    def root(node: tuple[str, Shapes]) -> tuple[str, Shapes]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for shapes, size in {(shapes, unit.size) for shapes, unit in zip(left, sources, strict=True)}:
        for other in by_size.get(size, ()):
            cost = _cost(shapes, other, layout)
            if cost is not None:
                costs[shapes, other] = cost
                parent[root(("source", shapes))] = root(("target", other))
    numbers: dict[tuple[str, Shapes], int] = {}
    found = [
        [numbers.setdefault(root((side, shapes)), len(numbers)) for shapes in units]
        for side, units in (("source", left), ("target", right))
    ]
    return Groups(found[0], found[1], costs)
