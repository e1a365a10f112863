"""Finds damage before anything is changed: every tensor is read, and each that cannot be is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.files import FileError
from engine.porting.readers.source import TensorSource


@dataclass(frozen=True)
class Damage:
    """Attributes: name: of the tensor. reason: the reader's whole message, which names the file too."""

    name: str
    reason: str


def damaged(
    source: TensorSource, names: Iterable[str] | None = None, *, tell: Callable[[str], None] | None = None
) -> list[Damage]:
    """Reads tensors one at a time and forgets them.

    Args:
        names: which tensors; None: all.
        tell: called with each name when it has been read.

    Returns:
        Those that are damaged, in order. A format without checksums (safetensors, HDF5) cannot tell wrong
        numbers from right ones: there only what cannot be read is found.
    """
    found = []
    for name in source.names() if names is None else names:
        try:
            check(source, name)
        except FileError as error:
            found.append(Damage(name, str(error)))
        if tell is not None:
            tell(name)
    return found


def check(source: TensorSource, name: str) -> None:
    """Reads one tensor and forgets it, in a source's own way where it has one that needs less memory.

    Raises:
        FileError: it is damaged.
    """
    own = getattr(source, "check", None)
    if own is None:
        source.read(name)
    else:
        own(name)
