"""What the kinds that run programs share: whole runs, to which those that were killed or held up are compared."""

from __future__ import annotations

import abc
import json
import pathlib
import random
import shutil
import time
from typing import Any

from . import outcomes, pool, programs
from .jobs import JOBS, Job, list_leftovers, port_words, reverse_words, write_inputs
from .outcomes import Case, Result, conclude
from .programs import Ended, run_program


class Runs(abc.ABC):
    """What these kinds share: whole runs, to which the others are compared."""

    limits = pool.Limits(seconds=400.0, bytes=6 << 30)
    each = 20
    groups: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.shared = folder.resolve(), folder.resolve() / "shared"
        self._whole: dict[str, Any] = {}

    def list_cases(self, count: int, seed: int) -> list[Case]:
        return [
            Case(type(self).__name__.lower(), self.groups[n % len(self.groups)], seed, n // len(self.groups))
            for n in range(count)
        ]

    def prepare(self) -> None:
        shutil.rmtree(self.shared, ignore_errors=True)
        self.shared.mkdir(parents=True)
        pool.in_child(lambda: write_inputs(self.shared))
        self._whole = pool.in_child(self._run_whole, seconds=3600)

    def _run_whole(self) -> dict[str, Any]:
        """Every job, never killed: its result, its seconds, and its calls that a kill can meet."""
        for name, make in (("ported", port_words), ("reversed", reverse_words)):
            place = self.shared / name
            place.mkdir()
            _expect(run_program("port_checkpoint", make(self.shared, place, "old"), log=self.shared / "log"), 0)
        found = {}
        for name in self.needed:
            job, place = JOBS[name], self.shared / "whole" / name
            place.mkdir(parents=True)
            old, held = None, 0
            if job.before is not None:
                job.before(self.shared, place)
                old, held = job.result(place), _count_bytes(place)
            since, counts = time.monotonic(), self.shared / f"{name}.calls"
            words = job.words(self.shared, place)
            _expect(run_program(job.program, words, inside=programs.count_calls(counts), log=self.shared / "log"), 0)
            found[name] = {
                "seconds": time.monotonic() - since,
                "result": job.result(place),
                "old": old,
                "calls": json.loads(counts.read_text(encoding="utf-8")),
                "old_bytes": held,
                "bytes": _count_bytes(place),
            }
            if list_leftovers(place):
                raise RuntimeError(f"{name}: a run that nothing killed leaves {list_leftovers(place)}")
        return found

    def perform(self, case: Case) -> Result:
        place = self.folder / case.name.replace(":", "-")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            outcome, detail = self._perform(case, place, random.Random(f"{case.group}:{case.seed}:{case.index}"))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return conclude(case, outcome, detail)

    @abc.abstractmethod
    def _perform(self, case: Case, place: pathlib.Path, rng: random.Random) -> tuple[str, str]:
        """The outcome of a case, and a sentence about it."""

    def _run(self, job: Job, place: pathlib.Path, *more: str, **how: Any) -> Ended:
        words = [*job.words(self.shared, place), *more]
        how.setdefault("seconds", job.seconds)
        return run_program(job.program, words, log=self.folder / f"{place.name}.log", **how)

    def _compare(self, name: str, place: pathlib.Path, what: str) -> tuple[str, str]:
        """The outcome of a job that has been run to its end at last."""
        found = json.loads(json.dumps(JOBS[name].result(place)))
        if found != self._whole[name]["result"]:
            return outcomes.DIFFERS, f"{what}; {_first_difference(self._whole[name]['result'], found)}"
        if left := list_leftovers(place):
            return outcomes.LEFTOVERS, f"{what}; {len(left)} left, such as {left[0]}"
        return outcomes.EXACT, what

    def _lost(self, name: str, place: pathlib.Path) -> str | None:
        """What of the older results a job that did not end has damaged; None if they are whole, or the new ones are."""
        if (old := self._whole[name]["old"]) is None:
            return None
        try:
            found = json.loads(json.dumps(JOBS[name].result(place)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if found in (old, self._whole[name]["result"]) else "neither the old values nor the new ones"


def _count_bytes(folder: pathlib.Path) -> int:
    """The bytes of all files in a folder, in the blocks of 4 KiB that a disk gives."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _expect(ended: Ended, code: int) -> None:
    if ended.code != code:
        raise RuntimeError(f"exit code {ended.code}: {ended.said[-300:]}")


def _first_difference(one: Any, other: Any, path: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if one[key] != other[key])
        return _first_difference(one[key], other[key], f"{path}/{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        number = next(number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        return _first_difference(one[number], other[number], f"{path}/{number}")
    if isinstance(one, dict) and isinstance(other, dict):
        return f"{path}: only in one of both: {sorted(one.keys() ^ other.keys())}"
    return f"{path}: {str(one)[:60]} and {str(other)[:60]}"
