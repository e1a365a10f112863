"""Pairs the units of a source and a model: shapes decide what is possible, words and numbers what is likely."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.porting.proposals import numbering
from engine.porting.proposals.fitting import Layout
from engine.porting.proposals.grouping import Groups, Shapes, group_units, shapes_of
from engine.porting.proposals.numbering import Numbers, Series
from engine.porting.proposals.similarity import Likeness, match_mutually, share_belief, word_weights
from engine.porting.proposals.units import Unit

_APART = 10.0  # log odds against units whose numbers disagree
_UNNUMBERED = 1.5  # for a number that only one of two names has
_SURE = 0.8  # the belief from which other pairs may be inferred
_STEP = 1.2  # log odds per unit of distance in the model's order
_FAR = 5  # the distance from which it no longer counts
_IN_ORDER = 0.9  # the trust in proximity
_FEW = 8  # the most layers of a scope that locate it; a larger scope is most of the model
_MANY = 1_000_000
_MOST_CELLS = 26_000_000  # in a group of equal shapes; beyond that nobody would read the candidates


class Pair(NamedTuple):
    """Two units that may correspond, by their places, and the belief in this pair against others, in [0, 1].

    ``shared`` is the share of the words' information that the names have in common, in [0, 1]. ``clash`` says whether
    the names are of different things, such as a query and a key, and ``alone`` whether no other unit of either side is
    possible. ``rivals`` are the places of other sources, with the belief in each.
    """

    source: int
    target: int
    certainty: float
    shared: float
    clash: bool
    alone: bool
    rivals: tuple[tuple[int, float], ...]


def pair_units(sources: Sequence[Unit], targets: Sequence[Unit], layout: Layout) -> list[Pair]:
    """Finds the likeliest partner of each unit; time grows with the square of the largest group of equal shapes."""
    groups = group_units(sources, targets, layout)
    left = Numbers(sources, groups.sources, ordered=False)
    right = Numbers(targets, groups.targets, ordered=True)
    general = word_weights([unit.words for unit in sources], [unit.words for unit in targets])
    members: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, numbers in enumerate((groups.sources, groups.targets)):
        for place, number in enumerate(numbers):
            members[number][side].append(place)
    found: list[tuple[list[int], list[int], Likeness, _Belief]] = []
    sure: list[tuple[int, int]] = []
    for rows, columns in members.values():
        if rows and columns and len(rows) * len(columns) <= _MOST_CELLS:
            alike, so_far = _believe(sources, targets, rows, columns, groups, left, right, general)
            found.append((rows, columns, alike, so_far))
            sure += [(rows[i], columns[j]) for i, j in match_mutually(so_far.shares) if so_far.shares[i, j] > _SURE]
    near = _neighbours(sources, targets, sure)
    pairs: list[Pair] = []
    for rows, columns, alike, so_far in found:
        pairs += _pairs(rows, columns, alike, _by_neighbours(so_far, near, rows, columns, targets))
    return pairs


class _Belief(NamedTuple):
    """For each pair in a group: the log odds by words and numbers, the trust in the numbers, and the belief."""

    score: np.ndarray
    trust: np.ndarray
    shares: np.ndarray


def _neighbours(sources: Sequence[Unit], targets: Sequence[Unit], sure: Sequence[tuple[int, int]]) -> dict[int, float]:
    """Returns, for each source unit, where the model has the units of the same scope whose pairs are certain."""
    places: dict[tuple, list[int]] = defaultdict(list)
    for source, target in sure:
        tokens = sources[source].tokens
        for end in sources[source].ends:
            places[tokens[:end]].append(targets[target].position)
    found = {}
    for number, unit in enumerate(sources):
        end = next((end for end in sorted(unit.ends, reverse=True) if unit.tokens[:end] in places), 0)
        if end and len(places[unit.tokens[:end]]) <= _FEW:
            found[number] = float(np.median(places[unit.tokens[:end]]))
    return found


def _by_neighbours(
    so_far: _Belief,
    near: dict[int, float],
    rows: list[int],
    columns: list[int],
    targets: Sequence[Unit],
) -> np.ndarray:
    """Shifts belief, where words and numbers leave it open, to units that are near in the model's order."""
    shares = so_far.shares
    if shares.size < 2 or shares.size > _MANY:
        return shares
    doubtful = (shares.max(axis=1, keepdims=True) < _SURE) & (shares.max(axis=0, keepdims=True) < _SURE)
    if not doubtful.any():
        return shares
    places = np.array([targets[n].position for n in columns], np.float32)
    apart = np.zeros(shares.shape, np.float32)
    for row, number in enumerate(rows):
        if number in near:
            apart[row] = _STEP * np.minimum(np.abs(places - near[number]), _FAR)
    moved = _IN_ORDER * share_belief(so_far.score - apart) + (1 - _IN_ORDER) * shares
    result: np.ndarray = np.where(doubtful & (so_far.trust > _SURE), moved, shares)
    return result


