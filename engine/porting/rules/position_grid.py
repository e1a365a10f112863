"""Position embeddings of one patch grid, resized to another, as torch does."""

from __future__ import annotations

import math

import numpy as np

_A = -0.75  # of the cubic kernel (Keys 1981), torch's and OpenCV's choice; TensorFlow's and PIL's is -0.5


def cubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old] float64: each new point as a mix of old ones.

    ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False)`` along one
    axis: new point i lies at (i + 0.5) * old / new - 0.5, its four neighbours count by the cubic
    kernel, neighbours beyond the edge are the edge.
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


def resize(embedding: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """[1, extra + rows * columns, width] of grid ``old`` to the grid ``new``; extra rows (class token) stay.

    The result is float32, or float64 from float64.
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


def grids(
    tokens: int, target: int, grid: tuple[int, int] | None, given: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The file's grid and the model's.

    Args:
        tokens: rows of the embedding in the file.
        target: rows of the model's.
        grid: the model's grid (rows, columns), or None: taken as square.
        given: the file's grid if the rule says it.

    Raises:
        ValueError: a grid that cannot be told; says which rule would tell it.
    """
    new = grid or _square(target)
    if new is None or not 0 <= target - new[0] * new[1] <= 1:
        raise ValueError(f"{target} tokens of the model are no square grid, with or without a class token")
    extra = target - new[0] * new[1]
    old = given or _square(tokens - extra, exact=True)
    if tokens == target and given is None and old != new:
        if old is None:
            return new, new
        raise ValueError(
            f"{tokens} tokens can be a grid of {old[0]}x{old[1]} or of {new[0]}x{new[1]}; "
            f"write resize_grid({old[0]}, {old[1]}) or resize_grid({new[0]}, {new[1]})"
        )
    if old is None or tokens - old[0] * old[1] != extra:
        kept = "a class token and " if extra else ""
        wanted = f"{old[0]}x{old[1]}" if old else "square"
        raise ValueError(f"{tokens} tokens of the file are not {kept}a {wanted} grid; write resize_grid(ROWS, COLUMNS)")
    return old, new


def _square(tokens: int, *, exact: bool = False) -> tuple[int, int] | None:
    for count in (tokens,) if exact else (tokens, tokens - 1):
        side = math.isqrt(max(count, 0))
        if side > 0 and side * side == count:
            return side, side
    return None
