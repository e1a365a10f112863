"""The kind "locks": two runs in one folder, the lock of a dead process, and links that were planted in a cache."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import time
from collections.abc import Callable

from . import outcomes, programs
from .jobs import JOBS, Job
from .outcomes import Case
from .programs import run_program
from .runs import Runs


class Locks(Runs):
    """Two runs in one folder, the lock of a dead process, and links that were planted in a cache."""

    groups = ("two-runs", "dead-lock", "planted-link", "two-caches")
    needed = ("finetune", "cache")

    def _perform(self, case: Case, place: pathlib.Path, rng: random.Random) -> tuple[str, str]:
        return getattr(self, f"_{case.group.replace('-', '_')}")(place)

    def _held(self, job: Job, place: pathlib.Path) -> tuple[int, Callable[[], object], pathlib.Path]:
        """Starts a job that stops at its first file: its process, a function that lets it go on, and its log."""
        reached, go_on, log = (self.folder / f"{place.name}.{each}" for each in ("reached", "go", "first"))
        for path in (reached, go_on):
            path.unlink(missing_ok=True)
        inside = programs.hold_at_first_replace(reached, go_on)
        process = programs.start_program(job.program, job.words(self.shared, place), inside=inside, log=log)
        deadline = time.monotonic() + 60
        while not reached.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return process, go_on.touch, log

    def _two_runs(self, place: pathlib.Path) -> tuple[str, str]:
        job = JOBS["finetune"]
        process, go_on, log = self._held(job, place)
        second = self._run(job, place, "--resume")
        go_on()
        first = programs.wait_for(process, log, seconds=120)
        if second.code != 2:
            return outcomes.ACCEPTED, f"a second run in one folder ended with exit code {second.code}"
        if str(process) not in second.said:
            return outcomes.ACCEPTED, f"the refusal does not name the process: {second.said[-200:]}"
        if first.code:
            return outcomes.CRASH, f"the first run: exit code {first.code}: {first.said[-200:]}"
        return self._compare("finetune", place, "the second run was refused")

    def _dead_lock(self, place: pathlib.Path) -> tuple[str, str]:
        job = JOBS["finetune"]
        process, _, log = self._held(job, place)
        os.kill(process, signal.SIGKILL)
        programs.wait_for(process, log)
        ended = self._run(job, place, "--resume")
        if ended.code:
            return outcomes.CRASH, f"after the lock's process had died: {ended.said[-200:]}"
        return self._compare("finetune", place, "the lock of a dead process was taken over")

    def _planted_link(self, place: pathlib.Path) -> tuple[str, str]:
        """Links named as the cache's own files, in this run's cache and in one that is to be evicted."""
        precious = place / "precious"
        precious.write_text("precious", encoding="utf-8")
        keys = [path.name for path in (self.shared / "whole/cache/cache").iterdir() if path.is_dir()]
        for folder in (*keys, "0" * 32):
            (place / "cache" / folder).mkdir(parents=True)
            for name in ("in_use", "manifest.json", "shard-000000"):
                (place / "cache" / folder / name).symlink_to(precious)
        ended = self._run(JOBS["cache"], place, "--cache_budget=2MB")
        if not precious.exists() or precious.read_text(encoding="utf-8") != "precious":
            return outcomes.LOST, "a file outside the cache was changed through a planted link"
        if ended.code not in (0, 1, 2) or "Traceback" in ended.said:  # 1: the cache cannot be used, as on a full disk
            return outcomes.CRASH, f"exit code {ended.code}: {ended.said[-200:]}"
        return outcomes.REFUSED if ended.code else outcomes.EXACT, f"exit code {ended.code}"

    def _two_caches(self, place: pathlib.Path) -> tuple[str, str]:
        """Two runs that share a cache, at the same time; both must end as one alone."""
        job, other = JOBS["cache"], place / "other"
        other.mkdir()
        process, go_on, log = self._held(job, place)
        words = [word.replace(f"--out={place}/out", f"--out={other}/out") for word in job.words(self.shared, place)]
        second = run_program(job.program, words, log=self.folder / f"{place.name}.log", seconds=120)
        go_on()
        first = programs.wait_for(process, log, seconds=120)
        for ended in (first, second):
            if ended.code:
                return outcomes.CRASH, f"exit code {ended.code}: {ended.said[-200:]}"
        outcome = self._compare("cache", other, "the second of two runs with one cache")
        return self._compare("cache", place, "two runs with one cache") if outcome[0] == outcomes.EXACT else outcome
