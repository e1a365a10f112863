"""A job in its own process: a function by name with an argument as JSON, and its result or its failure in return.

The process is new (``run_job``) or forked from one that has imported everything already (``engine.study.server``). This
module imports no framework, so that a process that measures another framework's memory holds nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from engine.errors import InputError
from engine.writing import NoSpaceError, is_full

DONE, FAILED, BAD_INPUT = 0, 1, 2  # exit codes
_HEADROOM = 1 << 30  # bytes of addresses that threads reserve and do not use


class ChildError(Exception):
    """A job whose process failed; the message says why, ``bad_input`` whether it was an InputError."""

    def __init__(self, reason: str, *, bad_input: bool = False) -> None:
        super().__init__(reason)
        self.bad_input = bad_input


def run_job(
    target: str, argument: Any, *, show: bool = False, tensorflow: bool = True, memory: int | None = None
) -> Any:
    """Calls a function in a new process and returns what it returned.

    Args:
        target: the function, as ``module:name``; its argument and its result are values that JSON can hold.
        show: whether what the function prints appears on standard output. By default it is dropped.
        tensorflow: whether TensorFlow is imported and started before the function's module is imported.
        memory: the bytes that the function may take; the process may not have a larger address space than it needs for
            TensorFlow and these. None sets no limit.

    Raises:
        ChildError: the function raised, or its process was killed.
        NoSpaceError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="frostline-job-") as folder:
        result = pathlib.Path(folder) / "result.json"
        options = [*([] if tensorflow else ["--bare"]), *([] if memory is None else [f"--memory={memory}"])]
        done = subprocess.run(
            [sys.executable, "-m", __name__, target, os.fspath(result), *options],
            input=json.dumps(argument),
            stdout=None if show else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"KERAS_BACKEND": "tensorflow"},
            check=False,
        )
        check_exit(done.returncode, done.stderr)
        return json.loads(result.read_text(encoding="utf-8"))


def perform(target: str, argument: Any, result: pathlib.Path) -> int:
    """Does a job in this process and returns its exit code; writes the result into a file, or a sentence to stderr."""
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)(argument)
        result.write_text(json.dumps(found), encoding="utf-8")
    except InputError as error:
        code, reason = BAD_INPUT, str(error)
    except MemoryError:
        code, reason = FAILED, "out of memory; a smaller batch size needs less"
    except Exception as error:  # whatever it is, the caller gets a sentence
        code, reason = FAILED, f"{type(error).__name__}: {error}"
    else:
        return DONE
    print(reason, file=sys.stderr, flush=True)
    return code


def check_exit(code: int, said: str) -> None:
    """Raises a ChildError with the last lines of standard error unless the exit code is 0; NoSpaceError for a full disk."""
    if not code:
        return
    if (full := is_full(said)) is not None:
        raise NoSpaceError(full, last_lines(said))
    check = next((line for line in said.splitlines() if "Check failed" in line), "")  # a stack of addresses follows
    reason = check.partition("] ")[2].strip() or last_lines(said)
    if code < 0:
        name = signal.Signals(-code).name
        why = ", perhaps because the system ran out of memory; a smaller batch size needs less"
        reason = f"killed by {name}{why if name == 'SIGKILL' else ''}" + (f" ({reason})" if reason else "")
    raise ChildError(reason or f"exit code {code}", bad_input=code == BAD_INPUT)


def end_with_asker() -> None:
    """Ends this process as soon as the one that asks it is gone: an orphaned run would slow down all that follow.

    The process that asks holds the other end of standard input, a pipe.
    """

    def watch() -> None:
        asking: Any = select.poll()
        asking.register(0, 0)  # reports nothing but that the other end is closed
        asking.poll()
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


def last_lines(text: str) -> str:
    """The last three lines of a text, in one."""
    return "; ".join(line.strip() for line in text.strip().splitlines()[-3:])


def _limit_memory(more: int) -> None:
    """Lets this process take so many bytes more than it has, so that what asks for too many fails at once."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux
        return
    most = pages * resource.getpagesize() + more + _HEADROOM
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(words: list[str]) -> int:
    """Does the job that ``run_job`` asks of a new process; its argument is on standard input."""
    target, result, *options = words
    argument = json.load(sys.stdin)
    if "--bare" not in options:
        from engine.host import import_tensorflow

        import_tensorflow()
    for option in options:
        if option.startswith("--memory="):
            _limit_memory(int(option.removeprefix("--memory=")))
    return perform(target, argument, pathlib.Path(result))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
