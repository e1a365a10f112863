"""What a process knows of the run that it takes part in: its worker, its replicas, and how it speaks with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.distribution import differences
from engine.distribution.shares import WHOLE, Share
from engine.errors import InputError


class DistributionError(InputError):
    """A run cannot be distributed as asked."""


class DisagreementError(DistributionError):
    """The workers of a run differ in what must be the same."""


class WorkerLostError(RuntimeError):
    """A worker did not come, has died or cannot be reached, so that the others cannot go on. The message names it."""


class StoppedError(RuntimeError):
    """This process was asked to stop while it waited for the other workers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """The part that this process has in a run; ``engine.distribution.start.start_distribution`` makes it.

    Attributes:
        kind: "none", "mirrored" or "multiworker".
        strategy: the ``tf.distribute.Strategy`` that steps run under; None for kind "none".
        workers, worker: the number of processes, and the number of this one; 0 is the chief, which writes.
        addresses: the host:port of each worker; empty with one process.
        share: this worker's replicas among all.
        exchange: gives each worker's JSON value to all, as a list by worker; all must call it equally often.
        sum_arrays: the sums over workers of float64 arrays, of which each worker gives as many, of the same shapes.
            They are exact where each worker fills other places and leaves zeros in the rest.
        part: waits for all workers at the end.
        watch: observes the other workers; None with one process.
    """

    kind: str = "none"
    strategy: Any | None = None
    workers: int = 1
    worker: int = 0
    addresses: tuple[str, ...] = ()
    share: Share = WHOLE
    exchange: Callable[[Any], list[Any]] = lambda value: [value]
    sum_arrays: Callable[[Sequence[Any]], list[Any]] = list
    part: Callable[[], None] = lambda: None
    watch: Any | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.worker == 0

    def name(self, worker: int) -> str:
        """A worker as messages name it."""
        return name_worker(self.addresses, worker)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compares facts that must be the same on all workers: JSON values, which may be nested.

        Raises:
            DisagreementError: a fact differs from the chief's. Every worker raises it, with the same words.
        """
        if found := differences.find(self.exchange(dict(facts)), self.name):
            self.close()  # the others read the same facts before this process ends
            raise DisagreementError(
                f"distribute={self.kind}: the workers do not agree; start all of them with the same command, data and "
                f"versions:\n  {found}"
            )

    def close(self) -> None:
        """Waits until all workers have come to their end; from then on, the end of one is not a failure.

        Every worker calls it when it has done its work, and waits there for as long as the others work. A worker that
        fails by itself does not: it ends, and the others find that it is gone. It may be called again, without effect.

        Raises:
            WorkerLostError: a worker has died before it came here.
        """
        self.part()


def name_worker(addresses: Sequence[str], worker: int) -> str:
    """A worker as messages name it.

    Example:
        >>> name_worker(["a:2222", "b:2222"], 1)
        'worker 1 (b:2222)'
    """
    return f"worker {worker} ({addresses[worker]})" if addresses else f"worker {worker}"


ALONE = Distribution()
