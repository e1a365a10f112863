"""Kills a process at one of the calls by which files come into being: the n-th, and then it is as if the power were cut."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

CALLS = ("open", "mkdir", "replace", "rename", "link", "unlink", "rmdir", "fsync", "ftruncate")


def die_at(number: int, *, calls: Sequence[str] = CALLS, inside: str = "") -> None:
    """From now on, SIGKILL ends this process instead of its n-th call (from 0) of a kind, after which it would be done.

    ``inside`` restricts the calls to those with a path that contains this text, or with an open file.
    """
    count = 0

    def hook(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            nonlocal count
            if isinstance(args[0], int) or inside in os.fspath(args[0]):
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return real(*args, **given)

        return call

    for name in calls:
        setattr(os, name, hook(getattr(os, name)))
    if "open" in calls:
        io.open = builtins.open = hook(builtins.open)  # type: ignore[assignment]


def kill_at_each(
    prepare: Callable[[int], Any],
    act: Callable[[Any], object],
    *,
    calls: Sequence[str] = CALLS,
    inside: str = "",
    most: int = 500,
) -> int:
    """Does something again and again, in a process of its own, which is killed at its 1st, 2nd, 3rd ... call.

    ``prepare`` returns, for each kill, what ``act`` is given. Returns the number of kills, after which ``act`` ended.
    """
    for number in range(most):
        given = prepare(number)
        process = os.fork()
        if not process:
            code = 1
            try:
                die_at(number, calls=calls, inside=inside)
                act(given)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            return number
        if code != -signal.SIGKILL:
            raise AssertionError(f"kill {number}: exit code {code}")
    raise AssertionError(f"it did not end within {most} calls")
