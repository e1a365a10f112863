"""Observes the other workers of a run, because those that wait for one that has died would wait for ever.

A collective operation often fails by itself when a worker dies, but not where a worker computes alone, or where the other
one is only stopped, or its machine lost. So a thread asks each worker's server, which answers while its program computes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine import tensorflow_private
from engine.distribution.distribution import WorkerLostError, name_worker
from engine.text import cut, join_words

_INTERVAL = 1.0  # seconds between two questions
_GONE, _SILENT = "gone", "silent"
_WAY_OUT = "the last checkpoint stands, start all workers again with --resume"
_TOGETHER = 0.6  # seconds, less than an interval, within which workers are lost at the same time


@dataclass
class _Fault:
    """Since when a worker has not answered, how often it has been asked since then, and how it fails."""

    kind: str
    since: float
    count: int = 1


class Watch:
    """Ends what this process does for a run if another worker is lost.

    A worker is lost if nothing listens on its port for a few seconds, or it was started anew, or it does not answer for
    ``timeout`` seconds. Collective operations then fail in this process; if that does not end its work within
    ``timeout`` seconds of the loss, ``end`` ends it with a message.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        worker: int,
        *,
        timeout: float,
        probe: Callable[[int, float], str | None] | None = None,
        abort: Callable[[str], object] = tensorflow_private.abort_collectives,
        end: Callable[[str], object] | None = None,
    ) -> None:
        self._addresses = tuple(addresses)
        self._others = [other for other in range(len(addresses)) if other != worker]
        self._timeout = timeout
        self._interval = min(_INTERVAL, timeout / 8)
        self._limits = {_GONE: min(3.0, timeout / 3), _SILENT: timeout}
        self._probe, self._abort, self._end = probe or probe_worker, abort, end or _end_process
        self._faults: dict[int, _Fault] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._message: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to ask."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def is_stopped(self) -> bool:
        """Whether the end of another worker is not a loss any more, or one was lost."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Ends all asking; from then on, this process is not ended."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def explain(self, error: Exception, *, certain: bool = True) -> WorkerLostError | None:
        """The error to raise instead of that of a collective operation: it names the workers that are lost.

        None if no worker is lost and it is not ``certain`` that the error is of a collective operation.
        """
        deadline = time.monotonic() + min(10.0, self._timeout)
        # longer than an interval: the other workers see who was lost first before they see that this one has ended
        while self._message is None and not self._ask_all({_GONE: 1.3 * self._interval, _SILENT: self._timeout}):
            if time.monotonic() > deadline:
                self._message = self._find_fault(error, certain)
                break
            time.sleep(self._interval / 5)
        if self._message is None:
            return None
        self.stop()
        return WorkerLostError(f"{self._message}; {_WAY_OUT}")

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            if self._ask_all(self._limits):
                break
        if self._message is None or self._stopped.is_set():
            return
        message = f"{self._message}; {_WAY_OUT}"
        self._abort(message)
        first = min((fault.since for fault in self._faults.values()), default=time.monotonic())
        if not self._stopped.wait(max(self._timeout - (time.monotonic() - first) - 1.5, min(2.0, self._timeout / 4))):
            self._end(message)

    def _ask_all(self, limits: dict[str, float]) -> bool:
        """Asks all workers; sets the message, and returns True, once some are lost by these limits in seconds."""
        with self._lock:
            for other in self._others:
                if self._stopped.is_set():
                    return False
                self._ask(other)
            now = time.monotonic()
            lost = [each for each, f in self._faults.items() if now - f.since >= limits[f.kind] and f.count >= 3]
            if lost:
                first = min(self._faults[each].since for each in lost)
                lost = sorted(each for each in lost if self._faults[each].since <= first + _TOGETHER * self._interval)
                self._message = self._describe(lost)
            return bool(lost)

    def _find_fault(self, error: Exception, certain: bool) -> str | None:
        """What is the matter if no worker was lost within the time that there is to find out."""
        with self._lock:
            if self._faults:  # an operation has failed, so that those that do not answer are not merely slow
                return self._describe(sorted(self._faults))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        words = "an exchange with the other workers failed, though all of them answer"
        return f"{words} ({cut(lines[-1], 300)})" if certain else None

    def _ask(self, worker: int) -> None:
        kind = self._probe(worker, min(1.0, self._timeout / 5))
        before = self._faults.get(worker)
        if kind is None:
            self._faults.pop(worker, None)
        elif before is None or before.kind != kind:
            self._faults[worker] = _Fault(kind, time.monotonic())
        else:
            before.count += 1

    def _describe(self, lost: list[int]) -> str:
        names = join_words(name_worker(self._addresses, each) for each in lost)
        have = "has" if len(lost) == 1 else "have"
        if all(self._faults[each].kind == _SILENT for each in lost):
            seconds = time.monotonic() - min(self._faults[each].since for each in lost)
            return f"{names} {have} not answered for {seconds:.0f} seconds"
        return f"{names} {have} died or cannot be reached"


def probe_worker(worker: int, seconds: float) -> str | None:
    """How a worker fails to answer, "gone" or "silent"; None if it answers within some seconds."""
    import tensorflow as tf

    try:
        tensorflow_private.check_peer(worker, seconds=seconds)
    except (tf.errors.UnavailableError, tf.errors.FailedPreconditionError):  # nothing listens there, or another process
        return _GONE
    except tf.errors.OpError:
        return _SILENT
    return None


def _end_process(message: str) -> Any:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.write(2, f"{message}\n".encode())
    os._exit(1)
