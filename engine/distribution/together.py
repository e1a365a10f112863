"""Work that each worker does for itself, and after which all go on or none does.

Without this a worker that fails would leave the others waiting for it until they take it for dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from engine.distribution.distribution import DisagreementError, Distribution, DistributionError
from engine.errors import InputError

Made = TypeVar("Made")


class PeerError(DistributionError):
    """Another worker refused its input. The message names the worker, and has its words.

    Attributes:
        kinds: the names of the class of the other worker's error and of its base classes.
    """

    kinds: tuple[str, ...] = ()


class PeerFailedError(RuntimeError):
    """Another worker failed for a reason other than its input. Message and attributes are as those of ``PeerError``."""

    kinds: tuple[str, ...] = ()


class ToldError(Exception):
    """The cause of an error that all workers know of."""


def work_together(
    distribution: Distribution, work: Callable[[], Made], *, tell: Callable[[Made], Any] = lambda made: None
) -> tuple[Made, list[Any]]:
    """Does this worker's part of some work, and waits until all workers have done theirs.

    ``work`` must not itself speak with the other workers. With one worker it is only called.

    Returns:
        What ``work`` returned, and what each worker has to ``tell`` of that: JSON values, by worker.

    Raises:
        PeerError, PeerFailedError: another worker's work raised an error. If this worker's own did, that error is raised;
            ``is_known_to_all`` is then true of either.

    Example:
        >>> from engine.distribution.distribution import ALONE
        >>> work_together(ALONE, lambda: [3, 4], tell=len)
        ([3, 4], [2])
    """
    if distribution.workers == 1:
        made = work()
        return made, [tell(made)]
    try:
        made = work()
        told = tell(made)
    except Exception as error:
        kinds = [each.__name__ for each in type(error).__mro__]
        text = str(error) if isinstance(error, (InputError, RuntimeError)) else f"{type(error).__name__}: {error}"
        distribution.exchange({"error": text, "kinds": kinds, "input": isinstance(error, InputError)})
        raise error from ToldError()
    reports = distribution.exchange({"told": told})
    for worker, report in enumerate(reports):
        if "error" in report:
            kind = PeerError if report["input"] else PeerFailedError
            failed = kind(f"{distribution.name(worker)}: {report['error']}")
            failed.kinds = tuple(report["kinds"])
            raise failed
    return made, [report["told"] for report in reports]


def is_known_to_all(error: BaseException) -> bool:
    """Whether every worker ends with this error, or with one that names the worker where it arose."""
    return isinstance(error, (DisagreementError, PeerError, PeerFailedError)) or isinstance(error.__cause__, ToldError)


def is_of_kind(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether an error is of one of these classes, here or on the worker where it arose."""
    if isinstance(error, (PeerError, PeerFailedError)):
        return any(kind.__name__ in error.kinds for kind in kinds)
    return isinstance(error, kinds)
