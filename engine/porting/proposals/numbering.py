"""Matches the numbers in the names of two sides: ``conv1 .. conv5`` and ``conv2d, conv2d_1 .. conv2d_4``.

The numbers at one place in names (after the same beginning) are a series. A name without a number where others
have one counts as the number before theirs (``conv2d`` as 0, ``block`` before ``block2`` as 1). Two series
correspond by value if they hold the same numbers, and by rank if they are shifted. How far that can be trusted
depends on what else fits: the layers under each number, the order in the model, and whether numbers are missing.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from engine.porting.proposals.units import Unit
from engine.porting.proposals.words import Token, canonical_words

_AUTOMATIC = re.compile(
    r"((separable_|depthwise_)?conv[123]d(_transpose)?|dense|(batch|layer|group)_normalization|embedding|p_re_lu|multi_head_attention)"
)

_DOUBT = 0.5  # where another reading of the numbers is about as good; two candidates then reach 0.75 at most


class Series(NamedTuple):
    """The numbers at one place in names: all ``values``, and those of the units in question (of one shape), ``here``.

    ``before`` and ``after`` are the canonical words around the place, ``raw`` is the one before as written. ``profile``
    has the shapes of the units with each value, and ``by_model`` the positions of the values in the order of the model.
    ``automatic`` series were numbered by Keras or TensorFlow, in the order of creation; in ``parallel`` ones, which are
    in a model with parallel branches, that order says little.
    """

    values: tuple[int, ...]
    here: tuple[int, ...]
    before: str
    after: str
    raw: str
    profile: tuple[frozenset[int], ...]
    by_model: tuple[int, ...] | None
    parallel: bool
    automatic: bool


class Place(NamedTuple):
    """A number in a unit's name: the key of its series, and the value."""

    key: tuple[Token, ...]
    value: int


class Numbers:
    """All series of one side.

    ``shapes`` has a number for the shape of each unit; units with equal numbers may correspond. ``ordered`` says
    whether the units are in the order of the model.
    """

    def __init__(self, units: Sequence[Unit], shapes: Sequence[int], *, ordered: bool) -> None:
        self.units, self.shapes, self.ordered = units, shapes, ordered
        explicit: dict[tuple[Token, ...], set[int]] = defaultdict(set)
        for unit in units:
            for place, token in enumerate(unit.tokens):
                if isinstance(token, int):
                    explicit[unit.tokens[:place]].add(token)
        stripped = {
            (unit.tokens[:place], unit.tokens[place + 1 :])
            for unit in units for place, token in enumerate(unit.tokens) if isinstance(token, int)
        }  # fmt: skip
        least = {key: min(values) for key, values in explicit.items() if key and isinstance(key[-1], str)}
        self.places: list[tuple[Place, ...]] = []
        members: dict[tuple[Token, ...], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, unit in enumerate(units):
            found = []
            for place in range(len(unit.tokens) + 1):
                token = unit.tokens[place] if place < len(unit.tokens) else ""
                key = unit.tokens[:place]
                if isinstance(token, int):
                    found.append(Place(key, token))
                elif least.get(key, 0) > 0 and (place in unit.ends or (key, unit.tokens[place:]) in stripped):
                    found.append(Place(key, least[key] - 1))
            for at in found:
                members[at.key][at.value].append(number)
            self.places.append(tuple(found))
        self.members = {key: values for key, values in members.items() if len(values) > 1}
        self.places = [tuple(at for at in found if at.key in self.members) for found in self.places]
        self._known: dict[tuple[Token, ...], Series] = {}
        self._branches = self._parallel()

    def _parallel(self) -> frozenset[tuple[Token, ...]]:
        """Returns the keys of automatic series in which some kernel reads the same input as an earlier one."""
        found = set()
        for key, values in self.members.items():
            if not _automatic(key):
                continue
            inputs: list[int] = []
            width = None
            for value in sorted(values):
                kernels = [self.units[n].items["kernel"] for n in values[value] if "kernel" in self.units[n].items]
                if not kernels or len(kernels[0].shape) < 2:
                    continue
                shape = kernels[0].shape
                if shape[-2] in inputs and shape[-2] != width:
                    found.add(key)
                inputs.append(shape[-2])
                width = shape[-1]
        return frozenset(found)

    def series(self, key: tuple[Token, ...], here: Iterable[int]) -> Series:
        """Returns a series; ``here`` are the numbers of the units in question."""
        if key not in self._known:
            self._known[key] = self._series(key)
        return self._known[key]._replace(here=tuple(sorted(set(here))))

    def _series(self, key: tuple[Token, ...]) -> Series:
        values = self.members[key]
        numbers = tuple(sorted(values))
        words = canonical_words(tuple(token for token in key if isinstance(token, str)))
        first = self.units[next(iter(values.values()))[0]]
        after = canonical_words(first.tokens[len(key) + 1 :])
        by_model = None
        if self.ordered:
            places = [min(self.units[n].position for n in values[value]) for value in numbers]
            by_model = tuple(int(place) for place in np.argsort(places))
        return Series(
            values=numbers,
            here=(),
            before=words[-1] if words else "",
            after=after[0] if after else "",
            raw=str(key[-1]) if key else "",
            profile=tuple(frozenset(self.shapes[n] for n in values[value]) for value in numbers),
            by_model=by_model,
            parallel=bool(self._branches) and _automatic(key),
            automatic=_automatic(key),
        )


def _automatic(key: tuple[Token, ...]) -> bool:
    """Whether the words before the number are a name that Keras or TensorFlow generates."""
    words: list[str] = []
    for token in reversed(key):
        if not isinstance(token, str):
            break
        words.insert(0, token)
    return any(_AUTOMATIC.fullmatch("_".join(words[place:])) for place in range(len(words)))


class Link(NamedTuple):
    """How two series correspond: the partner of each value of the first, and the trust in it, in [0, 1]."""

    partner: dict[int, int]
    trust: float


@functools.lru_cache(maxsize=1 << 14)
def link_series(one: Series, other: Series) -> Link | None:
    """Finds how two series correspond; None if there is no plausible way."""
    found = _by_numbers(one, other)
    if found is None:
        return None
    partner, trust = found.partner, found.trust
    index = {value: place for place, value in enumerate(other.values)}
    pairs = [(one.profile[place], other.profile[index[partner[value]]])
             for place, value in enumerate(one.values) if value in partner]  # fmt: skip
    fits = [len(a & b) / min(len(a), len(b)) for a, b in pairs]
    if fits and float(np.mean(fits)) < 0.75:
        trust = min(trust, 0.5)  # the layers under the numbers differ
    decided = len({a for a, _ in pairs}) > 1 and float(np.mean(fits)) > 0.99
    for series, far in ((one, other), (other, one)):
        if series.parallel:
            trust = min(trust, _DOUBT)
        if series.by_model is not None and list(series.by_model) != sorted(series.by_model):
            shuffled = [series.profile[place] for place in series.by_model]
            if not (decided and len(shuffled) == len(far.profile) and any(
                not a & b for a, b in zip(shuffled, far.profile, strict=True))):  # fmt: skip
                trust = min(trust, _DOUBT)  # the numbers and the model are in different orders
    return Link(partner, trust)


def _by_numbers(one: Series, other: Series) -> Link | None:
    a, b = one.values, other.values
    if a == b:
        return Link(dict(zip(a, b, strict=True)), 0.97)
    if len(a) == len(b) and _shifted(a, b):
        return Link(dict(zip(a, b, strict=True)), 0.93)
    here, there = one.here, other.here
    if len(here) > 1 and here == there:
        return Link(dict(zip(here, there, strict=True)), 0.92)
    if len(here) == len(there) > 1:
        common = set(here) & set(there)
        if _shifted(here, there):
            return Link(
                dict(zip(here, there, strict=True)), 0.88 if not common or one.automatic or other.automatic else 0.7
            )
        if all(here.index(value) == there.index(value) for value in common):
            return Link(dict(zip(here, there, strict=True)), _DOUBT)
        return Link({value: value for value in common}, 0.4)
    few, many = sorted((set(a), set(b)), key=len)
    if few < many:
        same = {value: value for value in few}
        if min(few) == min(many) and max(few) == max(many):
            return Link(same, 0.92)
        if min(few) == min(many) and one.raw == other.raw:
            return Link(same, 0.85 if one.before == other.before else _DOUBT)
        return Link(same, _DOUBT)
    return None


def _shifted(a: Sequence[int], b: Sequence[int]) -> bool:
    return len({x - y for x, y in zip(a, b, strict=True)}) == 1


class Aligned(NamedTuple):
    """The places of two names that correspond as (place in one, place in the other, link), and the trust in them."""

    links: tuple[tuple[int, int, Link], ...]
    trust: float


@functools.lru_cache(maxsize=1 << 16)
def align_numbers(one: tuple[Series, ...], other: tuple[Series, ...]) -> Aligned:
    """Finds which numbers in two names correspond, in their order."""
    scored: list[tuple[float, tuple[tuple[int, int, Link], ...]]] = [(0.0, ())]
    links = {
        (i, j): found
        for i, a in enumerate(one)
        for j, b in enumerate(other)
        if (found := link_series(a, b)) is not None
    }
    most = min(len(one), len(other), 3)
    for count in range(1, most + 1):
        for left in combinations(range(len(one)), count):
            for right in combinations(range(len(other)), count):
                pairs = list(zip(left, right, strict=True))
                if all(pair in links for pair in pairs):
                    score = sum(_affinity(one[i], other[j], links[i, j]) for i, j in pairs)
                    scored.append((score, tuple((i, j, links[i, j]) for i, j in pairs)))
    scored.sort(key=lambda pair: -pair[0])
    best = scored[0]
    if not best[1]:
        return Aligned((), 1.0)
    trust = min(found.trust for _, _, found in best[1])
    if len(scored) > 1 and best[0] - scored[1][0] < 0.25 and len(scored[1][1]) == len(best[1]):
        trust = min(trust, _DOUBT)  # another reading is about as good
    return Aligned(best[1], trust)


def _affinity(one: Series, other: Series, found: Link) -> float:
    score = 2 * found.trust
    score += 0.6 * (one.before == other.before != "") + 0.3 * (one.raw == other.raw) + 0.3 * (one.after == other.after)
    return score
