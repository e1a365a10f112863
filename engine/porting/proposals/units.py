"""Variables of one layer put together: what must go to one layer of the other side as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engine.porting.proposals.fitting import Layout, Shape, bare
from engine.porting.proposals.words import NORM_ROLES, Token, take_apart, words_of

_QKV = ("query", "key", "value")


class Item(NamedTuple):
    """One variable of either side, or one of the equal parts of a tensor.

    Attributes:
        name, shape, type: ``type`` is "f" for floating point, else the dtype's name.
        role: within its layer: "kernel", "bias", "gamma", "beta", "mean", "variance", "alpha", "lone" or "other".
        table: its name speaks of an embedding.
        still: it is named as an embedding itself, not as a kernel: its axes are never those of a kernel.
        part: (axis, which of three) when it is a part of query, key and value in one.
    """

    name: str
    shape: Shape
    type: str
    role: str
    table: bool = False
    still: bool = False
    part: tuple[int, int] | None = None


@dataclass
class Unit:
    """A layer, or the part of it that goes together: kernel and bias; the four of a norm; one lone variable.

    Attributes:
        tokens, ends: the scope (engine.porting.proposals.words).
        words: its canonical words.
        items: by role.
        position: among the units of its side, in order of appearance.
    """

    tokens: tuple[Token, ...]
    ends: frozenset[int]
    words: frozenset[str]
    items: dict[str, Item]
    position: int = 0
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        roles = set(self.items)
        self.kind = "linear" if "kernel" in roles else "norm" if roles & NORM_ROLES else min(roles)

    @property
    def main(self) -> Item:
        """The variable that says most about the layer."""
        return max(self.items.values(), key=lambda item: (item.role == "kernel", len(item.shape)))

    @property
    def size(self) -> int:
        size = 1
        for length in self.main.shape:
            size *= length
        return size


def make_units(entries: Iterable[tuple[str, Shape, str]]) -> list[Unit]:
    """Groups (name, shape, type) by layer.

    Names of one scope go together: by role, and where a role is ambiguous, by what else the scope holds
    (``weight`` of one axis beside ``running_mean`` is a gamma).
    """
    scopes: dict[tuple[Token, ...], list[Item]] = defaultdict(list)
    ends: dict[tuple[Token, ...], frozenset[int]] = {}
    for name, shape, kind in entries:
        apart = take_apart(name)
        words = words_of(apart.tokens)
        table = apart.role == "table" or (apart.role in ("kernel", "") and "embed" in words)
        role = "kernel" if apart.role == "table" else apart.role
        tokens, end = apart.tokens, apart.ends
        if role == "kernel" and len(bare(shape)) < 2 and "prelu" in words:
            role = "alpha"
        elif not role:  # of its own: the whole name is its scope
            role = "other"
        elif apart.role == "table" and not tokens:
            tokens, end = ("embed",), frozenset({1})
        scopes[tokens].append(Item(name, shape, kind, role, table, apart.role == "table"))
        ends[tokens] = end
    units: list[Unit] = []
    for tokens, items in scopes.items():
        said = words_of(tokens)
        for group in _groups(_resolved(items, said)):
            by_role = {item.role: item for item in group}
            units.append(Unit(tokens, ends[tokens], frozenset(said), by_role, len(units)))
    return units


def _resolved(items: list[Item], words: Sequence[str]) -> list[Item]:
    """Ambiguous roles decided by the scope's other items."""
    roles = {item.role for item in items}
    wide = any(item.role == "kernel" and len(bare(item.shape)) >= 2 for item in items)
    flat = any(item.role == "kernel" and len(item.shape) < 2 for item in items)
    norm = not wide and bool(roles & {"mean", "variance", "gamma"} or (flat and ("bias" in roles or "norm" in words)))
    found = []
    for item in items:
        if norm and item.role in ("kernel", "bias"):
            item = item._replace(role="gamma" if item.role == "kernel" else "beta")
        elif item.role == "kernel" and len(item.shape) < 2:
            item = item._replace(role="lone")
        found.append(item)
    return found


def _groups(items: list[Item]) -> list[list[Item]]:
    """Items that are matched together; a role that comes twice in a scope stands alone."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        kind = "linear" if item.role in ("kernel", "bias") else "norm" if item.role in NORM_ROLES else item.name
        if any(other.role == item.role for other in groups.get(kind, ())):
            kind = item.name
        groups.setdefault(kind, []).append(item)
    return list(groups.values())


def divided(units: Sequence[Unit], layout: Layout) -> list[Unit]:
    """Units with query, key and value in one tensor as three units each; the others as they are."""
    found: list[Unit] = []
    for unit in units:
        kernel = unit.items.get("kernel")
        axis = 0 if layout == "torch" else -1
        rank = len(kernel.shape) if kernel else 0
        if kernel is None or "qkv" not in unit.words or rank != 2 or kernel.shape[axis] % 3 or not kernel.shape[axis]:
            found.append(replace(unit, position=len(found)))
            continue
        for number, word in enumerate(_QKV):
            items = {}
            for role, item in unit.items.items():
                at = (axis % rank) if role == "kernel" else 0
                shape = (*item.shape[:at], item.shape[at] // 3, *item.shape[at + 1 :])
                items[role] = item._replace(shape=shape, part=(at, number))
            words = (unit.words - {"qkv"}) | {word}
            found.append(Unit(unit.tokens, unit.ends, words, items, len(found)))
    return found
