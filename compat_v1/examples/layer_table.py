"""Networks with parallel branches, written as a table of layers.

A line is a layer, or a block of branches whose outputs are joined, which follow its name after a colon::

    Conv2d_1a_7x7 64 /2
    max 3 /2 valid
    Mixed_3b: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 128 | avg 3, Conv2d_0b_1x1 32

A branch is a list of layers separated by commas. A convolution has its name, which ends in the size of its kernel
unless that follows, and its number of filters; ``max`` and ``avg`` are pools of a size. ``/2`` is the stride, ``valid`` the padding, otherwise
``same``. ``a & b`` applies both to the same input and joins their outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Maker(Protocol):
    """Makes the layers of a table, in TensorFlow 1 or in Keras; ``scope`` is such as ``Mixed_3b/Branch_0/Conv2d_0a_1x1``."""

    def conv(self, x: Any, scope: str, filters: int, kernel: tuple[int, int], strides: int, padding: str, /) -> Any: ...

    def pool(self, x: Any, kind: str, size: int, strides: int, padding: str, /) -> Any: ...

    def join(self, branches: Sequence[Any], /) -> Any: ...


def apply_table(table: str, x: Any, maker: Maker, *, scale: Callable[[int], int] = lambda filters: filters) -> Any:
    """Applies the layers of a table to ``x``; ``scale`` changes the numbers of filters."""
    for line in filter(None, map(str.strip, table.splitlines())):
        name, colon, branches = line.partition(":")
        if not colon:
            x = _apply_layers(line, x, maker, "", scale)
            continue
        found = [
            _apply_layers(branch, x, maker, f"{name}/Branch_{number}/", scale)
            for number, branch in enumerate(branches.split("|"))
        ]
        x = maker.join(found)
    return x


def _apply_layers(text: str, x: Any, maker: Maker, scope: str, scale: Callable[[int], int]) -> Any:
    for layer in text.split(","):
        found = [_apply_layer(each.split(), x, maker, scope, scale) for each in layer.split("&")]
        x = found[0] if len(found) == 1 else maker.join(found)
    return x


def _apply_layer(words: list[str], x: Any, maker: Maker, scope: str, scale: Callable[[int], int]) -> Any:
    name, number = words[0], int(words[1])
    strides = next((int(word[1:]) for word in words if word.startswith("/")), 1)
    padding = "valid" if "valid" in words else "same"
    if name in ("max", "avg"):
        return maker.pool(x, name, number, strides, padding)
    sizes = [match for word in reversed(words) if (match := re.search(r"(\d)x(\d)$", word))]
    match = sizes[0]
    return maker.conv(x, scope + name, scale(number), (int(match[1]), int(match[2])), strides, padding)
