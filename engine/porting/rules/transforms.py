"""The transforms that a rule may apply to a tensor, first inferred on shapes and later run on data.

| transform | does |
|---|---|
| transpose(axes) | reorders the axes as given; without arguments, reverses them |
| reshape(dims) | each dim is a number, -1 (once), dN (axis N of the input), tN (axis N of the target) or a product |
| squeeze(axes) | drops the given axes of length 1; without arguments, all of them |
| split(axis, parts, i) | takes part i of equal parts, counted from 0 |
| slice(axis, from, to) | takes the entries from ``from`` up to ``to``, which is not included; each is a number (below 0 counted from the end), dN, tN, the word ``end``, or the word ``background``: 1 where the tensor has the 1001 classes of TF-Slim's ImageNet and the variable has 1000, else 0 |
| add(number) | adds a number everywhere; add(number, axis, parts, i) only to part i of equal parts |
| multiply(number) | multiplies everything by a number |
| reverse(axis) | reverses the order along an axis, such as that of colours |
| lstm_gates | reorders the gates along the last axis from TensorFlow 1 (i, j, f, o) to Keras (i, f, c, o). The forget bias of 1, which TensorFlow 1 adds as it runs, is ``add(1.0, 0, 4, 1)`` of the bias behind it |
| gru_gates | reorders them from TensorFlow 1 (reset, update, candidate) to Keras (update, reset, candidate) |
| folded | gives zeros in the shape of the source. Read backwards, the value is subtracted from the source: so the bias of a convolution joins the mean of the norm behind it, where the other side's convolutions have no bias |
| concat(axis) | joins the sources of the rule, each as transformed so far |
| cast(dtype) | converts to another dtype |
| resize_grid(rows, columns) | resizes a position embedding to the model's patch grid (engine.porting.rules.position_grid); the arguments state the file's grid where it is not square; ``keep`` assumes that equally many tokens have the same grid |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from engine.porting.rules import parts
from engine.porting.rules import position_grid as grids
from engine.porting.rules.transform import Spec, Target, Transform, find_axis, find_dim, parse_integers
from engine.text import nearest

__all__ = [
    "Inferred", "Spec", "Target", "Transform", "apply_transforms", "drop_constants", "have_slots", "infer_spec", "parse_transform",
]  # fmt: skip
_DTYPES: dict[str, Any] = {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_MOST_AXES = 32  # numpy's limit in older versions


def parse_transform(text: str) -> Transform:
    """Parses the text of a transform, such as ``transpose(1, 0)``; raises ValueError if it is not valid."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise ValueError(f"`{text.strip()}` is not a valid transform; expected NAME or NAME(ARGUMENT, ...)")
    name, inside = match.group(1), (match.group(2) or "").strip()
    if name not in _MAKERS:
        raise ValueError(
            f"unknown transform `{name}`; expected one of {', '.join(_MAKERS)}{nearest(name, list(_MAKERS))}"
        )
    words = [word.strip() for word in inside.split(",")] if inside else []
    return _MAKERS[name](words)


class Inferred(NamedTuple):
    """What ``infer_spec`` found: the result and what was done; or None, what was done before, and the problem."""

    spec: Spec | None
    done: tuple[str, ...]
    problem: str = ""


def infer_spec(specs: Sequence[Spec], transforms: Sequence[Transform], target: Target) -> Inferred:
    """Infers the shape and dtype after all transforms, without any data."""
    now = list(specs)
    done: list[str] = []
    for transform in transforms:
        try:
            text = transform.describe(now[0], target) if transform.describe else str(transform)
            if transform.name == "concat":
                now = _joined(now, transform)
            else:
                now = [transform.infer(spec, target) for spec in now]
        except ValueError as error:
            shapes = " + ".join(str(list(spec.shape)) for spec in now)
            return Inferred(None, tuple(done), f"`{transform}` cannot be applied to {shapes}: {error}")
        done += [text] if text else []
    if len(now) > 1:
        return Inferred(None, tuple(done), f"{len(now)} sources remain; join them with `concat(axis)`")
    return Inferred(now[0], tuple(done))


def apply_transforms(arrays: Sequence[np.ndarray], transforms: Sequence[Transform], target: Target) -> np.ndarray:
    """Applies all transforms to data whose shapes ``infer_spec`` accepted; the result may be a view."""
    now = list(arrays)
    for transform in transforms:
        if transform.name == "concat":
            now = [np.concatenate(now, axis=transform.arguments[0])]
        else:
            now = [transform.run(array, target) for array in now]
    return now[0]


