"""Which unit of a source is which unit of a model: shapes decide what can be, words and numbers what is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.porting.proposals import numbering
from engine.porting.proposals.fitting import Layout
from engine.porting.proposals.grouping import Groups, Shapes, group, shapes_of
from engine.porting.proposals.numbering import Numbers, Series
from engine.porting.proposals.similarity import Likeness, belief, mutual, word_weights
from engine.porting.proposals.units import Unit

_APART = 10.0  # log odds against units whose numbers disagree
_UNNUMBERED = 1.5  # for a number that only one of two names has
_SURE = 0.8  # belief that others may build on
_STEP, _FAR = 1.2, 5  # log odds for each unit of distance in the model's order, and where distance ends to count
_IN_ORDER = 0.9  # trust in nearness
_FEW = 8  # layers in a scope that say where it lies; a scope of more is most of the model
_MANY = 1_000_000
_MOST_CELLS = 26_000_000  # of one group of equal shapes; beyond that nobody would read the candidates


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
    found: list[tuple[list[int], list[int], Likeness, _Belief]] = []
    sure: list[tuple[int, int]] = []
    for rows, columns in members.values():
        if rows and columns and len(rows) * len(columns) <= _MOST_CELLS:
            alike, so_far = _believe(sources, targets, rows, columns, groups, left, right, general)
            found.append((rows, columns, alike, so_far))
            sure += [(rows[i], columns[j]) for i, j in mutual(so_far.shares) if so_far.shares[i, j] > _SURE]
    near = _neighbours(sources, targets, sure)
    pairs: list[Pair] = []
    for rows, columns, alike, so_far in found:
        pairs += _pairs(rows, columns, alike, _by_neighbours(so_far, near, rows, columns, targets))
    return pairs


class _Belief(NamedTuple):
    """Of each pairing of a group: log odds by words and numbers, trust in the numbers, and the belief."""

    score: np.ndarray
    trust: np.ndarray
    shares: np.ndarray


def _neighbours(sources: Sequence[Unit], targets: Sequence[Unit], sure: Sequence[tuple[int, int]]) -> dict[int, float]:
    """For each source unit the place in the model of what lies in the same scope, as far as that is sure."""
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
    """Belief moved, where words and numbers leave it open, to units that lie near in the model's order.

    ``attention/output/LayerNorm`` lies beside ``attention/output/dense``: of two norms it is the one that the
    model has near that layer's partner.
    """
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
    moved = _IN_ORDER * belief(so_far.score - apart) + (1 - _IN_ORDER) * shares
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
    """What words and numbers say of a group."""
    alike = Likeness([sources[n].words for n in rows], [targets[n].words for n in columns], general)
    score = alike.score - _costs([sources[n] for n in rows], [targets[n] for n in columns], groups.costs)
    by_words = belief(score)
    if score.size == 1:  # numbers tell nothing where there is one of each
        return alike, _Belief(score, np.ones(score.shape, np.float32), by_words)
    apart, trust = _numbers(rows, columns, left, right)
    by_both = belief(score - apart) if apart.any() else by_words
    return alike, _Belief(score - apart, trust, trust * by_both + (1 - trust) * by_words)


def _pairs(rows: list[int], columns: list[int], alike: Likeness, shares: np.ndarray) -> list[Pair]:
    pairs = []
    for row, column in mutual(shares):
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
