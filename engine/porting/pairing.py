"""Which unit of a source is which unit of a model: shapes decide what can be, words and numbers what is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.porting import numbering
from engine.porting.fitting import Fit, Layout, Shape, fit
from engine.porting.numbering import Numbers, Series
from engine.porting.similarity import Likeness, belief, mutual, word_weights
from engine.porting.units import Item, Unit

_APART = 10.0  # log odds against units whose numbers disagree
_UNNUMBERED = 1.5  # for a number that only one of two names has
_MOST_CELLS = 26_000_000  # of one group of equal shapes; beyond that nobody would read the candidates
_LONE = frozenset({"lone", "gamma", "alpha", "other"})


class Pair(NamedTuple):
    """Two units that may correspond.

    Attributes:
        source, target: their places.
        certainty: belief in this pairing against others, in [0, 1].
        shared: share of what the words tell that both names have, in [0, 1].
        clash: the names speak of different things, such as a query and a key.
        alone: no other unit of either side could have been meant.
        rivals: places of other sources, with the belief in each.
    """

    source: int
    target: int
    certainty: float
    shared: float
    clash: bool
    alone: bool
    rivals: tuple[tuple[int, float], ...]


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


def pair_units(sources: Sequence[Unit], targets: Sequence[Unit], layout: Layout) -> list[Pair]:
    """The likeliest partner of each unit, each unit once; time grows with the square of a group of equal shapes."""
    groups = group(sources, targets, layout)
    left = Numbers(sources, groups.sources, ordered=False)
    right = Numbers(targets, groups.targets, ordered=True)
    general = word_weights([unit.words for unit in sources], [unit.words for unit in targets])
    members: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, numbers in enumerate((groups.sources, groups.targets)):
        for place, number in enumerate(numbers):
            members[number][side].append(place)
    pairs: list[Pair] = []
    for rows, columns in members.values():
        if rows and columns and len(rows) * len(columns) <= _MOST_CELLS:
            pairs += _pair_group(sources, targets, rows, columns, groups, left, right, general)
    return pairs


def _pair_group(
    sources: Sequence[Unit],
    targets: Sequence[Unit],
    rows: list[int],
    columns: list[int],
    groups: Groups,
    left: Numbers,
    right: Numbers,
    general: dict[str, float],
) -> list[Pair]:
    alike = Likeness([sources[n].words for n in rows], [targets[n].words for n in columns], general)
    score = alike.score - _costs([sources[n] for n in rows], [targets[n] for n in columns], groups.costs)
    none = np.zeros(score.shape, np.float32)  # numbers tell nothing where there is one of each
    apart, trust = _numbers(rows, columns, left, right) if score.size > 1 else (none, none + 1)
    by_words = belief(score)
    by_both = belief(score - apart) if apart.any() else by_words
    shares = trust * by_both + (1 - trust) * by_words
    pairs = []
    for row, column in mutual(shares):
        others = [n for n in np.argsort(-shares[:, column])[:4] if n != row and shares[n, column] > 0.02][:3]
        pairs.append(
            Pair(
                rows[row], columns[column], float(min(shares[row, column], 1)), float(alike.shared[row, column]),
                bool(alike.clash[row, column]),
                len(rows) == len(columns) == 1,
                tuple((rows[n], float(shares[n, column])) for n in others),
            )
        )  # fmt: skip
    return pairs


def _costs(left: list[Unit], right: list[Unit], costs: dict[tuple[Shapes, Shapes], float]) -> np.ndarray:
    one, rows = _numbered([shapes_of(unit) for unit in left])
    other, columns = _numbered([shapes_of(unit) for unit in right])
    table = np.array([[costs.get((a, b), np.inf) for b in other] for a in one], np.float32)
    found: np.ndarray = table[np.ix_(rows, columns)]
    return found


def _numbered(keys: Sequence) -> tuple[list, np.ndarray]:
    """The different keys, and for each entry the number of its key."""
    different = dict.fromkeys(keys)
    places = {key: place for place, key in enumerate(different)}
    return list(different), np.array([places[key] for key in keys], np.int64)


def _numbers(rows: list[int], columns: list[int], left: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Log odds against each two units by their numbers, and the trust in the comparison."""
    apart = np.zeros((len(rows), len(columns)), np.float32)
    trust = np.ones((len(rows), len(columns)), np.float32)
    one, at_row, values_row = _series(rows, left)
    other, at_column, values_column = _series(columns, right)
    strong = _APART + math.log(max(len(rows), len(columns)))
    counts = [[sum(not series.automatic for series in key) for key in side] for side in (one, other)]
    for a, first in enumerate(one):
        for b, second in enumerate(other):
            here, there = np.flatnonzero(at_row == a), np.flatnonzero(at_column == b)
            block = np.full((len(here), len(there)), _UNNUMBERED * abs(counts[0][a] - counts[1][b]), np.float32)
            if first and second:
                found = numbering.align(first, second)
                for i, j, link in found.links:
                    mine = np.array([link.partner.get(values_row[n][i], -1) for n in here])
                    theirs = np.array([values_column[n][j] for n in there])
                    block += strong * (mine[:, None] != theirs[None, :])
                trust[np.ix_(here, there)] = found.trust
            apart[np.ix_(here, there)] = block
    # a pair that no number speaks of is left over by pairs that numbers made: it is no surer than they are
    silent = trust == 1
    least = np.minimum(trust.min(axis=1, keepdims=True), trust.min(axis=0, keepdims=True))
    return apart, np.where(silent, least, trust)


def _series(places: list[int], side: Numbers) -> tuple[list[tuple[Series, ...]], np.ndarray, list[tuple[int, ...]]]:
    here: dict[tuple, list[int]] = defaultdict(list)
    for place in places:
        for at in side.places[place]:
            here[at.key].append(at.value)
    found: list[Series] = []
    known: dict[tuple, int] = {}  # a key's series by number: equal series have one, and are compared once
    series: dict[Series, int] = {}
    for key, those in here.items():
        one = side.series(key, those)
        known[key] = series.setdefault(one, len(series))
        if len(series) > len(found):
            found.append(one)
    keys, values = [], []
    for place in places:
        telling = [at for at in side.places[place] if len(found[known[at.key]].here) > 1]
        keys.append(tuple(known[at.key] for at in telling))
        values.append(tuple(at.value for at in telling))
    different, numbers = _numbered(keys)
    return [tuple(found[n] for n in key) for key in different], numbers, values
