"""Starts Python programs for tests: each is forked from a process that has imported TensorFlow, which takes most of a start.

Nothing of TensorFlow's runtime has begun there, so that a fork is as fresh as a new process. What a start itself does (the
time it takes, what it imports) is tested in processes of its own, in test_cli.py and test_wheel.py.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]

SERVER = """
import json, os, runpy, sys, traceback
from engine.host import import_tensorflow

import_tensorflow(start=False)

def become(words, environment, files):
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    how, what, *flags = words
    sys.argv = [what if how == "-m" else how, *flags]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})

for line in sys.stdin:
    process = os.fork()
    if not process:
        code = 1
        try:
            become(*json.loads(line))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Programs:
    """Runs ``python -m MODULE FLAGS`` or ``python -c CODE ARGUMENTS``; the process that forks them starts at the first run."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, words: Sequence[str], *, given: str = "", seconds: int = 300) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end; raises TimeoutExpired after so many seconds."""
        if self._server is None:
            command = [sys.executable, "-c", SERVER]
            self._server = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            for file, text in zip(files, (given, "", ""), strict=True):
                file.write_text(text, encoding="utf-8")
            print(
                json.dumps([list(words), dict(os.environ), list(map(str, files))]), file=self._server.stdin, flush=True
            )
            if not select.select([self._server.stdout], [], [], seconds)[0]:
                self.close()
                raise subprocess.TimeoutExpired(list(words), seconds, *(f.read_bytes() for f in files[1:]))
            code = int(self._server.stdout.readline())
            out, err = (file.read_text(encoding="utf-8") for file in files[1:])
        return subprocess.CompletedProcess(list(words), code, out, err)

    def close(self) -> None:
        """Ends the process that forks, and a program that still runs."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate()
            self._server = None
