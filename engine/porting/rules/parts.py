"""Transforms of a part of a tensor or of its numbers: equal parts, a slice, constants, an order reversed, a cell's gates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.porting.rules.transform import Spec, Target, Transform, find_axis, find_dim, parse_integers

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,2})?"
_WITH_BACKGROUND = 1001  # ImageNet's classes in TF-Slim, of which number 0 is the background


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
    bound = r"-?(\d{1,9}|[dt]\d{1,2})|end|background"
    if (
        len(words) != 3
        or not re.fullmatch(r"-?\d{1,2}", words[0])
        or not all(re.fullmatch(bound, w) for w in words[1:])
    ):
        raise ValueError(
            f"`slice({', '.join(words)})`: expected slice(axis, from, to), with a number, dN, tN, `end` or `background` for from and to"
        )
    axis = int(words[0])

    def part(shape: tuple[int, ...], target: Target) -> tuple[slice, ...]:
        at = find_axis(axis, Spec(shape, np.dtype(bool)))

        def place(word: str) -> int:
            if word == "end":
                return shape[at]
            if word == "background":
                return int(shape[at] == _WITH_BACKGROUND and target.shape[-1:] == (_WITH_BACKGROUND - 1,))
            number = find_dim(word.removeprefix("-"), shape, target)
            return shape[at] - number if word.startswith("-") else number

        start, stop = map(place, words[1:])
        if not 0 <= start < stop <= shape[at]:
            raise ValueError(f"axis {at} has length {shape[at]}, which has no entries from {start} up to {stop}")
        return (slice(None),) * at + (slice(start, stop),)

    return _taking("slice", (axis, *words[1:]), part)


def make_add(words: list[str]) -> Transform:
    if len(words) not in (1, 4) or not re.fullmatch(_NUMBER, words[0]):
        raise ValueError(f"`add({', '.join(words)})`: expected add(number) or add(number, axis, parts, i)")
    number, where = float(words[0]), parse_integers(words[1:], "add")
    if where and (where[1] < 1 or not 0 <= where[2] < where[1]):
        raise ValueError(
            f"`add({', '.join(words)})`: there is no part {where[2]} of {where[1]}; parts are counted from 0"
        )

    def shape_of(spec: Spec, _: Target) -> Spec:
        _check_floating(spec)
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


def make_multiply(words: list[str]) -> Transform:
    if len(words) != 1 or not re.fullmatch(_NUMBER, words[0]) or float(words[0]) == 0:
        raise ValueError(f"`multiply({', '.join(words)})`: expected multiply(number), with a number other than 0")
    factor = float(words[0])

    def shape_of(spec: Spec, _: Target) -> Spec:
        _check_floating(spec)
        return spec

    return Transform(
        "multiply", tuple(words), shape_of,
        lambda array, _: array * np.asarray(factor, array.dtype),
        inverse=lambda array, spec: array.astype(spec.dtype, copy=False) / np.asarray(factor, spec.dtype),
    )  # fmt: skip


def make_reverse(words: list[str]) -> Transform:
    (axis,) = parse_integers(words, "reverse", counts=(1,))

    def shape_of(spec: Spec, _: Target) -> Spec:
        find_axis(axis, spec)
        return spec

    return Transform(
        "reverse", (axis,), shape_of,
        lambda array, _: np.flip(array, axis),
        inverse=lambda array, _: np.flip(array, axis),
    )  # fmt: skip


def _check_floating(spec: Spec) -> None:
    if spec.dtype.kind != "f" and spec.dtype.name != "bfloat16":
        raise ValueError(f"expected a floating-point dtype, not {spec.dtype.name}")


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


def make_folded(words: list[str]) -> Transform:
    """Zeros on the way in; on the way out the value is taken off its source (engine.porting.rules.inverse)."""
    if words:
        raise ValueError(f"`folded({', '.join(words)})`: expected no arguments")
    return Transform("folded", (), lambda spec, _: spec, lambda array, _: np.zeros_like(array))
