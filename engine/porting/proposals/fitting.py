"""How a tensor of one shape becomes a variable of another, by order of axes and reshapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

Shape = tuple[int, ...]
Layout = Literal["tf", "torch"]

# torch: [out, in], [out, in, k], [out, in, rows, columns], ...
_FROM_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


class Fit(NamedTuple):
    """Transforms that give the wanted shape, and how natural they are, in (0, 1].

    ``told`` is False where another order of axes has the same shape, so that the shape alone does not say
    whether to transpose.
    """

    transforms: tuple[str, ...]
    quality: float
    told: bool


def order(shape: Shape, layout: Layout) -> tuple[int, ...]:
    """The axes of a kernel in the order that TensorFlow has them."""
    return _FROM_TORCH.get(len(shape), tuple(range(len(shape)))) if layout == "torch" else tuple(range(len(shape)))


def fit(source: Shape, target: Shape, role: str, layout: Layout, *, table: bool = False) -> Fit | None:
    """The transforms from a source's shape to a variable's, None when there are none.

    Args:
        role: of the tensor; only a "kernel" has axes of inputs and outputs.
        layout: of the source's kernels.
        table: it may be a look-up table, which torch holds as TensorFlow does.
    """
    axes = order(source, layout) if role == "kernel" else tuple(range(len(source)))
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
        return None  # a flattened image: torch counts channels first
    other: tuple[int, ...] = tuple(source[axis] for axis in _FROM_TORCH[len(source)]) if flips else ()
    same = flips and other == source and sum(length > 1 for length in source) > 1
    if axes != tuple(range(len(source))):
        if [source[axis] for axis in axes if source[axis] != 1] == [length for length in source if length != 1] and (
            len([length for length in source if length > 1]) < 2
        ):
            straight = _reshaped(source, target)  # one long axis: nothing moves
            if straight is not None:
                return Fit(straight[0], straight[1], True)
        texts = (f"transpose({', '.join(map(str, axes))})", *texts)
    return Fit(texts, quality, not same)


def _spatial(shape: Shape) -> int:
    return math.prod(shape[:-2])


def _reshaped(source: Shape, target: Shape) -> tuple[tuple[str, ...], float] | None:
    """Reshapes that keep the order in memory: axes of length 1, and neighbours merged or divided."""
    if source == target:
        return (), 1.0
    if 0 in source or 0 in target or math.prod(source) != math.prod(target):
        return None
    text = (f"reshape({', '.join(map(str, target))})",) if target else ("squeeze",)
    one, other = bare(source), bare(target)
    if one == other:
        dropped = [length for length in source if length != 1]
        return (("squeeze",) if dropped == list(target) else text), 0.97
    return (text, 0.94) if _merges(one, other) or _merges(other, one) else None


def bare(shape: Shape) -> Shape:
    """A shape without its axes of length 1."""
    return tuple(length for length in shape if length != 1)


def _merges(many: Shape, few: Shape) -> bool:
    """True when each axis of ``few`` is the product of neighbouring axes of ``many``."""
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


class Judged(NamedTuple):
    """The layout of a source's kernels, and how sure it is, in [0, 1], for kernels whose shape does not tell."""

    layout: Layout
    sure: float
    why: str


def judge_layout(
    kernels: Iterable[tuple[Shape, int | None]], targets: Iterable[Shape], *, named: Layout | None
) -> Judged:
    """Which order of axes the kernels of a source have.

    A bias is as long as its kernel's last axis in TensorFlow, and as the first in torch; and more kernels have a
    variable's shape in the right order.

    Args:
        kernels: shapes, and the length of the bias beside each.
        targets: shapes of the model's kernels.
        named: what the names suggest, None for nothing.
    """
    wanted = {bare(shape) for shape in targets}
    scores = {"tf": 0, "torch": 0}
    for shape, bias in kernels:
        if len(shape) not in _FROM_TORCH:
            continue
        straight, moved = bare(shape), bare(tuple(shape[axis] for axis in _FROM_TORCH[len(shape)]))
        if straight != moved:
            fits = (straight in wanted) - (moved in wanted)
            scores["tf"] += (fits > 0) + 2 * (bias == shape[-1] != shape[0])
            scores["torch"] += (fits < 0) + 2 * (bias == shape[0] != shape[-1])
    lead = scores["torch"] - scores["tf"]
    if lead == 0:
        if named == "torch":
            return Judged("torch", 0.7, "names of torch; no shape tells the order of axes")
        if named == "tf":
            return Judged("tf", 0.95, "names of TensorFlow; no shape tells the order of axes")
        return Judged("tf", 0.78, "neither names nor shapes tell the order of axes")
    layout: Layout = "torch" if lead > 0 else "tf"
    clear = abs(lead) >= 3 * min(scores.values())
    sure = (0.99 if named in (layout, None) else 0.85) if clear else 0.6
    return Judged(layout, sure, f"shapes have axes as {'torch' if lead > 0 else 'TensorFlow'} orders them")
