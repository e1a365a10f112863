"""The processes in which benchmark_freezing runs: each is forked from one that has imported everything, and done nothing.

Importing TensorFlow takes as long as a short run. It starts no thread, and nothing of its runtime begins before the
first operation: a fork of a process that has only imported is as fresh as a new one. Of its memory one part is missing:
Linux does not map the libraries' pages again until they are used, so a fork touches those that imports had touched, and
its peak is what a process of its own would have needed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import Any

import numpy as np

from scripts import cli


class Server:
    """The process that forks, as its user sees it. It begins to import as soon as this is made.

    Ends with this process, whatever ends it, and so does the run it is at.
    """

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def do(self, what: str, given: str) -> str:
        """Does one thing in a process of its own, to its end; "" or how it failed: its last lines.

        Args:
            what: "run", one of ``given``, the text of a Run; "machine", of a study in the folder ``given``.

        Raises:
            OSError: the disk is full.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        try:
            print(json.dumps([what, given]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            self._errors.seek(0)
            return f"the process that starts runs has ended: {_last_lines(self._errors.read())}"
        code, said = json.loads(answer)
        if not code:
            return ""
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = _last_lines(said)
        if code < 0:
            name = signal.Signals(-code).name
            why = ", as by a system out of memory; a smaller --batch_size needs less" if name == "SIGKILL" else ""
            return f"killed by {name}{why}" + (f" ({said})" if said else "")
        return said or f"exit code {code}"


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()][-3:]
    return "; ".join(line for line in lines if not line.startswith("(--traceback"))


def serve() -> None:
    """Does what each line of standard input asks for, one after the other, and answers each: exit code, what it said."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: this ends when the process that asks does
    cli.import_tensorflow(start=False)
    from scripts import benchmark_freezing_v1, benchmark_freezing_worker  # noqa: F401

    pages = _library_pages()
    for line in sys.stdin:
        what, given = json.loads(line)
        with tempfile.TemporaryFile() as said:
            process = os.fork()
            if not process:
                for start, stop in pages:
                    _touch(start, stop)
                _be(what, given, said.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            said.seek(0)
            print(json.dumps([code, said.read().decode(errors="replace")]), flush=True)


def _library_pages() -> list[tuple[int, int]]:
    """Addresses, from and to, of what is mapped from files and in memory; none on a system that does not tell."""
    found = []
    size = os.sysconf("SC_PAGE_SIZE")
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
                map_.seek(start // size * 8)  # a word of 64 bits for each page; the highest: it is in memory
                here = np.frombuffer(map_.read((stop - start) // size * 8), np.uint64) >> np.uint64(63)
                edges = np.flatnonzero(np.diff(here.astype(np.int8), prepend=0, append=0))
                found += [(start + int(a) * size, start + int(b) * size) for a, b in edges.reshape(-1, 2)]
    except OSError:
        return []
    return found


def _touch(start: int, stop: int) -> None:
    """Reads a byte of each page."""
    bytes_ = np.ctypeslib.as_array((ctypes.c_ubyte * (stop - start)).from_address(start))
    bytes_[:: os.sysconf("SC_PAGE_SIZE")].max()


def _be(what: str, given: str, said: int) -> None:
    """Becomes the process of one thing; does not return."""
    code = cli.FAILED
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # it says nothing but why it failed
        os.dup2(said, 2)
        threading.Thread(target=_end_with_the_asking, daemon=True).start()
        code = cli.answer("benchmark_freezing", lambda: _work(what, given))
    finally:
        sys.stderr.flush()
        os._exit(code)


def _work(what: str, given: str) -> int:
    from scripts import benchmark_freezing_worker as worker
    from scripts.benchmark_freezing_job import Run

    if what == "machine":
        worker.machine(pathlib.Path(given))
    else:
        worker.work(Run(**json.loads(given)))
    return cli.DONE


def _end_with_the_asking() -> None:
    """Ends this process when the one that asked is gone: a run nobody waits for would slow the next study."""
    asking: Any = select.poll()
    asking.register(0, 0)  # nothing but that the other end is closed
    asking.poll()
    os._exit(cli.FAILED)


if __name__ == "__main__":
    serve()
