"""The formats that the library reads: how to write a small valid file of each, and how the programs read it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from . import damage

Folder = pathlib.Path
Digests = dict[str, str]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: its name in reports and repros.
        checksums: whether the format carries checksums of its values, so that other values must never be accepted.
        write: writes a valid file, or several, into an empty folder.
        read: reads them as the programs do, and returns a digest of every value; raises InputError if they are damaged.
        aware: damage that knows the format, besides that of ``damage.GENERIC``.
        damaged: the pattern of the files to damage.
        forgeries: those of ``aware`` that compute the checksums anew, so that other values cannot be told from right ones.
        counted: whether the format says what it holds, so that a missing entry can be found. In a text, a line that has
            become a comment, or a key that is gone, cannot.
    """

    name: str
    checksums: bool
    write: Callable[[Folder], object]
    read: Callable[[Folder], Digests]
    aware: tuple[damage.Damage, ...] = ()
    damaged: str = "*"
    forgeries: tuple[damage.Damage, ...] = ()
    counted: bool = True

    def choices(self) -> tuple[damage.Damage, ...]:
        """All kinds of damage; a third of the cases know the format."""
        return damage.GENERIC + self.aware * (max(1, len(damage.GENERIC) // 2 // len(self.aware)) if self.aware else 0)
