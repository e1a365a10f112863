"""The inventory of a weights file: its variables with their slots and averages, its scalars, and what is damaged."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compat_v1.checkpoints.families import Families, Family, group_families
from engine import text
from engine.errors import InputError
from engine.files import FileError
from engine.porting.readers import verify
from engine.porting.readers.source import TensorSource

_KINDS = {
    "V1Checkpoint": "TensorFlow checkpoint, V1 format",
    "Checkpoint": "TensorFlow checkpoint, V2 format",
    "Npz": ".npz",
    "Safetensors": "safetensors",
    "KerasH5": "Keras HDF5",
    "FrozenFile": "frozen graph",
}
_MOST_SCALARS = 20  # values that are shown; a file may hold thousands of scalars


@dataclass(frozen=True)
class Inventory:
    """The contents of a weights file, as text and as JSON. The source must still be open for ``to_text``.

    ``shown`` are the variables that the pattern matches, ``damage`` are the damaged tensors, none if nothing was
    verified, and ``verified`` says whether every tensor was read.
    """

    source: TensorSource
    families: Families
    shown: tuple[Family, ...]
    damage: Sequence[verify.Damage]
    verified: bool

    @functools.cached_property
    def damaged(self) -> Mapping[str, str]:
        """Tensor -> the reason why it cannot be read."""
        return {each.name: each.reason for each in self.damage}

    @property
    def kind(self) -> str:
        """The format of the file."""
        name = type(getattr(self.source, "source", self.source)).__name__
        return _KINDS.get(name, name)

    def to_text(self) -> str:
        """Returns a table of the variables, the values of scalars, totals, and the damage that was found."""
        rows = [row for family in self.shown for row in self._rows(family)]
        table = [text.table(rows, right={3})] if rows else []
        parts = [
            f"{self.source.path}: {self.kind}",
            "",
            *table,
            *self._scalars(),
            "",
            *self._totals(),
            *self._remarks(),
            *self._damage(),
        ]
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the contents of the JSON file that inspect_checkpoint writes."""
        return {
            "source": str(self.source.path),
            "kind": self.kind,
            "variables": [
                {
                    "name": family.name,
                    "shape": list(family.shape),
                    "dtype": family.dtype.name,
                    "bytes": count_bytes(self.source, family.name),
                    "ema": family.ema,
                    "slots": family.slots,
                    "others": family.others,
                    **({"feeds": feeds} if (feeds := self._feeds(family.name)) else {}),
                }
                for family in self.shown
            ],
            "state": {role: list(names) for role, names in self.families.state.items()},
            "damaged": dict(self.damaged),
            "verified": self.verified,
        }

    def _rows(self, family: Family) -> Iterator[tuple[str, str, str, str, str]]:
        """Yields a row for the variable and one for each thing that belongs to it: name, shape, dtype, bytes, notes."""
        name = family.name
        notes = [self._parts(name), self._feeds(name), "DAMAGED" if name in self.damaged else ""]
        shape = "x".join(map(str, family.shape)) or "scalar"
        yield name, shape, family.dtype.name, f"{count_bytes(self.source, name):,}", "  ".join(filter(None, notes))
        belongs = []
        if family.ema is not None:
            usual = family.ema == f"{name}/ExponentialMovingAverage"
            belongs.append(("average", {"ExponentialMovingAverage" if usual else family.ema: family.ema}))
        belongs += [(f"slots of {kind}", held) for kind, held in family.slots.items()]
        belongs += [("also", family.others)] if family.others else []
        for title, held in belongs:
            damaged = [slot for slot, tensor in held.items() if tensor in self.damaged]
            note = f"DAMAGED: {', '.join(damaged)}" if damaged else ""
            dtypes = ", ".join(dict.fromkeys(self.source.dtype(tensor).name for tensor in held.values()))
            size = sum(count_bytes(self.source, tensor) for tensor in held.values())
            yield f"    {title}: {', '.join(held)}", "", dtypes, f"{size:,}", note

    def _parts(self, name: str) -> str:
        """Returns how a partitioned variable is stored, or "" for one that is in one piece."""
        merged = getattr(self.source, "parts", {}).get(name)
        if merged is not None:
            axis = f"axis {merged.axis}" + (", assumed since all have the same shape" if merged.assumed else "")
            return f"{len(merged.names)} parts ({merged.names[0]} ...; {axis})"
        pieces = self.source.pieces(name) if hasattr(self.source, "pieces") else ()
        return f"{len(pieces)} slices" if len(pieces) > 1 else ""

    def _feeds(self, name: str) -> str:
        """Returns what a constant of a frozen graph is there, or "" in another file."""
        return str(self.source.describe(name)) if hasattr(self.source, "describe") else ""

    def _remarks(self) -> list[str]:
        return list(self.source.remarks()) if hasattr(self.source, "remarks") else []

    def _scalars(self) -> Iterator[str]:
        """Yields the scalars of optimizers and scalar variables, with their values."""
        names = [name for group in self.families.state.values() for name in group]
        names += [f.name for f in self.families.variables if f.shape == () and f.name not in names]
        if names:
            yield "\nscalars:"
        for name in names[:_MOST_SCALARS]:
            value = "DAMAGED" if name in self.damaged else self._value(name)
            yield f"    {name} = {value}  ({self.source.dtype(name).name})"
        if len(names) > _MOST_SCALARS:
            yield f"    ... and {len(names) - _MOST_SCALARS} more"

    def _value(self, name: str) -> str:
        try:
            value = self.source.read(name)[()]
        except FileError:
            return "cannot be read"
        return f"{value:g}" if value.dtype.kind == "f" else str(value)

    def _totals(self) -> Iterator[str]:
        variables, names = self.families.variables, self.source.names()
        elements = sum(math.prod(family.shape) for family in variables)
        averages = sum(family.ema is not None for family in variables)
        totals = [f"{len(variables)} variables of {elements:,} elements"]
        totals += [f"slots of {kind} for {count}" for kind, count in self.families.kinds().items()]
        totals += [f"averages of {averages}"] if averages else []
        totals += [f"{len(self.shown)} shown"] if len(self.shown) < len(variables) else []
        size = sum(count_bytes(self.source, name) for name in names)
        yield f"{', '.join(totals)}; {len(names)} tensors of {size:,} bytes"
        if merged := getattr(self.source, "parts", {}):
            parts = sum(len(each.names) for each in merged.values())
            yield f"{len(merged)} tensors were merged from {parts} parts"
        others = self.source.others() if hasattr(self.source, "others") else []
        if others:
            yield f"skipped since not numeric: {len(others)} ({text.join_some(others)})"

    def _damage(self) -> Iterator[str]:
        if not self.verified:
            yield "damage: not checked (--noverify)"
        elif self.damaged:
            yield f"\ndamage: {len(self.damaged)} of {len(self.source.names())} tensors cannot be read"
            for line in verify.describe_damage(self.damage):
                yield f"    {line.removeprefix(f'{self.source.path}: ')}"
        elif self.source.checksums:
            yield "damage: none; every tensor was read"
        else:
            yield "damage: none found; every tensor was read, but files of this kind have no checksums"


def take_inventory(
    source: TensorSource,
    *,
    pattern: str | None = None,
    verify_all: bool = True,
    on_read: Callable[[str], None] | None = None,
) -> Inventory:
    """Groups the tensors of a weights file by variable and, if ``verify_all``, reads them all to find damage.

    Only variables whose whole name ``pattern``, a regular expression, matches are shown. ``on_read`` is called with the
    name of each tensor that was read. Raises InputError if the pattern matches no variable.
    """
    found = group_families(source)
    chosen = text.compile_pattern(pattern or ".*", name="filter")
    shown = tuple(family for family in found.variables if chosen.fullmatch(family.name))
    if not shown and pattern is not None:
        names = [family.name for family in found.variables]
        raise InputError(f"filter={pattern!r} matches none of the {len(names)} variables{text.nearest(pattern, names)}")
    damage = verify.find_damage(source, on_read=on_read) if verify_all else []
    return Inventory(source, found, shown, damage, verify_all)


def count_bytes(source: TensorSource, name: str) -> int:
    """Returns the size of one tensor in bytes."""
    return math.prod(source.shape(name)) * source.dtype(name).itemsize
