r"""Joins the parts of partitioned variables that a checkpoint holds as separate tensors.

A Saver given a dictionary (or a list of the parts) writes the parts of a partitioned variable as ``NAME/part_0``,
``NAME/part_1`` and so on, and their slots as ``NAME/part_0/Adam``. Here they become one tensor ``NAME``, and one
``NAME/Adam``, as they would be named by a Saver that knows the variable.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.files import FileError
from engine.porting.readers import verify
from engine.porting.readers.closing import Closing
from engine.porting.readers.tensor_source import TensorSource
from engine.reading import check_memory

_PART = re.compile(r"(?:^|(?<=/))part_(0|[1-9]\d{0,8})(?=/|$)")


class Parts(NamedTuple):
    """One merged tensor: the names of its parts in numeric order, the axis that joins them, and the whole shape.

    The axis is ``assumed`` to be 0, the default of TensorFlow's partitioners, if all parts have the same shape. (A rule
    can correct it: ``reshape | transpose | reshape``.)
    """

    names: tuple[str, ...]
    axis: int
    assumed: bool
    shape: tuple[int, ...]


def merge_parts(source: TensorSource) -> TensorSource:
    """Returns a source whose partitioned tensors are whole; the source itself if it has none."""
    parts = find_parts(source)
    return Merged(source, parts) if parts else source


def leave_apart(source: TensorSource, is_apart: Callable[[str, str], bool]) -> TensorSource:
    """Returns the source with those tensors in parts for which ``is_apart(merged name, part)`` is true of any part."""
    if not isinstance(source, Merged):
        return source
    parts = find_parts(source.source, is_apart)
    return source if len(parts) == len(source.parts) else Merged(source.source, parts) if parts else source.source


class Merged(Closing):
    """A TensorSource whose partitioned tensors are whole; ``parts`` is merged name -> its parts.

    Reading takes the memory of the tensor and one part.
    """

    def __init__(self, source: TensorSource, parts: Mapping[str, Parts]) -> None:
        self.source = source
        self.path: pathlib.Path = source.path
        self.checksums: bool = source.checksums
        self.parts = parts
        of = {part: name for name, parts in self.parts.items() for part in parts.names}
        self._names = list(dict.fromkeys(of.get(name, name) for name in source.names()))

    def names(self) -> list[str]:
        return list(self._names)

    def others(self) -> list[str]:
        """Returns the entries that are not tensors of numbers."""
        return list(getattr(self.source, "others", list)())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name].shape if name in self.parts else self.source.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.source.dtype(self.parts[name].names[0] if name in self.parts else name)

    def read(self, name: str) -> np.ndarray:
        if name not in self.parts:
            return self.source.read(name)
        self._check_memory(name, self.shape(name))
        whole, parts = np.empty(self.shape(name), self.dtype(name)), self.parts[name]
        at = 0
        for part in parts.names:
            length = self.source.shape(part)[parts.axis]
            whole[(slice(None),) * parts.axis + (slice(at, at + length),)] = self.source.read(part)
            at += length
        return whole

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self.parts:
            return self.source.read_slice(name, start, stop)
        parts, shape = self.parts[name], self.shape(name)
        if not 0 <= start <= stop <= shape[0]:
            raise FileError(f"{self.path}: {name}: rows {start} to {stop} of shape {list(shape)}")
        self._check_memory(name, (stop - start, *shape[1:]))
        rows = np.empty((stop - start, *shape[1:]), self.dtype(name))
        at = 0
        for part in parts.names:
            length = self.source.shape(part)[parts.axis]
            if parts.axis:
                place = (slice(None),) * parts.axis + (slice(at, at + length),)
                rows[place] = self.source.read_slice(part, start, stop)
            elif (low := max(start, at)) < (high := min(stop, at + length)):
                rows[low - start : high - start] = self.source.read_slice(part, low - at, high - at)
            at += length
        return rows

    def _check_memory(self, name: str, shape: tuple[int, ...]) -> None:
        check_memory(self.path, math.prod(shape) * self.dtype(name).itemsize, name)

    def check(self, name: str) -> None:
        """Reads the tensor, or its parts one by one, and discards it. Raises FileError naming the damaged part."""
        for part in self.parts[name].names if name in self.parts else (name,):
            verify.check_tensor(self.source, part)

    def pieces(self, name: str) -> Sequence[Any]:
        """Returns the stored pieces (engine.porting.readers.bundle_index.Piece), or the names of the parts."""
        if name in self.parts:
            return self.parts[name].names
        stored = getattr(self.source, "pieces", None)
        return () if stored is None else stored(name)

    def close(self) -> None:
        self.source.close()


def find_parts(source: TensorSource, is_apart: Callable[[str, str], bool] = lambda *_: False) -> dict[str, Parts]:
    """Returns merged name -> parts, for groups of names that can be nothing else, and of which none ``is_apart``.

    ``NAME/part_N`` must be tensors for every N from 0, of one dtype, whose shapes differ along at most one axis, and
    nothing else may be called NAME. ``NAME/part_N/SUFFIX`` (slots and averages of parts, also below the scope of an
    optimizer) must have the shapes of NAME's parts. So scopes that are merely called ``part_1`` stay scopes.
    """
    groups: dict[tuple[str, str], dict[int, str]] = {}
    taken = set(source.names())
    for name in taken:
        found = list(_PART.finditer(name))
        if len(found) == 1:
            before, after = name[: found[0].start()], name[found[0].end() :]
            if before:
                groups.setdefault((before[:-1], after), {})[int(found[0][1])] = name
    merged: dict[str, Parts] = {}
    for (before, after), numbered in sorted(groups.items(), key=lambda item: (item[0][1] != "", item[0])):
        if before + after in taken or sorted(numbered) != list(range(len(numbered))):
            continue
        if any(is_apart(before + after, part) for part in numbered.values()):
            continue
        names = tuple(numbered[number] for number in range(len(numbered)))
        parts = _joined(source, names) if not after else _like(source, names, before, merged)
        if parts is not None:
            merged[before + after] = parts
    return merged


def _joined(source: TensorSource, names: tuple[str, ...]) -> Parts | None:
    shapes = [source.shape(name) for name in names]
    rank = len(shapes[0])
    if rank == 0 or any(len(shape) != rank for shape in shapes) or len({source.dtype(name) for name in names}) != 1:
        return None
    differing = [axis for axis in range(rank) if len({shape[axis] for shape in shapes}) > 1]
    if len(differing) > 1:
        return None
    axis = differing[0] if differing else 0
    length = sum(shape[axis] for shape in shapes)
    whole = (*shapes[0][:axis], length, *shapes[0][axis + 1 :])
    return Parts(names, axis, not differing and rank > 1 and len(names) > 1, whole)


def _like(source: TensorSource, names: tuple[str, ...], before: str, merged: Mapping[str, Parts]) -> Parts | None:
    """Joins slots of parts like the parts of their variable, which is found below any scope."""
    words = before.split("/")
    for start in range(len(words)):
        base = merged.get("/".join(words[start:]))
        if base is None or len(base.names) != len(names):
            continue
        if [source.shape(name) for name in names] == [source.shape(name) for name in base.names]:
            return Parts(names, base.axis, base.assumed, base.shape)
    return None
