"""Fits a tensor to a variable of another shape by reordering axes and reshaping alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

Shape = tuple[int, ...]
Layout = Literal["tf", "torch"]

# torch: [out, in], [out, in, k], [out, in, rows, columns], ...
_FROM_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


class Fit(NamedTuple):
    """Transforms that lead to a shape, and how natural they are, in (0, 1].

    ``decided`` is False where another order of axes has the same shape, so that it is open whether to transpose.
    """

    transforms: tuple[str, ...]
    quality: float
    decided: bool


def order_axes(shape: Shape, layout: Layout) -> tuple[int, ...]:
    """Returns the axes of a kernel in TensorFlow's order."""
    return _FROM_TORCH.get(len(shape), tuple(range(len(shape)))) if layout == "torch" else tuple(range(len(shape)))


def fit_shape(source: Shape, target: Shape, role: str, layout: Layout, *, table: bool = False) -> Fit | None:
    """Finds the transforms from the shape of a source to that of a variable; None if there are none.

    Only a "kernel", by its role, has axes of inputs and outputs, which are in ``layout`` in the source. A ``table`` may
    be for lookups, and its layout is the same in torch and TensorFlow.
    """
    axes = order_axes(source, layout) if role == "kernel" else tuple(range(len(source)))
    moved = tuple(source[axis] for axis in axes)
    flips = role == "kernel" and len(source) in _FROM_TORCH
    if table and len(source) == 2:
        straight = _reshaped(source, target)
        if straight is not None:
            return Fit(straight[0], straight[1], source[0] != source[1] or layout == "tf")
    found = _reshaped(moved, target)
    if found is None:
        return None
    texts, quality = found
    if layout == "torch" and len(source) == 2 and len(target) > 2 and _spatial(target) > 1 and role == "kernel":
        return None  # a flattened image, which has channels first in torch
    other: tuple[int, ...] = tuple(source[axis] for axis in _FROM_TORCH[len(source)]) if flips else ()
    same = flips and other == source and sum(length > 1 for length in source) > 1
    if axes != tuple(range(len(source))):
        if [source[axis] for axis in axes if source[axis] != 1] == [length for length in source if length != 1] and (
            len([length for length in source if length > 1]) < 2
        ):
            straight = _reshaped(source, target)  # only one axis is longer than 1: nothing moves
            if straight is not None:
                return Fit(straight[0], straight[1], True)
        texts = (f"transpose({', '.join(map(str, axes))})", *texts)
    return Fit(texts, quality, not same)


def _spatial(shape: Shape) -> int:
    return math.prod(shape[:-2])


def _reshaped(source: Shape, target: Shape) -> tuple[tuple[str, ...], float] | None:
    """Finds a reshape that adds or drops axes of length 1, or that merges or divides neighbouring axes."""
    if source == target:
        return (), 1.0
    if 0 in source or 0 in target or math.prod(source) != math.prod(target):
        return None
    text = (f"reshape({', '.join(map(str, target))})",) if target else ("squeeze",)
    one, other = drop_ones(source), drop_ones(target)
    if one == other:
        dropped = [length for length in source if length != 1]
        return (("squeeze",) if dropped == list(target) else text), 0.97
    return (text, 0.94) if _merges(one, other) or _merges(other, one) else None


def drop_ones(shape: Shape) -> Shape:
    """Returns a shape without its axes of length 1."""
    return tuple(length for length in shape if length != 1)


def _merges(many: Shape, few: Shape) -> bool:
    """Whether each axis of ``few`` is the product of neighbouring axes of ``many``."""
    if len(few) >= len(many) or not few:
        return False
    place = 0
    for length in few:
        product = 1
        while product < length and place < len(many):
            product *= many[place]
            place += 1
        if product != length:
            return False
    return place == len(many)


class LayoutGuess(NamedTuple):
    """The layout of a source's kernels, and the confidence in it, in [0, 1], where the shape does not decide."""

    layout: Layout
    sure: float
    why: str


def judge_layout(
    kernels: Iterable[tuple[Shape, int | None]], targets: Iterable[Shape], *, named: Layout | None
) -> LayoutGuess:
    """Guesses the order of axes in the kernels of a source.

    A bias is as long as the last axis of its kernel in TensorFlow, and as the first in torch. Besides, more kernels
    have the shape of a variable in the right order than in the wrong one. ``kernels`` are shapes, each with the length
    of its bias or None, ``targets`` the shapes of the model's kernels, and ``named`` the layout that the names suggest.
    """
    wanted = {drop_ones(shape) for shape in targets}
    scores = {"tf": 0, "torch": 0}
    for shape, bias in kernels:
        if len(shape) not in _FROM_TORCH:
            continue
        straight, moved = drop_ones(shape), drop_ones(tuple(shape[axis] for axis in _FROM_TORCH[len(shape)]))
        if straight != moved:
            fits = (straight in wanted) - (moved in wanted)
            scores["tf"] += (fits > 0) + 2 * (bias == shape[-1] != shape[0])
            scores["torch"] += (fits < 0) + 2 * (bias == shape[0] != shape[-1])
    lead = scores["torch"] - scores["tf"]
    if lead == 0:
        if named == "torch":
            return LayoutGuess("torch", 0.7, "names as in torch; no shape decides the order of axes")
        if named == "tf":
            return LayoutGuess("tf", 0.95, "names as in TensorFlow; no shape decides the order of axes")
        return LayoutGuess("tf", 0.78, "neither names nor shapes decide the order of axes")
    layout: Layout = "torch" if lead > 0 else "tf"
    clear = abs(lead) >= 3 * min(scores.values())
    sure = (0.99 if named in (layout, None) else 0.85) if clear else 0.6
    return LayoutGuess(
        layout, sure, f"the axes of the shapes are ordered as in {'torch' if lead > 0 else 'TensorFlow'}"
    )
