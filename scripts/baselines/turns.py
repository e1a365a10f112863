"""Runs several runners in turn, each in a process of its own, so that all of them see the same machine.

A runner that fails, dies or does not answer in time is stopped and named; the others go on. No process outlives the
``with`` block of its runner, nor the program if that is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from engine.study import child


class RunnerError(Exception):
    """A runner that cannot go on. The message says why; ``missing`` names the module that is not installed, if it is that."""

    def __init__(self, reason: str, *, missing: str | None = None) -> None:
        super().__init__(reason)
        self.missing = missing


class Process:
    """A runner in a process of its own, which does what it is asked to (scripts.baselines.stepper).

    Args:
        target: the runner, as ``module:name`` of a callable that takes the job.
        job: a dataclass whose fields are JSON values.
        tensorflow: whether the process imports TensorFlow first.
        environment: variables that its environment has in addition.
        patience: the seconds after which an answer is no longer waited for.
    """

    def __init__(
        self, target: str, job: Any, *, tensorflow: bool, environment: Mapping[str, str], patience: float
    ) -> None:
        self._patience, self._rest = patience, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.stepper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"KERAS_BACKEND": "tensorflow"} | dict(environment),
            start_new_session=True,  # a compiler that it runs ends with it, and a terminal's signals come to us alone
        )
        kind = f"{type(job).__module__}:{type(job).__qualname__}"
        asked = {"target": target, "kind": kind, "job": dataclasses.asdict(job), "tensorflow": tensorflow}
        self._send(json.dumps(asked))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def ask(self, word: str) -> dict[str, Any]:
        """Asks for something and waits for the answer; RunnerError where none comes."""
        self._send(word)
        return self.wait()

    def wait(self) -> dict[str, Any]:
        """The next answer, which the first request gets as soon as the runner is built; RunnerError where none comes."""
        line = self._read_line()
        if line is None:
            raise RunnerError(f"no answer within {self._patience:g} s; it was stopped")
        if not line:
            raise RunnerError(self._why_it_ended())
        found: dict[str, Any] = json.loads(line)
        if (name := found.get("missing")) is not None:
            raise RunnerError(f"{name} is not installed", missing=name)
        if "error" in found:
            raise RunnerError(found["error"])
        return found

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; waiting for its answer says why
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _read_line(self) -> bytes | None:
        """The next line; empty where the process has ended without one, None where it takes too long."""
        assert self._process.stdout is not None
        number, end = self._process.stdout.fileno(), time.monotonic() + self._patience
        while b"\n" not in self._rest:
            if not select.select([number], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            more = os.read(number, 1 << 16)
            if not more:
                return b""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        try:
            child.check_exit(code or child.FAILED, self._errors.read().decode(errors="replace"))
        except child.ChildError as error:
            return str(error)
        raise AssertionError  # an exit code that is not 0 is always an error


@dataclass
class Participant:
    """A runner that takes its turns, and what was measured of it.

    Attributes:
        runner, precision: its name and its numbers.
        start: starts its process.
        required: whether the program fails if this runner cannot begin; others may not be installed.
        steps: one entry for each timed round: "seconds" and "cpu_seconds", or None where it took no part; ``last`` is that of
            the last round of all.
        first_loss, facts, cost, peak_rss_bytes: what it said; None until it has.
        failed: why it takes no part any more; ``unavailable`` if it never took part.
    """

    runner: str
    precision: str
    start: Callable[[], Process]
    required: bool = False
    steps: list[dict[str, float] | None] = field(default_factory=list)
    last: dict[str, float] | None = None
    first_loss: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    cost: float | None = None
    peak_rss_bytes: int | None = None
    failed: str | None = None
    unavailable: bool = False
    process: Process | None = None

    @property
    def name(self) -> str:
        return f"{self.runner} {self.precision}"

    def fail(self, reason: str, *, say: Callable[[str], None]) -> None:
        """Ends its part, and says why."""
        self.failed = reason
        self.unavailable = self.first_loss is None and not self.required
        if self.process is not None:
            self.process.close()
        say(f"  {self.name}: {'not available' if self.unavailable else 'FAILED'}: {reason}")

    def step(self) -> dict[str, Any]:
        assert self.process is not None
        found = self.process.ask("step")
        self.peak_rss_bytes = found["peak_rss_bytes"]
        if self.first_loss is None:
            self.first_loss = found["loss"]
        return found


def take_turns(
    participants: Sequence[Participant],
    *,
    warmup: int,
    rounds: int,
    check: Callable[[], None],
    after: Callable[[int], None],
    say: Callable[[str], None],
    cost: bool = True,
) -> None:
    """Steps all runners in turn, in rounds whose order is reversed after each.

    Args:
        warmup, rounds: the rounds that are not timed, at least 1, and those that are.
        check: called after the first round, when every runner has its facts; it may make some of them fail.
        after: called after each round with the number of timed rounds so far; it is 0 or less after those that are not.
        say: called with a line about each runner that ends early.
        cost: whether the engine is asked for the products of a step at the end.
    """
    with contextlib.ExitStack() as running:
        for one in participants:
            one.process = running.enter_context(one.start())
        _each(participants, lambda one: _process(one).wait(), say)
        for number in range(warmup + rounds):
            found: dict[int, dict[str, float]] = {}

            def step(one: Participant, found: dict[int, dict[str, float]] = found) -> None:
                said = one.step()
                found[id(one)] = {name: said[name] for name in ("seconds", "cpu_seconds")}

            _each(participants if number % 2 == 0 else participants[::-1], step, say)
            if number == 0:
                _each(participants, _ask_facts, say)
                check()
            for one in participants:
                one.last = found.get(id(one))
                if number >= warmup:
                    one.steps.append(one.last)
            after(number - warmup + 1)
            if all(one.failed is not None for one in participants):
                return
        if cost:
            _each([one for one in participants if one.runner == "engine"], _ask_cost, say)


def _each(
    participants: Sequence[Participant], act: Callable[[Participant], object], say: Callable[[str], None]
) -> None:
    """Does something with each runner that still takes part; one that cannot any more ends its part."""
    for one in participants:
        if one.failed is None:
            try:
                act(one)
            except RunnerError as error:
                one.fail(str(error), say=say)


def _process(one: Participant) -> Process:
    assert one.process is not None
    return one.process


def _ask_facts(one: Participant) -> None:
    one.facts = _process(one).ask("facts")


def _ask_cost(one: Participant) -> None:
    one.cost = _process(one).ask("cost")["gflop"]
