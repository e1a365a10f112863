"""Compares two sets of names word by word, and shares the belief among the possible pairs."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from engine.porting.proposals.words import EXCLUSIVE, MARKED

_MANY = 250_000
_FUZZY_WORDS = 300  # with more unknown words on a side, only equal words count
_MATCH, _LACK = 3.8, 0.8  # log odds for a word of weight 1 that both have, and for one that only one has
_CONFLICT = 6.0
_MARK = 3.0


def word_weights(sources: Sequence[frozenset[str]], targets: Sequence[frozenset[str]]) -> dict[str, float]:
    """Returns the weight of each word: the rarer, the larger (inverse document frequency)."""
    counts = Counter(word for words in (*sources, *targets) for word in words)
    total = len(sources) + len(targets)
    return {word: 0.15 + float(np.log(total / count)) for word, count in counts.items()}


class Likeness:
    """A word-by-word comparison of every source unit with every target unit, as arrays [sources, targets].

    A larger ``score`` is more alike, and its differences are approximately log odds. ``shared`` is the share of the
    words' information that both have, in [0, 1], and ``clash`` is True where the names are of different things.
    """

    def __init__(
        self, sources: Sequence[frozenset[str]], targets: Sequence[frozenset[str]], general: dict[str, float]
    ) -> None:
        """``general`` are the weights of words among all units, not only the compared ones."""
        weights = word_weights(sources, targets)
        links = _alike(sources, targets)
        # a word of only one side counts in the sums, but needs no column
        telling = {word for link in links for word in link[:2]} | set().union(*EXCLUSIVE) | MARKED
        telling |= set().union(*sources) & set().union(*targets) if sources and targets else set()
        columns = {word: place for place, word in enumerate(sorted(telling & set(weights)))}
        weight = np.array([weights[word] for word in columns], np.float32)
        extra = np.array([share * min(weights[a], weights[b]) for a, b, share in links], np.float32)
        left, right = _incidence(sources, columns), _incidence(targets, columns)
        one = _joined(left, [columns[a] for a, _, _ in links])
        other = _joined(right, [columns[b] for _, b, _ in links])
        both = np.concatenate([weight, extra])
        match = (one * both) @ other.T
        total = _sums(sources, weights)[:, None] + _sums(targets, weights)[None, :]
        clash = np.zeros(match.shape, np.float32)
        for group in EXCLUSIVE:
            places = [columns[word] for word in group if word in columns]
            if len(places) > 1:
                a, b = left[:, places], right[:, places]
                either = np.outer(a.any(1), b.any(1))
                clash += either & ((a @ b.T) == 0)
        marks = [columns[word] for word in MARKED if word in columns]
        marked = sum((np.abs(left[:, [p]] - right[:, p][None, :]) for p in marks), np.zeros(match.shape, np.float32))
        self.score = _MATCH * match - _LACK * (total - 2 * match) - _CONFLICT * clash - _MARK * marked
        weight = np.array([general[word] for word in columns], np.float32)
        extra = np.array([share * min(general[a], general[b]) for a, b, share in links], np.float32)
        match = (one * np.concatenate([weight, extra])) @ other.T
        total = _sums(sources, general)[:, None] + _sums(targets, general)[None, :]
        self.clash = clash + marked > 0
        self.shared = np.where(self.clash, 0, np.clip(2 * match / np.maximum(total, 1e-6), 0, 1))


def _incidence(units: Sequence[frozenset[str]], columns: dict[str, int]) -> np.ndarray:
    found = np.zeros((len(units), len(columns)), np.float32)
    for row, words in enumerate(units):
        for word in words & columns.keys():
            found[row, columns[word]] = 1
    return found


def _sums(units: Sequence[frozenset[str]], weights: dict[str, float]) -> np.ndarray:
    return np.array([sum(weights[word] for word in words) for words in units], np.float32)


def _joined(matrix: np.ndarray, places: Sequence[int]) -> np.ndarray:
    return np.concatenate([matrix, matrix[:, list(places)]], axis=1) if places else matrix


def _alike(sources: Sequence[frozenset[str]], targets: Sequence[frozenset[str]]) -> list[tuple[str, str, float]]:
    """Pairs similar words that only one side has each, such as disc and discriminator; each word once."""
    left, right = (set().union(*side) if side else set() for side in (sources, targets))
    ones, others = sorted(left - right), sorted(right - left)
    if max(len(ones), len(others)) > _FUZZY_WORDS:
        return []
    scored = [(share, a, b) for a in ones for b in others if (share := _look_alike(a, b)) > 0]
    found: list[tuple[str, str, float]] = []
    for share, a, b in sorted(scored, key=lambda item: (-item[0], item[1], item[2])):
        if all(a != one and b != other for one, other, _ in found):
            found.append((a, b, share))
    return found


def _look_alike(one: str, other: str) -> float:
    short, long = sorted((one, other), key=len)
    if len(short) < 3 or short[0] != long[0]:
        return 0.0
    if long.startswith(short):
        return 0.8
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    return 0.7 * ratio if ratio >= 0.8 else 0.0


def share_belief(score: np.ndarray, *, rounds: int = 60) -> np.ndarray:
    """Shares the belief among pairs, given that each row and each column has at most one partner.

    The rows and columns of exp(score) are scaled in turn until none sums to more than 1 (Sinkhorn and Knopp 1967), with
    a little left for having no partner. Equal candidates get equal shares. ``score`` has log odds [sources, targets],
    and -inf where a pair is impossible.
    """
    if not score.size:
        return np.zeros(score.shape)
    top = np.max(score, axis=1, keepdims=True)
    kernel = np.exp(score - np.where(np.isfinite(top), top, 0), dtype=np.float32)
    peak = kernel.max(axis=0, keepdims=True)
    kernel = kernel / np.where(peak > 0, peak, 1)
    slack = np.float32(0.003)
    down, right = np.ones(score.shape[0], np.float32), np.ones(score.shape[1], np.float32)
    for _ in range(rounds):
        down = 1 / (kernel @ right + slack)
        right = 1 / (kernel.T @ down + slack)
    shares: np.ndarray = down[:, None] * kernel * right[None, :]
    return shares


def match_mutually(shares: np.ndarray) -> Iterable[tuple[int, int]]:
    """Returns pairs in order of decreasing belief, each row and each column once."""
    if not shares.size:
        return []
    if shares.size > _MANY:  # only the best of each row and column
        few = 16
        best = np.zeros(shares.shape, bool)
        np.put_along_axis(best, np.argpartition(-shares, few, axis=1)[:, :few], True, axis=1)
        np.put_along_axis(best, np.argpartition(-shares, few, axis=0)[:few], True, axis=0)
        rows, columns = np.nonzero(best & (shares > 1e-4))
    else:
        rows, columns = np.nonzero(shares > 1e-4)
    order = np.lexsort((columns, rows, -shares[rows, columns].round(9)))
    used_rows, used_columns, found = set(), set(), []
    for at in order:
        row, column = int(rows[at]), int(columns[at])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            found.append((row, column))
    return found
