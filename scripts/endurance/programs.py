"""Runs this project's programs in forked children, where one may be killed, held up or given a full disk."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

WATCHED = ("replace", "unlink", "fsync")  # the calls of ``os`` at which a run is killed
_PACKAGE = __package__.rsplit(".", 1)[0] if __package__ else "scripts"


class Ended(NamedTuple):
    """How a program ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    said: str


def run_program(
    name: str,
    words: Sequence[str],
    *,
    inside: Callable[[], object] = lambda: None,
    seconds: float | None = None,
    log: pathlib.Path,
) -> Ended:
    """Runs a program to its end, or kills it after so many seconds.

    ``inside`` is called in the child before the program; TensorFlow must not have been started in this process.
    """
    process = start_program(name, words, inside=inside, log=log)
    return wait_for(process, log, seconds=seconds)


def start_program(name: str, words: Sequence[str], *, inside: Callable[[], object], log: pathlib.Path) -> int:
    """Starts a program in a child and returns its process id."""
    log.unlink(missing_ok=True)
    process = os.fork()
    if not process:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = _be_program(name, words, inside)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process


def wait_for(process: int, log: pathlib.Path, *, seconds: float | None = None) -> Ended:
    """Waits until a program has ended, or kills it after so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            return Ended(os.waitstatus_to_exitcode(status), said)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(process, signal.SIGKILL)
            deadline = None
        time.sleep(0.005)


def _be_program(name: str, words: Sequence[str], inside: Callable[[], object]) -> int:
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):  # programs share names of flags
        if (
            (module.startswith(_PACKAGE) and module != f"{_PACKAGE}.cli")
            or module == "__main__"
            or module == sys.argv[0]
        ):
            for flag in list(defined):
                delattr(flags.FLAGS, flag.name)
    sys.argv = [name, *words]
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    cli = importlib.import_module(f"{_PACKAGE}.cli")
    program = importlib.import_module(f"{_PACKAGE}.{name}")
    flags.FLAGS.unparse_flags()
    _leave_out_pictures()
    inside()
    return cli._run(program.main, program.__doc__ or "", program.__name__)


def _leave_out_pictures() -> None:
    """Pictures take half the time of a short run, and no resume reads them."""
    from engine.runs import picture, records

    records.draw_curves = lambda *_: None
    picture.draw = lambda *_: None


def count_calls(into: pathlib.Path) -> Callable[[], None]:
    """For ``inside``: writes how often the program made each of the calls ``WATCHED``, after each of them."""

    def begin() -> None:
        counts = dict.fromkeys(WATCHED, 0)
        original = os.write, os.open

        def count(name: str) -> None:
            counts[name] += 1
            number = original[1](into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            original[0](number, json.dumps(counts).encode())
            os.close(number)

        for name in WATCHED:
            _wrap(name, after=lambda name=name: count(name))  # type: ignore[misc]

    return begin


def kill_at(name: str, number: int, *, before: bool) -> Callable[[], None]:
    """For ``inside``: SIGKILL before or after the program's call of this number (from 0) of ``os.NAME``."""

    def begin() -> None:
        calls = [0]

        def die(now: bool) -> None:
            if now and calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def after() -> None:
            die(not before)
            calls[0] += 1

        _wrap(name, before=lambda: die(before), after=after)

    return begin


def hold_at_first_replace(reached: pathlib.Path, go_on: pathlib.Path) -> Callable[[], None]:
    """For ``inside``: the program waits at its first ``os.replace``, after making ``reached``, until ``go_on`` exists."""

    def begin() -> None:
        def wait() -> None:
            if not reached.exists():
                reached.touch()
                while not go_on.exists():
                    time.sleep(0.02)

        _wrap("replace", after=wait)

    return begin


def _wrap(name: str, *, before: Callable[[], object] = lambda: None, after: Callable[[], object]) -> None:
    original = getattr(os, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        found = original(*arguments, **named)
        after()
        return found

    setattr(os, name, wrapped)
