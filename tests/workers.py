"""Starts the workers of a distributed run: processes with TF_CONFIG, on free ports of this machine.

They are forked from a process that has imported TensorFlow without starting it (as in forked.py), but end as programs do,
because what the end of one worker does to the others is a part of what is tested.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]

SERVER = """
import contextlib, ctypes, json, os, runpy, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as a worker sets it
from engine.host import import_tensorflow

import_tensorflow(start=False)

def end_with_parent():
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it; others outlive a test that is killed
        ctypes.CDLL(None).prctl(1, 9)

end_with_parent()

def become(words, environment, files):
    os.setpgid(0, 0)
    end_with_parent()
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.path.insert(1, "tests")
    if words[0] not in ("-m", "-c"):
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        return
    how, what, *flags = words
    sys.argv = [what if how == "-m" else how, *flags]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})

while line := sys.stdin.readline():
    started = []
    for job in json.loads(line):
        started.append(os.fork())
        if not started[-1]:
            become(*job)
            sys.exit(0)
    print(json.dumps(started), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]), flush=True)
"""


class Outcome(NamedTuple):
    """How a worker ended: its exit code (minus the signal that ended it), and all that it wrote."""

    code: int
    stdout: str
    stderr: str


class Kill(NamedTuple):
    """A signal for a worker: after so many seconds, or once its stdout contains a text."""

    worker: int
    after: float | str
    signal: int = signal.SIGKILL


def run_workers(
    argv: str | Sequence[str] | Callable[[int], Sequence[str]],
    count: int,
    *,
    timeout: float = 120,
    kill: Kill | tuple[int, float | str] | Sequence[Kill] = (),
    ports: Sequence[int] | None = None,
    environ: Callable[[int], Mapping[str, str]] | Mapping[str, str] = {},  # noqa: B006
    start: Sequence[int] | None = None,
    killed: list[float] | None = None,
) -> list[Outcome]:
    """Runs ``count`` workers of one cluster at the same time until all have ended.

    ``argv`` is a script, the words after ``python`` (``["-m", MODULE, *FLAGS]``, ``["-c", CODE, ...]`` or
    ``[SCRIPT, ...]``), or a function from a worker's number to them. ``environ`` is added to the environment, for all or
    by worker; TF_CONFIG is set. ``start`` are the workers that are started; the others never come, and are left out of
    what is returned. ``killed`` receives the moments, of ``time.monotonic``, at which signals were sent.

    Raises:
        subprocess.TimeoutExpired: they had not all ended after ``timeout`` seconds; they are killed.
    """
    addresses = [f"127.0.0.1:{port}" for port in ports or free_ports(count)]
    numbers = list(range(count)) if start is None else list(start)
    kills = [Kill(*kill)] if kill and not isinstance(kill[0], tuple) else [Kill(*each) for each in kill]  # type: ignore[misc]
    jobs = []
    with tempfile.TemporaryDirectory() as folder:
        for worker in numbers:
            words = argv(worker) if callable(argv) else [argv] if isinstance(argv, str) else argv
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}
            own = environ(worker) if callable(environ) else environ
            threads = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}
            files = [os.path.join(folder, f"{worker}.{name}") for name in ("stdin", "stdout", "stderr")]
            for file in files:
                pathlib.Path(file).touch()
            jobs.append(
                [list(map(str, words)), {**os.environ, **threads, "TF_CONFIG": json.dumps(config), **own}, files]
            )
        codes = _run(jobs, numbers, kills, timeout, [] if killed is None else killed)
        return [
            Outcome(code, *(pathlib.Path(file).read_text(encoding="utf-8") for file in job[2][1:]))
            for code, job in zip(codes, jobs, strict=True)
        ]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _run(
    jobs: list[list[Any]], numbers: list[int], kills: list[Kill], timeout: float, killed: list[float]
) -> list[int]:
    """The exit codes of programs, in the order of ``jobs``."""
    begin = time.monotonic()
    _SERVER.ask(jobs)
    processes: list[int] = _SERVER.answer(timeout)
    ended = None
    try:
        while (ended := _SERVER.answer(0.02 if kills else timeout, wait=False)) is None:
            passed = time.monotonic() - begin
            if passed > timeout:
                wrote = [pathlib.Path(file).read_text(encoding="utf-8") for job in jobs for file in job[2][1:]]
                raise subprocess.TimeoutExpired(jobs[0][0], timeout, "\n".join(wrote))
            for each in list(kills):
                place = numbers.index(each.worker)
                written = pathlib.Path(jobs[place][2][1])
                due = passed >= each.after if not isinstance(each.after, str) else each.after in written.read_text()
                if due:
                    kills.remove(each)
                    killed.append(time.monotonic())
                    os.kill(processes[place], each.signal)
    finally:
        if ended is None:
            for process in processes:
                with contextlib.suppress(OSError):
                    os.killpg(process, signal.SIGKILL)
            _SERVER.answer(10)
    return list(ended)


class _Server:
    """The process that forks workers; it starts at the first run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, jobs: list[list[Any]]) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
            atexit.register(self.close)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(jobs).encode() + b"\n")

    def answer(self, seconds: float, *, wait: bool = True) -> Any:
        """What it answers within some seconds; None if it does not and one does not ``wait`` for it."""
        assert self._process is not None
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], seconds)[0]:
            return json.loads(self._process.stdout.readline())
        if wait:
            self.close()
            raise TimeoutError("the process that starts workers does not answer")
        return None

    def close(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


_SERVER = _Server()
