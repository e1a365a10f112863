"""Tries in a small process of its own what may never end, or may end the process: native code cannot be interrupted.

What has passed there is then done here, with the same input and so the same result. The system itself ends a trial when it
has used its share of computing time, so that a busy machine makes none fail.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

SERVE = """
import json, signal, sys
def serve(work):
    for line in sys.stdin:
        seconds, request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            work(request)
        except Exception:
            pass
        left = signal.setitimer(signal.ITIMER_PROF, 0)[0]
        sys.stdout.write(json.dumps(seconds - left) + chr(10))
        sys.stdout.flush()
"""


class Trial:
    """A process for trials, started when it is first needed. ``code`` defines a function ``work`` of one JSON value.

    What ``work`` raises counts as an end: whoever does the same afterwards meets the same error.
    """

    def __init__(self, code: str, *, options: Sequence[str] = ()) -> None:
        self._command = [sys.executable, *options, "-c", f"{SERVE}\n{code}\nserve(work)"]
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        _all.add(self)

    def run(self, request: Any, seconds: float) -> float | None:
        """Returns the seconds of computing time that the work took; None if it did not end within those given."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps([seconds, request]) + "\n")
                self._process.stdin.flush()
            if answer := self._process.stdout.readline():
                return float(answer)
            self.stop()
            return None

    def stop(self) -> None:
        """Ends the process; the next trial starts another."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()

    def forget(self) -> None:
        """In a forked process: the process for trials belongs to the parent."""
        self._process, self._lock = None, threading.Lock()


_all: weakref.WeakSet[Trial] = weakref.WeakSet()


def _each(method: str) -> None:
    for trial in list(_all):
        getattr(trial, method)()


atexit.register(_each, "stop")
os.register_at_fork(after_in_child=lambda: _each("forget"))
