"""Runs cases in forked children, each within limits of time and memory; a child that dies takes one case with it.

The parent has imported TensorFlow and run nothing of it, so that a fork is as fresh as a new process and takes none of
the time of one. A child does many cases and says of each when it begins and how it ended; so it is known which case a
child that hangs or dies was at, and the others are done by the next child.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pathlib
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import outcomes
from .outcomes import Case, Result, conclude

Perform = Callable[[Case], Result]


@dataclass(frozen=True)
class Limits:
    """What a case may take: seconds, and bytes of resident memory beyond what the child has at its start."""

    seconds: float = 20.0
    bytes: int = 2 << 30


def run_cases(
    cases: Sequence[Case],
    perform: Perform,
    *,
    limits: Limits,
    report: Callable[[Result], None],
    workers: int = 2,
    each: int = 100,
) -> None:
    """Performs all cases and reports the result of each, in any order. A child does at most ``each`` of them."""
    waiting = deque(cases)
    children: list[_Child] = []
    gc.freeze()
    try:
        while waiting or children:
            while waiting and len(children) < workers:
                children.append(_Child([waiting.popleft() for _ in range(min(each, len(waiting)))], perform, limits))
            select.select([child.pipe for child in children], [], [], 0.1)
            for child in list(children):
                for result in child.poll():
                    report(result)
                if child.ended:
                    waiting.extendleft(reversed(child.left))
                    children.remove(child)
    finally:
        for child in children:
            child.kill()


class _Child:
    """A forked process that performs cases.

    ``left`` are the cases that it has not begun. ``ended`` is set once it has gone.
    """

    def __init__(self, cases: list[Case], perform: Perform, limits: Limits) -> None:
        self.left, self.limits, self.ended = list(cases), limits, False
        self._current: Case | None = None
        self._since, self._text, self._base = time.monotonic(), b"", 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.pipe, write = os.pipe()
        os.set_blocking(self.pipe, False)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            _work(cases, perform, write, self._errors.fileno(), limits)
        os.close(write)

    def poll(self) -> Iterator[Result]:
        """Yields the results that have come, and that of a case at which the child died or broke a limit."""
        closed = False
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.pipe, 1 << 16):
                self._text += block
            closed = True
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "begins" in message:
                self._current = self.left.pop(0)
                self._since, self._base = time.monotonic(), self._base or resident(self.pid)
            else:
                self._current = None
                yield Result(**message)
        if closed:
            _, status = os.waitpid(self.pid, 0)
            if self._current is not None:
                yield conclude(self._current, outcomes.ABORT, f"{_ending(status)}; {self._last_words()}")
            elif self.left and status:
                raise RuntimeError(f"a child of the campaign failed: {_ending(status)}; {self._last_words()}")
            self._close()
        elif self._current is not None:
            seconds, used = time.monotonic() - self._since, resident(self.pid) - self._base
            if seconds > self.limits.seconds or used > self.limits.bytes:
                kind = outcomes.MEMORY if used > self.limits.bytes else outcomes.HANG
                yield conclude(self._current, kind, f"after {seconds:.0f} s with {used / 2**20:,.0f} MiB")
                self.kill()

    def kill(self) -> None:
        """Ends the child and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # before it has made its own group
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._close()

    def _close(self) -> None:
        os.close(self.pipe)
        self._errors.close()
        self.ended = True

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return next((line for line in lines if "F0000" in line or "Fatal" in line), lines[-1] if lines else "")


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _work(cases: list[Case], perform: Perform, pipe: int, errors: int, limits: Limits) -> None:
    """What a child does; it never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        size = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        most = size + limits.bytes + (8 << 30)  # threads and maps reserve more than they use
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.ftruncate(errors, 0)
            os.write(pipe, b'{"begins": true}\n')
            os.write(pipe, json.dumps(attempt(case, perform).to_json()).encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def attempt(case: Case, perform: Perform) -> Result:
    """Performs a case in this process. Errors of input are clean; any other exception is a failure."""
    from engine.errors import InputError

    try:
        return perform(case)
    except InputError as error:
        return conclude(case, outcomes.CLEAN, str(error))
    except MemoryError as error:
        return conclude(case, outcomes.MEMORY, repr(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{pathlib.Path(place.filename).name}:{place.lineno}"
        return conclude(case, outcomes.CRASH, f"{type(error).__name__} at {where}: {error}")


def resident(pid: int) -> int:
    """The resident bytes of a process and of those that it started; 0 once it has gone."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        started = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() + sum(resident(int(each)) for each in started)


def in_child(function: Callable[[], Any], *, seconds: float = 600.0) -> Any:
    """Returns what a function returns (as JSON) when it is called in a forked child; raises RuntimeError if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer"
        case = Case("setup", "setup", 0, 0)

        def perform(case: Case) -> Result:
            answer.write_text(json.dumps(function()), encoding="utf-8")
            return conclude(case, outcomes.EXACT)

        found: list[Result] = []
        run_cases([case], perform, limits=Limits(seconds, 1 << 40), report=found.append)
        if found[0].outcome != outcomes.EXACT:
            raise RuntimeError(f"{found[0].outcome}: {found[0].detail}")
        return json.loads(answer.read_text(encoding="utf-8"))
