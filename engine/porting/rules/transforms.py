"""What a rule may do to a tensor on its way, computed on shapes first and on data later.

| transform | does |
|---|---|
| transpose(axes) | the given axes in the given order; without axes, all reversed |
| reshape(dims) | a dim is a number, -1 once, dN (axis N of the incoming tensor) or tN (of the target), or products |
| squeeze(axes) | drops axes of length 1; without axes, all such |
| split(axis, parts, i) | part i, counted from 0, of equal parts |
| concat(axis) | joins the rule's sources, each as transformed so far |
| cast(dtype) | another dtype |
| resize_grid(rows, columns) | a position embedding resized to the model's patch grid (engine.porting.rules.position_grid); the arguments are the file's grid where it is not square; ``keep``: equally many tokens are the same grid |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from engine.porting.rules import position_grid as grids
from engine.text import nearest

_DTYPES: dict[str, Any] = {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_MOST_AXES = 32  # numpy's limit in older versions


class Spec(NamedTuple):
    """Shape and dtype of a tensor that is not there yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Target(NamedTuple):
    """What transforms may know of the variable: its shape, and the model's patch grid if it has one."""

    shape: tuple[int, ...]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Transform:
    """One transform of a rule.

    Attributes:
        name, arguments: as written.
        infer: (spec, target) -> spec of the result; raises ValueError with the reason.
        run: (array, target) -> the result, where possible a view.
        tell: (spec, target) -> what it does there, "" for nothing; None: its text says it.
        inverse: (result, spec of what came in) -> what came in; None: something is lost, or (split, concat) several
            tensors are concerned (engine.porting.rules.language.inverse).
    """

    name: str
    arguments: tuple[Any, ...]
    infer: Callable[[Spec, Target], Spec]
    run: Callable[[np.ndarray, Target], np.ndarray]
    tell: Callable[[Spec, Target], str] | None = None
    inverse: Callable[[np.ndarray, Spec], np.ndarray] | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})" if self.arguments else self.name


