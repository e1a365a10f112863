"""What all test kits share: the error, how values are compared, and how a batch is divided."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.outside_names import describe_error

Arrays = Mapping[str, np.ndarray]


class ContractError(InputError, AssertionError):
    """An implementation breaks its contract; the message says which rule, and where."""


def demand(condition: object, message: str) -> None:
    """Raises ContractError with this message unless the condition holds."""
    if not condition:
        raise ContractError(message)


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Names what was called when the implementation raises an error."""
    try:
        yield
    except InputError:  # it says by itself what is wrong
        raise
    except Exception as error:
        raise ContractError(f"{what} raised {describe_error(error)}") from error


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays have the same dtype, shape and bits; NaN equals NaN."""
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def nearly_same(one: Any, other: Any, *, relative: float) -> bool:
    """Whether numbers differ by at most this share of the largest of them; NaN equals NaN."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return False
    scale = max((float(np.abs(each[np.isfinite(each)]).max(initial=0.0)) for each in (a, b)), default=0.0)
    return bool(np.allclose(a, b, rtol=0.0, atol=relative * max(scale, 1e-30), equal_nan=True))


def find_splits(count: int) -> list[list[slice]]:
    """Some ways to divide examples in order: in halves, one by one, and unevenly."""
    each = [slice(number, number + 1) for number in range(count)]
    half, third = count // 2, max(1, count // 3)
    return [
        split
        for split in (
            [slice(0, half), slice(half, count)],
            [slice(0, third), slice(third, third + 1), slice(third + 1, count)],
            each,
        )
        if all(part.stop > part.start for part in split)
    ]


def list_some(items: Sequence[object], most: int = 5) -> str:
    """The first items of a list, for a message."""
    shown = ", ".join(map(str, items[:most]))
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown
