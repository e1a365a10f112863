"""Which units can correspond by their shapes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from engine.porting.proposals.fitting import Fit, Layout, Shape, fit
from engine.porting.proposals.units import Item, Unit

_LONE = frozenset({"lone", "gamma", "alpha", "other"})
Shapes = tuple[tuple[str, Shape, str, bool, bool], ...]


def shapes_of(unit: Unit) -> Shapes:
    """All that decides with what a unit can be paired."""
    return tuple(sorted((i.role, i.shape, i.type, i.table, i.still) for i in unit.items.values()))


def roles(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """Which roles of two units correspond; empty when the units are of different kinds."""
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


def item_fit(source: Item, target: Item, layout: Layout) -> Fit | None:
    """How one variable becomes another; None when it cannot."""
    if source.type != target.type or math.prod(source.shape) != math.prod(target.shape):
        return None
    kernels = source.role == target.role == "kernel" and not source.still and not (target.still and target.table)
    role = "kernel" if kernels else ""
    return fit(source.shape, target.shape, role, layout, table=source.table or target.table)


def _cost(one: Shapes, other: Shapes, layout: Layout) -> float | None:
    """Log odds lost by what does not fit quite; None when it cannot be."""
    left = {role: Item("", shape, kind, role, table, still) for role, shape, kind, table, still in one}
    right = {role: Item("", shape, kind, role, table, still) for role, shape, kind, table, still in other}
    pairs = roles(list(left), list(right))
    if not pairs:
        return None
    cost = 0.8 * (len(left) + len(right) - 2 * len(pairs))
    for a, b in pairs:
        found = item_fit(left[a], right[b], layout)
        if found is None:
            return None
        cost += 3 * (1 - found.quality) + 0.7 * (a != b) + 1.5 * (left[a].table != right[b].table)
    return cost


class Groups(NamedTuple):
    """Units that may correspond by shape: for each unit of either side the number of its group."""

    sources: list[int]
    targets: list[int]
    costs: dict[tuple[Shapes, Shapes], float]


def group(sources: Sequence[Unit], targets: Sequence[Unit], layout: Layout) -> Groups:
    """Connects what can be paired, by number of elements first and then by all shapes of a unit."""
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