def parse(text: str) -> Transform:
    """A transform from its text, such as ``transpose(1, 0)``.

    Raises:
        ValueError: syntax, an unknown name, arguments that make no sense.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise ValueError(f"`{text.strip()}` is no transform; write NAME or NAME(ARGUMENT, ...)")
    name, inside = match.group(1), (match.group(2) or "").strip()
    if name not in _MAKERS:
        raise ValueError(f"unknown transform `{name}`; known are {', '.join(_MAKERS)}{nearest(name, list(_MAKERS))}")
    words = [word.strip() for word in inside.split(",")] if inside else []
    return _MAKERS[name](words)


class Inferred(NamedTuple):
    """What ``infer`` found: the result and what was done, or None, what was done before, and the problem."""

    spec: Spec | None
    done: tuple[str, ...]
    problem: str = ""


def infer(specs: Sequence[Spec], transforms: Sequence[Transform], target: Target) -> Inferred:
    """Shape and dtype after all transforms, without any data."""
    now = list(specs)
    done: list[str] = []
    for transform in transforms:
        try:
            text = transform.tell(now[0], target) if transform.tell else str(transform)
            if transform.name == "concat":
                now = _joined(now, transform)
            else:
                now = [transform.infer(spec, target) for spec in now]
        except ValueError as error:
            shapes = " + ".join(str(list(spec.shape)) for spec in now)
            return Inferred(None, tuple(done), f"`{transform}` does not suit {shapes}: {error}")
        done += [text] if text else []
    if len(now) > 1:
        return Inferred(None, tuple(done), f"{len(now)} sources stay {len(now)} tensors; `concat(axis)` joins them")
    return Inferred(now[0], tuple(done))


def run(arrays: Sequence[np.ndarray], transforms: Sequence[Transform], target: Target) -> np.ndarray:
    """All transforms, on data whose shapes ``infer`` accepted. May be a view."""
    now = list(arrays)
    for transform in transforms:
        if transform.name == "concat":
            now = [np.concatenate(now, axis=transform.arguments[0])]
        else:
            now = [transform.run(array, target) for array in now]
    return now[0]


def _joined(specs: Sequence[Spec], transform: Transform) -> list[Spec]:
    axis = _axis(transform.arguments[0], specs[0])
    for spec in specs[1:]:
        rest = [(*s.shape[:axis], *s.shape[axis + 1 :]) for s in (spec, specs[0])]
        if len(spec.shape) != len(specs[0].shape) or rest[0] != rest[1]:
            raise ValueError(f"only axis {axis} may differ")
        if spec.dtype != specs[0].dtype:
            raise ValueError(f"dtypes differ ({specs[0].dtype.name}, {spec.dtype.name}); cast first")
    length = sum(spec.shape[axis] for spec in specs)
    return [Spec((*specs[0].shape[:axis], length, *specs[0].shape[axis + 1 :]), specs[0].dtype)]


def _axis(axis: int, spec: Spec) -> int:
    rank = len(spec.shape)
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis}")
    return axis % rank


def _whole(words: Sequence[str], name: str, *, counts: Sequence[int] = ()) -> tuple[int, ...]:
    if not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
        raise ValueError(f"`{name}({', '.join(words)})`: whole numbers are wanted")
    if counts and len(words) not in counts:
        raise ValueError(f"`{name}` takes {' or '.join(map(str, counts))} arguments, not {len(words)}")
    return tuple(int(word) for word in words)


def _transpose(words: list[str]) -> Transform:
    axes = _whole(words, "transpose")
    if axes and sorted(axes) != list(range(len(axes))):
        raise ValueError(f"`transpose({', '.join(words)})`: each axis from 0 to {len(axes) - 1} once")

    def order(rank: int) -> tuple[int, ...]:
        if axes and len(axes) != rank:
            raise ValueError(f"it orders {len(axes)} axes")
        return axes or tuple(range(rank))[::-1]

    return Transform(
        "transpose", axes,
        lambda spec, _: Spec(tuple(spec.shape[axis] for axis in order(len(spec.shape))), spec.dtype),
        lambda array, _: array.transpose(order(array.ndim)),
        inverse=lambda array, _: array.transpose(np.argsort(order(array.ndim))),
    )  # fmt: skip


def _reshape(words: list[str]) -> Transform:
    for word in words:
        if not re.fullmatch(r"-1|(\d{1,9}|[dt]\d{1,2})(\s*\*\s*(\d{1,9}|[dt]\d{1,2}))*", word):
            raise ValueError(f"`{word}` is no dim; numbers, -1, d0 (incoming axis 0), t0 (target's axis 0), products")
    if words.count("-1") > 1:
        raise ValueError("only one dim can be -1")
    if not 0 < len(words) <= _MOST_AXES:
        raise ValueError(f"`reshape` takes 1 to {_MOST_AXES} dims")

    def factor(word: str, shape: tuple[int, ...], target: Target) -> int:
        if word[0] not in "dt":
            return int(word)
        axes, number = shape if word[0] == "d" else target.shape, int(word[1:])
        if number >= len(axes):
            raise ValueError(f"there is no {word} in {list(axes)}")
        return axes[number]

    def dims(shape: tuple[int, ...], target: Target) -> tuple[int, ...]:
        known = [
            -1 if word == "-1" else math.prod(factor(part.strip(), shape, target) for part in word.split("*"))
            for word in words
        ]
        size, rest = math.prod(shape), math.prod(dim for dim in known if dim != -1)
        if -1 in known and (rest == 0 or size % rest):
            raise ValueError(f"{size} elements do not divide by {rest}")
        found = tuple(size // rest if dim == -1 else dim for dim in known)
        if math.prod(found) != size:
            raise ValueError(f"{list(found)} has {math.prod(found)} elements, not {size}")
        return found

    return Transform(
        "reshape", tuple(words),
        lambda spec, target: Spec(dims(spec.shape, target), spec.dtype),
        lambda array, target: array.reshape(dims(array.shape, target)),
        inverse=lambda array, spec: array.reshape(spec.shape),
    )  # fmt: skip


def _squeeze(words: list[str]) -> Transform:
    axes = _whole(words, "squeeze")

    def kept(shape: tuple[int, ...]) -> tuple[int, ...]:
        dropped = [axis for axis, length in enumerate(shape) if length == 1]
        if axes:
            dropped = [_axis(axis, Spec(shape, np.dtype(bool))) for axis in axes]
            if wrong := [axis for axis in dropped if shape[axis] != 1]:
                raise ValueError(f"axis {wrong[0]} has length {shape[wrong[0]]}, not 1")
        return tuple(length for axis, length in enumerate(shape) if axis not in dropped)

    return Transform(
        "squeeze", axes,
        lambda spec, _: Spec(kept(spec.shape), spec.dtype),
        lambda array, _: array.reshape(kept(array.shape)),
        inverse=lambda array, spec: array.reshape(spec.shape),
    )  # fmt: skip


def _split(words: list[str]) -> Transform:
    axis, parts, index = _whole(words, "split", counts=(3,))
    if parts < 1 or not 0 <= index < parts:
        raise ValueError(f"`split({', '.join(words)})`: part {index} of {parts} is none; parts count from 0")

    def part(shape: tuple[int, ...]) -> tuple[slice, ...]:
        at = _axis(axis, Spec(shape, np.dtype(bool)))
        if shape[at] % parts:
            raise ValueError(f"axis {at} has length {shape[at]}, which does not divide by {parts}")
        each = shape[at] // parts
        return (slice(None),) * at + (slice(index * each, (index + 1) * each),)

    def shape_of(spec: Spec, _: Target) -> Spec:
        at = part(spec.shape)
        return Spec((*spec.shape[: len(at) - 1], at[-1].stop - at[-1].start, *spec.shape[len(at) :]), spec.dtype)

    return Transform("split", (axis, parts, index), shape_of, lambda array, _: array[part(array.shape)])


def _concat(words: list[str]) -> Transform:
    def never(*_: Any) -> Any:
        raise AssertionError("concat joins several tensors: infer and run do it themselves")

    return Transform("concat", _whole(words, "concat", counts=(1,)), never, never)


def _cast(words: list[str]) -> Transform:
    if len(words) != 1 or words[0] not in _DTYPES:
        raise ValueError(f"`cast({', '.join(words)})`: one of {', '.join(_DTYPES)} is wanted")
    dtype = _DTYPES[words[0]]
    return Transform(
        "cast", tuple(words),
        lambda spec, _: Spec(spec.shape, dtype),
        lambda array, _: array.astype(dtype, copy=False),
        inverse=lambda array, spec: array.astype(spec.dtype, copy=False),
    )  # fmt: skip


def _resize_grid(words: list[str]) -> Transform:
    keep = words == ["keep"]
    numbers = () if keep else _whole(words, "resize_grid", counts=(0, 2))
    given = (numbers[0], numbers[1]) if numbers else None
    if given is not None and min(given) < 1:
        raise ValueError(f"`resize_grid({', '.join(words)})`: a grid has rows and columns")

    def both(shape: tuple[int, ...], target: Target) -> tuple[tuple[int, int], tuple[int, int]]:
        if len(shape) != 3 or shape[0] != 1 or len(target.shape) != 3:
            raise ValueError("a position embedding is [1, tokens, width]")
        if keep and shape[1] == target.shape[1]:
            return (1, shape[1]), (1, shape[1])
        return grids.grids(shape[1], target.shape[1], target.grid, given)

    def tell(spec: Spec, target: Target) -> str:
        (rows, columns), new = both(spec.shape, target)
        return "" if (rows, columns) == new else f"resize_grid {rows}x{columns} to {new[0]}x{new[1]}"

    def shape_of(spec: Spec, target: Target) -> Spec:
        old, new = both(spec.shape, target)
        if old == new:
            return spec
        extra = spec.shape[1] - old[0] * old[1]
        double = spec.dtype == np.float64
        return Spec((1, extra + new[0] * new[1], spec.shape[2]), np.dtype(np.float64 if double else np.float32))

    return Transform(
        "resize_grid", ("keep",) if keep else numbers, shape_of,
        lambda array, target: grids.resize(array, *both(array.shape, target)), tell,
    )  # fmt: skip


_MAKERS: dict[str, Callable[[list[str]], Transform]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "split": _split,
    "concat": _concat,
    "cast": _cast,
    "resize_grid": _resize_grid,
}