def _believe(
    sources: Sequence[Unit],
    targets: Sequence[Unit],
    rows: list[int],
    columns: list[int],
    groups: Groups,
    left: Numbers,
    right: Numbers,
    general: dict[str, float],
) -> tuple[Likeness, _Belief]:
    """Computes the belief in the pairs of a group from words and numbers."""
    alike = Likeness([sources[n].words for n in rows], [targets[n].words for n in columns], general)
    score = alike.score - _costs([sources[n] for n in rows], [targets[n] for n in columns], groups.costs)
    by_words = share_belief(score)
    if score.size == 1:  # numbers do not matter where there is one of each
        return alike, _Belief(score, np.ones(score.shape, np.float32), by_words)
    apart, trust = _numbers(rows, columns, left, right)
    by_both = share_belief(score - apart) if apart.any() else by_words
    return alike, _Belief(score - apart, trust, trust * by_both + (1 - trust) * by_words)


def _pairs(rows: list[int], columns: list[int], alike: Likeness, shares: np.ndarray) -> list[Pair]:
    pairs = []
    for row, column in match_mutually(shares):
        others = [n for n in np.argsort(-shares[:, column])[:4] if n != row and shares[n, column] > 0.02][:3]
        pairs.append(
            Pair(
                source=rows[row],
                target=columns[column],
                certainty=float(min(shares[row, column], 1)),
                shared=float(alike.shared[row, column]),
                clash=bool(alike.clash[row, column]),
                alone=shares.size == 1,
                rivals=tuple((rows[n], float(shares[n, column])) for n in others),
            )
        )
    return pairs


def _costs(left: list[Unit], right: list[Unit], costs: dict[tuple[Shapes, Shapes], float]) -> np.ndarray:
    one, rows = _numbered([shapes_of(unit) for unit in left])
    other, columns = _numbered([shapes_of(unit) for unit in right])
    table = np.array([[costs.get((a, b), np.inf) for b in other] for a in one], np.float32)
    found: np.ndarray = table[np.ix_(rows, columns)]
    return found


def _numbered(keys: Sequence) -> tuple[list, np.ndarray]:
    """Returns the distinct keys, and the number of the key of each entry."""
    different = dict.fromkeys(keys)
    places = {key: place for place, key in enumerate(different)}
    return list(different), np.array([places[key] for key in keys], np.int64)


def _numbers(rows: list[int], columns: list[int], left: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log odds against each pair by its numbers, and the trust in the comparison."""
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
                found = numbering.align_numbers(first, second)
                for i, j, link in found.links:
                    mine = np.array([link.partner.get(values_row[n][i], -1) for n in here])
                    theirs = np.array([values_column[n][j] for n in there])
                    block += strong * (mine[:, None] != theirs[None, :])
                trust[np.ix_(here, there)] = found.trust
            apart[np.ix_(here, there)] = block
    # a pair without numbers is what numbered pairs leave over, so it is no more certain than they are
    silent = trust == 1
    least = np.minimum(trust.min(axis=1, keepdims=True), trust.min(axis=0, keepdims=True))
    return apart, np.where(silent, least, trust)


def _series(places: list[int], side: Numbers) -> tuple[list[tuple[Series, ...]], np.ndarray, list[tuple[int, ...]]]:
    here: dict[tuple, list[int]] = defaultdict(list)
    for place in places:
        for at in side.places[place]:
            here[at.key].append(at.value)
    found: list[Series] = []
    known: dict[tuple, int] = {}  # the number of the series of each key: equal series share one and are compared once
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
