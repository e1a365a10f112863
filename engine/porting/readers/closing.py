"""What the readers of weights files have in common."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that closes itself at the end; there is nothing to close unless a subclass says what."""

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
