"""Transforms that concern a part of a tensor: one of equal parts, a slice, a constant that is added, the gates of a cell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.porting.rules.transform import Spec, Target, Transform, find_axis, find_dim, parse_integers


def make_split(words: list[str]) -> Transform:
    axis, parts, index = parse_integers(words, "split", counts=(3,))
    if parts < 1 or not 0 <= index < parts:
        raise ValueError(f"`split({', '.join(words)})`: there is no part {index} of {parts}; parts are counted from 0")

    return _taking("split", (axis, parts, index), lambda shape, _: _part(shape, axis, parts, index))


def _part(shape: tuple[int, ...], axis: int, parts: int, index: int) -> tuple[slice, ...]:
    at = find_axis(axis, Spec(shape, np.dtype(bool)))
    if shape[at] % parts:
        raise ValueError(f"axis {at} has length {shape[at]}, which is not divisible by {parts}")
    each = shape[at] // parts
    return (slice(None),) * at + (slice(index * each, (index + 1) * each),)


def _taking(
    name: str, arguments: tuple[Any, ...], part: Callable[[tuple[int, ...], Target], tuple[slice, ...]]
) -> Transform:
    """A transform that takes a part of a tensor, as a view."""

    def shape_of(spec: Spec, target: Target) -> Spec:
        at = part(spec.shape, target)
        return Spec((*spec.shape[: len(at) - 1], at[-1].stop - at[-1].start, *spec.shape[len(at) :]), spec.dtype)

    return Transform(name, arguments, shape_of, lambda array, target: array[part(array.shape, target)])


def make_slice(words: list[str]) -> Transform:
    bound = r"-?(\d{1,9}|[dt]\d{1,2})|end"
    if (
        len(words) != 3
        or not re.fullmatch(r"-?\d{1,2}", words[0])
        or not all(re.fullmatch(bound, w) for w in words[1:])
    ):
        raise ValueError(
            f"`slice({', '.join(words)})`: expected slice(axis, from, to), with a number, dN, tN or `end` for from and to"
        )
    axis = int(words[0])

    def part(shape: tuple[int, ...], target: Target) -> tuple[slice, ...]:
        at = find_axis(axis, Spec(shape, np.dtype(bool)))

        def place(word: str) -> int:
            if word == "end":
                return shape[at]
            number = find_dim(word.removeprefix("-"), shape, target)
            return shape[at] - number if word.startswith("-") else number

        start, stop = map(place, words[1:])
        if not 0 <= start < stop <= shape[at]:
            raise ValueError(f"axis {at} has length {shape[at]}, which has no entries from {start} up to {stop}")
        return (slice(None),) * at + (slice(start, stop),)

    return _taking("slice", (axis, *words[1:]), part)


def make_add(words: list[str]) -> Transform:
    if len(words) not in (1, 4) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,2})?", words[0]):
        raise ValueError(f"`add({', '.join(words)})`: expected add(number) or add(number, axis, parts, i)")
    number, where = float(words[0]), parse_integers(words[1:], "add")
    if where and (where[1] < 1 or not 0 <= where[2] < where[1]):
        raise ValueError(
            f"`add({', '.join(words)})`: there is no part {where[2]} of {where[1]}; parts are counted from 0"
        )

    def shape_of(spec: Spec, _: Target) -> Spec:
        if spec.dtype.kind != "f" and spec.dtype.name != "bfloat16":
            raise ValueError(f"expected a floating-point dtype, not {spec.dtype.name}")
        if where:
            _part(spec.shape, *where)
        return spec

    def moved(array: np.ndarray, by: float) -> np.ndarray:
        result = array.copy()
        result[_part(array.shape, *where) if where else ...] += np.asarray(by, array.dtype)
        return result

    return Transform(
        "add", tuple(words), shape_of,
        lambda array, _: moved(array, number),
        inverse=lambda array, spec: moved(array.astype(spec.dtype, copy=False), -number),
    )  # fmt: skip


def make_gates(name: str, order: tuple[int, ...]) -> Callable[[list[str]], Transform]:
    """Makes the maker of a transform that reorders equal parts of the last axis; applied twice, it changes nothing."""

    def shape_of(spec: Spec, _: Target) -> Spec:
        if not spec.shape:
            raise ValueError("there is no axis 0")
        _part(spec.shape, -1, len(order), 0)
        return spec

    def run(array: np.ndarray) -> np.ndarray:
        parts = array.reshape(*array.shape[:-1], len(order), array.shape[-1] // len(order))
        return parts[..., list(order), :].reshape(array.shape)

    def make(words: list[str]) -> Transform:
        if words:
            raise ValueError(f"`{name}({', '.join(words)})`: expected no arguments")
        return Transform(name, (), shape_of, lambda array, _: run(array), inverse=lambda array, _: run(array))

    return make
