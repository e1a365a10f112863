"""Finds damaged tensors by reading them all, before anything is changed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.files import FileError
from engine.porting.errors import PortError
from engine.porting.readers.tensor_source import TensorSource
from engine.text import join_some, listed


@dataclass(frozen=True)
class Damage:
    """A damaged tensor. ``reason`` is the reader's whole message, which names the file as well.

    ``cause`` is what it shares with other tensors, such as a missing data file; "" if nothing.
    """

    name: str
    reason: str
    cause: str = ""


def find_damage(
    source: TensorSource, names: Iterable[str] | None = None, *, on_read: Callable[[str], None] | None = None
) -> list[Damage]:
    """Reads tensors (all, or those named) one at a time, discards them, and returns the damaged ones in order.

    ``on_read`` is called with each name after the tensor was read. A format without checksums (safetensors, HDF5)
    cannot distinguish wrong numbers from right ones, so only what cannot be read is found there.
    """
    found = []
    for name in source.names() if names is None else names:
        try:
            check_tensor(source, name)
        except FileError as error:
            found.append(Damage(name, str(error), getattr(error, "cause", "")))
        if on_read is not None:
            on_read(name)
    return found


def check_tensor(source: TensorSource, name: str) -> None:
    """Reads one tensor and discards it, by the source's own ``check`` if it has one, which needs less memory.

    Raises FileError if the tensor is damaged.
    """
    getattr(source, "check", source.read)(name)


def damage_error(path: pathlib.Path, found: Sequence[Damage]) -> PortError:
    """Returns the error that names every damaged tensor of a file; there is at least one."""
    if len(found) == 1:
        return PortError(found[0].reason)
    return PortError(f"{path}: {len(found):,} tensors are damaged" + listed("damaged", describe_damage(found)))


def describe_damage(found: Sequence[Damage]) -> list[str]:
    """Returns a line for each damaged tensor, but only one for all tensors that share a cause."""
    lines: dict[str, list[str]] = {}
    for each in found:
        lines.setdefault(each.cause or each.reason, []).append(each.name)
    reasons = {each.name: each.reason for each in found}
    return [
        f"{cause}: {len(names):,} tensors cannot be read ({join_some(names, most=3)})"
        if len(names) > 1
        else reasons[names[0]]
        for cause, names in lines.items()
    ]
