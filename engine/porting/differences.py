"""Which tensors of two weights files differ, and by how much."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_PIECE = 1 << 22  # elements that are compared at a time


class Tensors(Protocol):
    """Named tensors; a part of TensorSource (engine.porting.readers.tensor_source)."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Difference:
    """How a tensor of one file differs from that of the same name in another.

    Attributes:
        name: of the tensor.
        what: "only in the first", "only in the second", a text about shapes or dtypes, or "values".
        elements: how many elements differ in their bits, and ``size`` of how many.
        largest: the largest absolute difference; infinite where only one side is finite.
        change, norm: the norms of the difference and of the first tensor; ``relative`` is their quotient.
    """

    name: str
    what: str
    size: int = 0
    elements: int = 0
    largest: float = 0.0
    change: float = 0.0
    norm: float = 0.0

    @property
    def relative(self) -> float:
        return _quotient(self.change, self.norm)


@dataclass(frozen=True)
class Group:
    """The tensors of one part of a model: how many, those that differ, and their differences taken together."""

    name: str
    tensors: int
    differing: tuple[Difference, ...]
    norm: float

    @property
    def largest(self) -> float:
        return max((each.largest for each in self.differing), default=0.0)

    @property
    def relative(self) -> float:
        return _quotient(math.hypot(*(each.change for each in self.differing)), self.norm)


class Nested:
    """Tensors of which those under ``prefix`` are named without it, as where a model was nested in another one."""

    def __init__(self, source: Tensors, prefix: str) -> None:
        self._source = source
        self._whole = {name.removeprefix(prefix): name for name in source.names()}

    def names(self) -> list[str]:
        return list(self._whole)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._whole[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._source.dtype(self._whole[name])

    def read(self, name: str) -> np.ndarray:
        return self._source.read(self._whole[name])


def find_nesting(outer: Tensors, inner: Tensors) -> str | None:
    """The one prefix under which all tensors of ``inner`` lie in ``outer``; None if they share names or there is none.

    A Keras file of a backbone and one of a model with this backbone as a layer are such a pair.
    """
    names, wanted = outer.names(), inner.names()
    if not wanted or set(names) & set(wanted):
        return None
    prefixes = [name.removesuffix(wanted[0]) for name in names if name.endswith(f"/{wanted[0]}")]
    fits = [each for each in prefixes if {each + name for name in wanted} <= set(names)]
    # two names must not become one
    return fits[0] if len(fits) == 1 and len(Nested(outer, fits[0]).names()) == len(names) else None


def compare_files(
    one: Tensors, other: Tensors, *, on_read: Callable[[str], None] = lambda name: None
) -> list[tuple[str, Difference | None, float]]:
    """Compares the tensors of two files, a pair at a time.

    Returns, for each name in the order of the first file, the difference (None if dtype, shape and all bits are equal) and
    the norm of the first tensor. ``on_read`` is called with each name that has been compared.

    Raises:
        FileError: a tensor is damaged.
    """
    mine, theirs = one.names(), set(other.names())
    found: list[tuple[str, Difference | None, float]] = []
    for name in mine:
        if name in theirs:
            found.append((name, *_compare(name, one, other)))
        else:
            found.append((name, Difference(name, "only in the first", math.prod(one.shape(name))), 0.0))
        on_read(name)
    for name in other.names():
        if name not in set(mine):
            found.append((name, Difference(name, "only in the second", math.prod(other.shape(name))), 0.0))
            on_read(name)
    return found


def group_differences(found: Sequence[tuple[str, Difference | None, float]]) -> list[Group]:
    """Puts what ``compare_files`` found together by parts of the model: blocks by their number, others by their layer."""
    groups: dict[str, list[tuple[Difference | None, float]]] = {}
    for name, difference, norm in found:
        groups.setdefault(part_of(name), []).append((difference, norm))
    return [
        Group(name, len(each), tuple(d for d, _ in each if d is not None), math.hypot(*(norm for _, norm in each)))
        for name, each in groups.items()
    ]


def part_of(name: str) -> str:
    """The part of a model that a tensor belongs to.

    Example:
        >>> part_of("blocks/3/mlp/up/kernel"), part_of("encoder.layer.11.output.dense.bias"), part_of("head/bias")
        ('blocks/3', 'encoder.layer.11', 'head')
    """
    mark = "/" if "/" in name else "."
    words = name.split(mark)
    number = next((place for place, word in enumerate(words) if re.fullmatch(r"\d+", word)), None)
    if number is not None and number < len(words) - 1:
        return mark.join(words[: number + 1])
    return mark.join(words[:-1]) or name


def to_json(found: Sequence[tuple[str, Difference | None, float]]) -> Mapping[str, Any]:
    """Every difference, as JSON values; a number that JSON cannot hold becomes null."""
    lines = {}
    for name, difference, _ in found:
        if difference is not None:
            numbers = {"largest": difference.largest, "relative": difference.relative}
            lines[name] = {
                "what": difference.what,
                "elements": difference.elements,
                "size": difference.size,
                **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            }
    return {"tensors": len(found), "differing": len(lines), "differences": lines}


def _compare(name: str, one: Tensors, other: Tensors) -> tuple[Difference | None, float]:
    shapes = one.shape(name), other.shape(name)
    if shapes[0] != shapes[1]:
        what = f"{list(shapes[0])} in the first, {list(shapes[1])} in the second"
        return Difference(name, what, math.prod(shapes[0])), 0.0
    a, b = one.read(name), other.read(name)
    elements, largest, change, norm = 0, 0.0, 0.0, 0.0
    for x, y in _pieces(a, b):
        x64, y64 = _as_numbers(x), _as_numbers(y)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(y64 - x64)
        same = _same_bits(x, y) if a.dtype == b.dtype else x64 == y64
        apart[same] = 0.0
        apart[np.isnan(apart)] = math.inf  # one side is not a number, or both are infinite
        elements += int(same.size - np.count_nonzero(same))
        largest = max(largest, float(apart.max(initial=0.0)))
        with np.errstate(over="ignore"):
            change = math.hypot(change, float(np.linalg.norm(apart)))
            norm = math.hypot(norm, float(np.linalg.norm(x64[np.isfinite(x64)])))
    if a.dtype != b.dtype:
        what = f"{a.dtype.name} in the first, {b.dtype.name} in the second"
    elif elements:
        what = "values"
    else:
        return None, norm
    return Difference(name, what, a.size, elements, largest, change, norm), norm


def _pieces(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    x, y = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    for start in range(0, x.size, _PIECE):
        yield x[start : start + _PIECE], y[start : start + _PIECE]


def _as_numbers(array: np.ndarray) -> np.ndarray:
    """The values in the largest precision; zeros for what is not a number, such as text, of which only bits are compared."""
    try:
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    except (TypeError, ValueError):
        return np.zeros(array.shape)


def _same_bits(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows = [each.view(np.uint8).reshape(each.size, each.dtype.itemsize) for each in (x, y)]
    return np.asarray((rows[0] == rows[1]).all(axis=1))


def _quotient(change: float, norm: float) -> float:
    if not change:
        return 0.0
    return change / norm if norm else math.inf
