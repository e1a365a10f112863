"""Processes for the runs of a study: each is forked from one that has imported everything and has done nothing yet.

The import starts no thread, and nothing of TensorFlow's runtime begins before the first operation, so a fork is as fresh
as a new process. But Linux does not map the pages of libraries again until they are used: a fork touches those that the
imports had touched, so that its peak memory is what a new process would have needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from engine.study import child


class ForkServer:
    """A process that imports TensorFlow and the modules ``preload``, and then forks one process for each job.

    It starts importing as soon as this object exists, and it ends, with the job that it is running, when this process ends.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        self._folder = tempfile.TemporaryDirectory(prefix="frostline-study-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *dict.fromkeys(preload)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def run(self, target: str, argument: Any) -> Any:
        """Calls a function in a process of its own, waits for its end, and returns what it returned.

        Arguments and errors are those of ``engine.study.child.run_job``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        result = pathlib.Path(self._folder.name) / "result.json"
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([target, argument, os.fspath(result)]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise child.ChildError(f"the process that starts the runs ended: {child.last_lines(self._errors.read())}")
        child.check_exit(*json.loads(answer))
        return json.loads(result.read_text(encoding="utf-8"))


def serve(preload: Sequence[str]) -> None:
    """Does the job on each line of standard input, one after the other, and answers: exit code, standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here too; this ends when the asking process does
    from engine.host import import_tensorflow

    import_tensorflow(start=False)
    for name in preload:
        importlib.import_module(name)
    pages = library_pages()
    for line in sys.stdin:
        target, argument, result = json.loads(line)
        with tempfile.TemporaryFile() as said:
            process = os.fork()
            if not process:
                for start, stop in pages:
                    touch_pages(start, stop)
                _become(target, argument, pathlib.Path(result), said.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            said.seek(0)
            print(json.dumps([code, said.read().decode(errors="replace")]), flush=True)


def library_pages() -> list[tuple[int, int]]:
    """The address ranges that are mapped from files and present in memory; none where the system does not tell."""
    found, size = [], os.sysconf("SC_PAGE_SIZE")
    try:
        with (
            open("/proc/self/maps", encoding="utf-8", errors="replace") as maps,
            open("/proc/self/pagemap", "rb") as map_,
        ):
            for line in maps:
                where, rights, _, _, inode, *_ = line.split()
                if inode == "0" or rights[0] != "r":
                    continue
                start, stop = (int(address, 16) for address in where.split("-"))
                map_.seek(start // size * 8)  # 64 bits for each page; the highest one: the page is in memory
                here = np.frombuffer(map_.read((stop - start) // size * 8), np.uint64) >> np.uint64(63)
                edges = np.flatnonzero(np.diff(here.astype(np.int8), prepend=0, append=0))
                found += [(start + int(a) * size, start + int(b) * size) for a, b in edges.reshape(-1, 2)]
    except OSError:
        return []
    return found


def touch_pages(start: int, stop: int) -> None:
    """Reads a byte of each page."""
    bytes_ = np.ctypeslib.as_array((ctypes.c_ubyte * (stop - start)).from_address(start))
    bytes_[:: os.sysconf("SC_PAGE_SIZE")].max()


def _become(target: str, argument: Any, result: pathlib.Path, said: int) -> None:
    """Turns this fork into the process of a job; does not return."""
    code = child.FAILED
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what the job prints is dropped
        os.dup2(said, 2)
        child.end_with_asker()
        from engine.host import import_tensorflow

        import_tensorflow()  # starts the runtime
        code = child.perform(target, argument, result)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
