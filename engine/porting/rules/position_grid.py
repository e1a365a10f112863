"""Resizes position embeddings from one patch grid to another, as torch does."""

from __future__ import annotations

import math

import numpy as np

_A = -0.75  # the parameter of the cubic kernel (Keys 1981) in torch and OpenCV; TensorFlow and PIL use -0.5


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Returns the interpolation weights [new, old] in float64: each new point as a mix of old ones.

    This is ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False)`` along one axis;
    neighbours beyond the edge are the edge.
    """
    weights = np.zeros((new, old))
    for point in range(new):
        place = (point + 0.5) * old / new - 0.5
        below = math.floor(place)
        for neighbour in range(below - 1, below + 3):
            weights[point, min(max(neighbour, 0), old - 1)] += _cubic(abs(place - neighbour))
    return weights


def _cubic(x: float) -> float:
    if x <= 1:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1
    return ((x - 5) * x + 8) * x * _A - 4 * _A if x < 2 else 0.0


def resize_grid(embedding: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Resizes an embedding [1, extra + rows * columns, width] from the grid ``old`` to the grid ``new``.

    The extra rows (a class token) stay as they are. The result is float32, or float64 for float64.
    """
    if old == new:
        return embedding
    dtype = np.float64 if embedding.dtype == np.float64 else np.float32
    extra, width = embedding.shape[1] - old[0] * old[1], embedding.shape[2]
    grid = embedding[0, extra:].astype(np.float64).reshape(*old, width)
    grid = np.einsum(
        "ir,jc,rcw->ijw", cubic_weights(old[0], new[0]), cubic_weights(old[1], new[1]), grid, optimize=True
    )
    return np.concatenate([embedding[0, :extra].astype(dtype), grid.reshape(-1, width).astype(dtype)])[None]


def find_grids(
    tokens: int, target: int, grid: tuple[int, int] | None, given: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the grids (rows, columns) of the file and of the model.

    ``tokens`` and ``target`` are the numbers of rows of their embeddings. ``grid`` is the model's grid, where None
    assumes that it is square, and ``given`` the file's if the rule states it. Raises ValueError if a grid is ambiguous;
    the message says which rule would decide it.
    """
    new = grid or _square(target)
    if new is None or not 0 <= target - new[0] * new[1] <= 1:
        raise ValueError(f"the model's {target} tokens do not form a square grid, with or without a class token")
    extra = target - new[0] * new[1]
    old = given or _square(tokens - extra, exact=True)
    if tokens == target and given is None and old != new:
        if old is None:
            return new, new
        raise ValueError(
            f"{tokens} tokens may form a grid of {old[0]}x{old[1]} or of {new[0]}x{new[1]}; "
            f"write resize_grid({old[0]}, {old[1]}) or resize_grid({new[0]}, {new[1]})"
        )
    if old is None or tokens - old[0] * old[1] != extra:
        kept = "a class token and " if extra else ""
        wanted = f"{old[0]}x{old[1]}" if old else "square"
        raise ValueError(f"the file's {tokens} tokens are not {kept}a {wanted} grid; write resize_grid(ROWS, COLUMNS)")
    return old, new


def _square(tokens: int, *, exact: bool = False) -> tuple[int, int] | None:
    for count in (tokens,) if exact else (tokens, tokens - 1):
        side = math.isqrt(max(count, 0))
        if side > 0 and side * side == count:
            return side, side
    return None
