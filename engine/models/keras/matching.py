"""Decides which layer of a file belongs to which layer of a model: by name, by class and number, and only then by position."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.models.keras.leaves import Leaf, Leaves
from engine.text import join_some

Pairs = list[tuple[Leaf, Leaf]]


@dataclass(eq=False)
class Match:
    """Which leaf of a file belongs to each leaf with weights of a model.

    Attributes:
        found: the file's leaf for each of the model's, by the id of the model's leaf.
        problems: reasons why leaves were not matched, one sentence each.
        notes: what was decided without names, for the user.
    """

    found: dict[int, Leaf] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, pairs: Pairs) -> None:
        self.found.update({id(mine): theirs for mine, theirs in pairs})

    def pairs(self, ours: Sequence[Leaf]) -> Pairs:
        return [(leaf, self.found[id(leaf)]) for leaf in ours if id(leaf) in self.found]


def match_leaves(ours: Sequence[Leaf], theirs: Leaves, *, same_model: bool = False) -> Match:
    """Matches the leaves with weights of a model, or of a part of it, in order, with those of a file.

    Automatic names count as names if the model was built from the file itself (``same_model``).
    """
    match = Match()
    _match_names(match, ours, theirs.weighted, automatic=same_model)
    for step in (_match_keys, _match_numbers, _match_positions):
        used = {id(leaf) for leaf in match.found.values()}
        rest = [leaf for leaf in ours if id(leaf) not in match.found]
        left = [leaf for leaf in theirs.weighted if id(leaf) not in used]
        if rest and left and not match.problems:
            step(match, ours, rest, left, theirs)
    taken: dict[int, Leaf] = {}
    for mine, leaf in match.pairs(ours):
        if id(leaf) in taken:
            match.problems.append(
                f"{leaf.full_name} of the file fits both {taken[id(leaf)].full_name} and {mine.full_name}"
            )
        taken[id(leaf)] = mine
    return match


def same_shapes(mine: Leaf, theirs: Leaf) -> bool:
    return map_arrays(mine, theirs)[0] is not None


def map_arrays(mine: Leaf, theirs: Leaf) -> tuple[dict[str, str] | None, bool]:
    """The file's name for each array of a model's layer, or None if the shapes differ; and whether names decided."""
    # Keras 2 counts the batches that a Normalization layer has seen; the count does not matter afterwards
    extra = {
        n for n in theirs.arrays if n not in mine.arrays and theirs.arrays[n] == () and "normalization" in mine.kind
    }
    given = {name: shape for name, shape in theirs.arrays.items() if name not in extra}
    if len(given) != len(mine.arrays):
        return None, True
    for plain in (str, _plain_name):
        names = {plain(name): name for name in given}
        if len(names) == len(given) and names.keys() == {plain(name) for name in mine.arrays}:
            mapped = {name: names[plain(name)] for name in mine.arrays}
            fits = all(mine.arrays[name] == given[other] for name, other in mapped.items())
            return (mapped if fits else None), True
    if list(mine.arrays.values()) == list(given.values()):
        return dict(zip(mine.arrays, given, strict=True)), False
    return None, False


def _plain_name(name: str) -> str:
    """An array's own name, as Keras 3 has it: a depthwise layer's ``depthwise_kernel`` was renamed ``kernel``."""
    own = re.sub(r"_\d+$", "", name.rpartition("/")[2])
    return "kernel" if own == "depthwise_kernel" else own


def _match_names(match: Match, ours: Sequence[Leaf], left: Sequence[Leaf], *, automatic: bool) -> None:
    """Names of their own decide; where a name occurs several times, the models around the layer do."""
    by_name: dict[str, list[Leaf]] = {}
    for leaf in left:
        by_name.setdefault(leaf.name, []).append(leaf)
    count: dict[str, int] = {}
    for leaf in ours:
        count[leaf.name] = count.get(leaf.name, 0) + 1
    for leaf in ours:
        if (leaf.rank is not None and not automatic) or leaf.name not in by_name:
            continue
        candidates = by_name[leaf.name]
        if len(candidates) > 1 or count[leaf.name] > 1:
            shared = [_common_end(leaf.path, each.path) for each in candidates]
            best = [each for each, common in zip(candidates, shared, strict=True) if common == max(shared)]
            if len(best) > 1 or (count[leaf.name] > 1 and not max(shared)):
                continue
            candidates = best
        match.add([(leaf, candidates[0])])


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def _match_keys(match: Match, ours: Sequence[Leaf], rest: list[Leaf], left: list[Leaf], theirs: Leaves) -> None:
    """By the place in a ``.weights.h5``: class and number within the model, wherever the file has that model."""
    if not all(leaf.key for leaf in left):
        return
    base = _common_start([leaf.key for leaf in ours])
    by_key = {leaf.key: leaf for leaf in theirs.weighted}
    relative = [leaf.key[len(base) :] for leaf in rest]
    starts = {leaf.key[: leaf.key.rindex("layers/")] for leaf in left if "layers/" in leaf.key}
    starts |= {start[: at.start()] for start in starts for at in re.finditer(r"layers/", start)}
    fits = []
    for start in sorted(starts):
        pairs = [(mine, by_key[start + key]) for mine, key in zip(rest, relative, strict=True) if start + key in by_key]
        if len(pairs) == len(rest) and all(same_shapes(*pair) for pair in pairs):
            fits.append((start, pairs))
    _choose(match, fits, rest)
    if len(fits) == 1 and (renamed := _renamed(fits[0][1])):
        match.notes.append(f"by class and order, since names differ ({join_some(renamed, most=2)})")


def _renamed(pairs: Pairs) -> list[str]:
    return [f"{b.name} of the file is {a.name}" for a, b in pairs if b.name and b.rank is None and a.rank is None]


def _choose(match: Match, fits: Sequence[tuple[object, Pairs]], rest: Sequence[Leaf]) -> None:
    different = {tuple(id(theirs) for _, theirs in pairs): pairs for _, pairs in fits}
    if len(different) == 1:
        match.add(next(iter(different.values())))
    elif different:
        match.problems.append(
            f"{len(different)} parts of the file fit {rest[0].full_name} and the layers that follow it, "
            "and no name tells which is meant"
        )


def _common_start(keys: Sequence[str]) -> str:
    """The key of the innermost model that holds all layers, up to and including the slash: ``layers/functional/``."""
    parts = [re.findall(r"layers/[^/]+/?", key)[:-1] for key in keys]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) != 1:
            break
        shared.append(column[0])
    return "".join(shared) if all(len(each) >= len(shared) for each in parts) else ""


def _match_numbers(match: Match, ours: Sequence[Leaf], rest: list[Leaf], left: list[Leaf], theirs: Leaves) -> None:
    """By automatic names: the layers of a class, in the order of their numbers, within one model of the file."""
    automatic = [leaf for leaf in left if leaf.kind and leaf.rank is not None]
    kinds = {leaf.kind for leaf in rest}
    if theirs.ordered is False or not kinds <= {leaf.kind for leaf in automatic}:
        return
    exact, larger = list[tuple[object, Pairs]](), list[tuple[object, Pairs]]()
    wrong = False
    for start in sorted({leaf.path[:n] for leaf in automatic for n in range(len(leaf.path) + 1)}):
        inside = [leaf for leaf in automatic if leaf.path[: len(start)] == start]
        pairs: Pairs = []
        for kind in kinds:
            mine = _by_number([leaf for leaf in rest if leaf.kind == kind])
            pairs += zip(mine, _by_number([leaf for leaf in inside if leaf.kind == kind]), strict=False)
        if len(pairs) < len(rest) or not all(same_shapes(*pair) for pair in pairs):
            continue
        pairs.sort(key=lambda pair: rest.index(pair[0]))
        if not _in_order([*pairs, *match.pairs(ours)], ours, theirs):
            wrong = True
            continue
        (exact if len(inside) == len(rest) else larger).append((start, pairs))
    _choose(match, exact or larger[-1:], rest)
    if wrong and not exact and not larger:
        match.problems.append(
            f"the automatic names of the file (such as {automatic[0].full_name}) are not numbered in the order of its "
            "layers: either it was saved with a part frozen, or its layers were made in another order; which layer is "
            "which cannot be known. A file of the whole model, or a .weights.h5 file, tells"
        )
    elif any(pair[0].rank is None for _, pairs in (exact or larger[-1:])[:1] for pair in pairs):
        match.notes.append(f"by the numbers in its automatic names, such as {automatic[0].name}")


def _by_number(leaves: Sequence[Leaf]) -> list[Leaf]:
    if any(leaf.rank is None for leaf in leaves):
        return list(leaves)
    return sorted(leaves, key=lambda leaf: leaf.rank or 0)


def _in_order(pairs: Pairs, ours: Sequence[Leaf], theirs: Leaves) -> bool:
    """Whether the file lists the layers in the model's order.

    Old ``.h5`` files list the weights of a nested model in two runs: the trainable ones, and then the others. One step back
    is therefore right where the model was frozen in part, if the file proves that it was.
    """
    mine = {id(leaf): number for number, leaf in enumerate(ours)}
    place = {id(leaf): number for number, leaf in enumerate(theirs)}
    runs: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    for _, other in sorted(pairs, key=lambda pair: mine[id(pair[0])]):
        group = other.path[:1] if other.path[:1] in theirs.opaque else ()
        second = bool(group) and other.kind == "normalization"  # whose weights never train: always in the second run
        runs.setdefault((group, second), []).append(place[id(other)])
    return all(
        _falls(run) <= (1 if group and _frozen_in_part(theirs, group) else 0) for (group, _), run in runs.items()
    )


def _frozen_in_part(theirs: Leaves, group: tuple[str, ...]) -> bool:
    """Whether some BatchNorms of a nested model were frozen at saving, which keeps their arrays together, and others not."""
    norms = [leaf for leaf in theirs if leaf.path[:1] == group and leaf.kind == "batch_normalization"]
    together = {leaf.places[-1] - leaf.places[0] == len(leaf.places) - 1 for leaf in norms if len(leaf.places) > 2}
    return together == {True, False}


def _falls(places: Sequence[int]) -> int:
    """How often the model's order steps back where the layers are taken in the file's order."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    return sum(after < before for before, after in itertools.pairwise(order))


def _match_positions(match: Match, ours: Sequence[Leaf], rest: list[Leaf], left: list[Leaf], theirs: Leaves) -> None:
    """By position: only for layers that the file lists one by one, in order, with equal shapes; it is said."""
    if not theirs.ordered or any(leaf.path[:1] in theirs.opaque for leaf in left) or len(left) < len(rest):
        return
    pairs = list(zip(rest, left, strict=False))
    kinds = all(other.kind in ("", mine.kind) for mine, other in pairs)
    if kinds and all(same_shapes(*pair) for pair in pairs) and _in_order([*pairs, *match.pairs(ours)], ours, theirs):
        match.add(pairs)
        names = join_some([f"{other.name} as {mine.name}" for mine, other in pairs], most=2)
        match.notes.append(f"{len(pairs)} layers by position, since their names differ ({names})")
