"""What a transform of the rule language is, and what the makers of all transforms share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Spec(NamedTuple):
    """The shape and dtype of a tensor that does not exist yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Target(NamedTuple):
    """What transforms may know about the variable: its shape, and the model's patch grid if there is one."""

    shape: tuple[int, ...]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Transform:
    """One transform of a rule, with its name and arguments as written.

    Attributes:
        infer: (spec, target) -> the spec of the result; raises ValueError with the reason.
        run: (array, target) -> the result, a view where possible.
        describe: (spec, target) -> what it does there, "" for nothing; None where its text says it.
        inverse: (result, spec of the input) -> the input; None where information is lost, or where several tensors
            are involved (split, slice and concat, see engine.porting.rules.inverse).
    """

    name: str
    arguments: tuple[Any, ...]
    infer: Callable[[Spec, Target], Spec]
    run: Callable[[np.ndarray, Target], np.ndarray]
    describe: Callable[[Spec, Target], str] | None = None
    inverse: Callable[[np.ndarray, Spec], np.ndarray] | None = None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})" if self.arguments else self.name


def find_axis(axis: int, spec: Spec) -> int:
    """Returns the number of an axis, which may be counted from the end; raises ValueError if there is none."""
    rank = len(spec.shape)
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis}")
    return axis % rank


def find_dim(word: str, shape: tuple[int, ...], target: Target) -> int:
    """Returns a number, or the length that dN or tN stands for."""
    if word[0] not in "dt":
        return int(word)
    axes, number = shape if word[0] == "d" else target.shape, int(word[1:])
    if number >= len(axes):
        raise ValueError(f"there is no {word} in {list(axes)}")
    return axes[number]


def parse_integers(words: Sequence[str], name: str, *, counts: Sequence[int] = ()) -> tuple[int, ...]:
    """Parses the arguments of a transform; raises ValueError unless they are integers, as many as ``counts`` allows."""
    if not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
        raise ValueError(f"`{name}({', '.join(words)})`: expected integers")
    if counts and len(words) not in counts:
        raise ValueError(
            f"`{name}` takes {' or '.join(map(str, counts))} argument{'' if list(counts) == [1] else 's'}, not {len(words)}"
        )
    return tuple(int(word) for word in words)