def drop_constants(transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    """Returns the transforms without what they add: those of an optimizer's slots, which follow differences alone."""
    return tuple(transform for transform in transforms if transform.name != "add")


def have_slots(transforms: Sequence[Transform]) -> bool:
    """Whether an optimizer's slots can follow the weight: those of a multiplied one differ from kind to kind."""
    return all(transform.name != "multiply" for transform in transforms)


def _joined(specs: Sequence[Spec], transform: Transform) -> list[Spec]:
    axis = find_axis(transform.arguments[0], specs[0])
    for spec in specs[1:]:
        rest = [(*s.shape[:axis], *s.shape[axis + 1 :]) for s in (spec, specs[0])]
        if len(spec.shape) != len(specs[0].shape) or rest[0] != rest[1]:
            raise ValueError(f"shapes may differ only along axis {axis}")
        if spec.dtype != specs[0].dtype:
            raise ValueError(f"the dtypes differ ({specs[0].dtype.name}, {spec.dtype.name}); cast first")
    length = sum(spec.shape[axis] for spec in specs)
    return [Spec((*specs[0].shape[:axis], length, *specs[0].shape[axis + 1 :]), specs[0].dtype)]


def _transpose(words: list[str]) -> Transform:
    axes = parse_integers(words, "transpose")
    if axes and sorted(axes) != list(range(len(axes))):
        raise ValueError(f"`transpose({', '.join(words)})`: expected each axis from 0 to {len(axes) - 1} once")

    def order(rank: int) -> tuple[int, ...]:
        if axes and len(axes) != rank:
            raise ValueError(f"expected {len(axes)} axes")
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
            raise ValueError(
                f"`{word}` is not a valid dim; expected a number, -1, d0 (input axis 0), t0 (target axis 0) or a product"
            )
    if words.count("-1") > 1:
        raise ValueError("only one dim can be -1")
    if not 0 < len(words) <= _MOST_AXES:
        raise ValueError(f"`reshape` takes 1 to {_MOST_AXES} dims")

    def dims(shape: tuple[int, ...], target: Target) -> tuple[int, ...]:
        known = [
            -1 if word == "-1" else math.prod(find_dim(part.strip(), shape, target) for part in word.split("*"))
            for word in words
        ]
        size, rest = math.prod(shape), math.prod(dim for dim in known if dim != -1)
        if -1 in known and (rest == 0 or size % rest):
            raise ValueError(f"{size} elements are not divisible by {rest}")
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
    axes = parse_integers(words, "squeeze")

    def kept(shape: tuple[int, ...]) -> tuple[int, ...]:
        dropped = [axis for axis, length in enumerate(shape) if length == 1]
        if axes:
            dropped = [find_axis(axis, Spec(shape, np.dtype(bool))) for axis in axes]
            if wrong := [axis for axis in dropped if shape[axis] != 1]:
                raise ValueError(f"axis {wrong[0]} has length {shape[wrong[0]]}, not 1")
        return tuple(length for axis, length in enumerate(shape) if axis not in dropped)

    return Transform(
        "squeeze", axes,
        lambda spec, _: Spec(kept(spec.shape), spec.dtype),
        lambda array, _: array.reshape(kept(array.shape)),
        inverse=lambda array, spec: array.reshape(spec.shape),
    )  # fmt: skip


def _concat(words: list[str]) -> Transform:
    def never(*_: Any) -> Any:
        raise AssertionError("concat joins several tensors: infer and run do it themselves")

    return Transform("concat", parse_integers(words, "concat", counts=(1,)), never, never)


def _cast(words: list[str]) -> Transform:
    if len(words) != 1 or words[0] not in _DTYPES:
        raise ValueError(f"`cast({', '.join(words)})`: expected one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[words[0]]
    return Transform(
        "cast", tuple(words),
        lambda spec, _: Spec(spec.shape, dtype),
        lambda array, _: array.astype(dtype, copy=False),
        inverse=lambda array, spec: array.astype(spec.dtype, copy=False),
    )  # fmt: skip


def _resize_grid(words: list[str]) -> Transform:
    keep = words == ["keep"]
    numbers = () if keep else parse_integers(words, "resize_grid", counts=(0, 2))
    given = (numbers[0], numbers[1]) if numbers else None
    if given is not None and min(given) < 1:
        raise ValueError(f"`resize_grid({', '.join(words)})`: rows and columns must be at least 1")

    def both(shape: tuple[int, ...], target: Target) -> tuple[tuple[int, int], tuple[int, int]]:
        if len(shape) != 3 or shape[0] != 1 or len(target.shape) != 3:
            raise ValueError("expected a position embedding [1, tokens, width]")
        if keep and shape[1] == target.shape[1]:
            return (1, shape[1]), (1, shape[1])
        return grids.find_grids(shape[1], target.shape[1], target.grid, given)

    def describe(spec: Spec, target: Target) -> str:
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
        lambda array, target: grids.resize_grid(array, *both(array.shape, target)), describe,
    )  # fmt: skip


_MAKERS: dict[str, Callable[[list[str]], Transform]] = {
    "transpose": _transpose, "reshape": _reshape, "squeeze": _squeeze, "split": parts.make_split, "slice": parts.make_slice,
    "concat": _concat, "add": parts.make_add, "multiply": parts.make_multiply, "reverse": parts.make_reverse, "lstm_gates": parts.make_gates("lstm_gates", (0, 2, 1, 3)),
    "gru_gates": parts.make_gates("gru_gates", (1, 0, 2)), "cast": _cast, "folded": parts.make_folded, "resize_grid": _resize_grid,
}  # fmt: skip
