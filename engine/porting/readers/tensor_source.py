"""The protocol of every kind of weights file (engine.porting.readers.source opens them)."""

from __future__ import annotations

import pathlib
from types import TracebackType
from typing import Any, Protocol

import numpy as np


class TensorSource(Protocol):
    """Named tensors that are read one at a time. A context manager; every method may raise FileError.

    ``path`` is for messages. ``checksums`` says whether reading a tensor can find damage that opening the file did not,
    so that a careful loader reads everything once before it changes anything.
    """

    @property
    def path(self) -> pathlib.Path: ...

    @property
    def checksums(self) -> bool: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray:
        """Reads the whole tensor into new memory."""

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Reads the rows ``start`` to ``stop`` along axis 0; the others are not kept in memory."""

    def close(self) -> None: ...

    def __enter__(self) -> TensorSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
