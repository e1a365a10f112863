"""Groups the variables of a layer into units, which must correspond to a unit of the other side as a whole."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engine.porting.proposals.fitting import Layout, Shape, drop_ones
from engine.porting.proposals.words import NORM_ROLES, Token, canonical_words, parse_name

CELLS = frozenset({"lstm", "gru", "rnn"})  # the roles of whole kernels of cells (engine.porting.proposals.recurrent)
_QKV = ("query", "key", "value")


class Item(NamedTuple):
    """One variable of either side, or an equal part of a tensor; ``type`` is "f" for floating point, or the dtype.

    Attributes:
        role: its role in the layer: "kernel", "bias", "gamma", "beta", "mean", "variance", "alpha", "lone" or "other";
            in a recurrent cell, one of CELLS, and "gates" for its bias.
        table: whether its name mentions an embedding.
        still: whether it is itself named like an embedding and not like a kernel, so that it is never transposed.
        part: (axis, number of the part of three) for a part of a fused query, key and value.
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
    """A layer, or a part of it that belongs together: kernel and bias, the four variables of a norm, or one variable.

    ``tokens`` and ``ends`` are its scope (engine.porting.proposals.words), ``words`` the canonical words of that, and
    ``items`` the variables by role. ``position`` is its place on its side, in order of appearance.
    """

    tokens: tuple[Token, ...]
    ends: frozenset[int]
    words: frozenset[str]
    items: dict[str, Item]
    position: int = 0
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        roles = set(self.items)
        self.kind = (
            "linear" if "kernel" in roles else "cell" if roles & CELLS else "norm" if roles & NORM_ROLES else min(roles)
        )

    @property
    def main(self) -> Item:
        """The most informative variable of the layer."""
        return max(self.items.values(), key=lambda item: (item.role == "kernel", len(item.shape)))

    @property
    def size(self) -> int:
        return math.prod(self.main.shape)


def make_units(entries: Iterable[tuple[str, Shape, str]]) -> list[Unit]:
    """Groups variables, given as (name, shape, type), by layer.

    The names of a scope are grouped by role, and where a role is ambiguous, by what else the scope holds: a
    ``weight`` of one axis next to a ``running_mean`` is a gamma.
    """
    scopes: dict[tuple[Token, ...], list[Item]] = defaultdict(list)
    ends: dict[tuple[Token, ...], frozenset[int]] = {}
    for name, shape, kind in entries:
        apart = parse_name(name)
        words = canonical_words(apart.tokens)
        table = apart.role == "table" or (apart.role in ("kernel", "") and "embed" in words)
        role = "kernel" if apart.role == "table" else apart.role
        tokens, end = apart.tokens, apart.ends
        if role == "kernel" and len(drop_ones(shape)) < 2 and "prelu" in words:
            role = "alpha"
        elif not role:  # without a role, the whole name is the scope
            role = "other"
        elif apart.role == "table" and not tokens:
            tokens, end = ("embed",), frozenset({1})
        scopes[tokens].append(Item(name, shape, kind, role, table, apart.role == "table"))
        ends[tokens] = end
    units: list[Unit] = []
    for tokens, items in scopes.items():
        said = canonical_words(tokens)
        for group in _groups(_resolved(items, said)):
            by_role = {item.role: item for item in group}
            units.append(Unit(tokens, ends[tokens], frozenset(said), by_role, len(units)))
    return units


def _resolved(items: list[Item], words: Sequence[str]) -> list[Item]:
    """Decides ambiguous roles by the other items of the scope."""
    roles = {item.role for item in items}
    wide = any(item.role == "kernel" and len(drop_ones(item.shape)) >= 2 for item in items)
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
    """Groups the items that are matched together; a role that occurs twice in a scope is on its own."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        kind = "linear" if item.role in ("kernel", "bias") else "norm" if item.role in NORM_ROLES else item.name
        if any(other.role == item.role for other in groups.get(kind, ())):
            kind = item.name
        groups.setdefault(kind, []).append(item)
    return list(groups.values())


def split_qkv(units: Sequence[Unit], layout: Layout) -> list[Unit]:
    """Splits every unit with query, key and value in one tensor into three; the others stay as they are."""
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
