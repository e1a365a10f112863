"""What the end of a worker does to the others: one error that names it, whatever TensorFlow raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engine.distribution.distribution import Distribution
from engine.distribution.watch import Watch


@contextlib.contextmanager
def explained(distribution: Distribution) -> Iterator[None]:
    """Within this scope, errors of collective operations become a WorkerLostError that names the worker that is lost.

    Raises:
        WorkerLostError: another worker has died or cannot be reached.
    """
    with explaining(distribution.watch):
        yield


@contextlib.contextmanager
def explaining(watch: Watch | None) -> Iterator[None]:
    """As ``explained``, by what observes the other workers; None changes no error."""
    if watch is None:
        yield
        return
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        kinds = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
        certain = "ollective" in str(error)
        if (certain or isinstance(error, kinds)) and (found := watch.explain(error, certain=certain)) is not None:
            raise found from error
        raise  # an error of this worker's own
