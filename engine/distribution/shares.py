"""Shares: which examples of a step each replica takes. A rule of numbers alone, so that every worker can compute it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InputError


class ShareError(InputError):
    """A share that is not a valid one."""


@dataclass(frozen=True)
class Share:
    """The replicas [first, stop) of ``of`` replicas: those of one worker, or one alone.

    Of ``count`` examples, replica r takes those from position ceil(count * r / of) up to ceil(count * (r + 1) / of). So
    shares differ by at most one example, replica 0 always has one, and others have none where examples are too few.

    Raises:
        ShareError: ``first``, ``stop`` and ``of`` are not in order.

    Example:
        >>> from engine.distribution.shares import Share
        >>> [Share(replica, replica + 1, 3).bounds(7) for replica in range(3)]
        [(0, 3), (3, 5), (5, 7)]
        >>> Share(1, 3, 3).offsets(7)
        [0, 2, 4]
    """

    first: int = 0
    stop: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.stop <= self.of:
            raise ShareError(
                f"share: replicas {self.first} to {self.stop} of {self.of}; expected 0 <= first < stop <= of"
            )

    @property
    def replicas(self) -> int:
        """The number of replicas that this share has."""
        return self.stop - self.first

    @property
    def is_whole(self) -> bool:
        """Whether these are all the replicas."""
        return self.replicas == self.of

    def bounds(self, count: int) -> tuple[int, int]:
        """The first and the last position, exclusive, of this share of ``count`` examples."""
        return _start(count, self.first, self.of), _start(count, self.stop, self.of)

    def offsets(self, count: int) -> list[int]:
        """Where each replica's examples begin within this share of ``count`` examples, and the end of the last."""
        return [_start(count, replica, self.of) - self.bounds(count)[0] for replica in range(self.first, self.stop + 1)]

    def largest(self, count: int) -> int:
        """The most examples of ``count`` that any one replica takes."""
        return -(-count // self.of)


WHOLE = Share()


def _start(count: int, replica: int, of: int) -> int:
    return -(-count * replica // of)
