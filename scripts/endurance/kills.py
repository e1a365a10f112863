"""The kind "kills": SIGKILL at a random moment or at a call that changes a file, and a resume that must change no bit."""

from __future__ import annotations

import pathlib
import random
import signal
from typing import Any

from . import outcomes, programs
from .jobs import JOBS
from .outcomes import Case
from .runs import Runs

_KILLED = -signal.SIGKILL


class Kills(Runs):
    """SIGKILL at a random moment, or before or after a call of os.replace, os.unlink or os.fsync; then a resume."""

    groups = (
        "finetune",
        "finetune-replace",
        "finetune-fsync",
        "finetune-unlink",
        "finetune",
        "cache",
        "finetune-replace",
        "port",
        "finetune",
        "reverse",
        "finetune-fsync",
        "study",
    )
    needed = ("finetune", "cache", "port", "reverse", "study")

    def list_cases(self, count: int, seed: int) -> list[Case]:
        seen: dict[str, int] = {}
        cases = []
        for number in range(count):
            group = self.groups[number % len(self.groups)]
            cases.append(Case("kills", group, seed, seen.setdefault(group, 0)))
            seen[group] += 1
        return cases

    def _perform(self, case: Case, place: pathlib.Path, rng: random.Random) -> tuple[str, str]:
        name, _, call = case.group.partition("-")
        job, whole = JOBS[name], self._whole[name]
        if job.before is not None:
            job.before(self.shared, place)
        done = []
        for _ in range(rng.choice([1, 1, 2])):
            if not call and name != "finetune" and name != "study" and rng.random() < 0.7:
                call = rng.choice([each for each in programs.WATCHED if whole["calls"][each]])
            if call:
                number, before = rng.randrange(max(1, whole["calls"][call])), rng.random() < 0.5
                done.append(f"{'before' if before else 'after'} {call} {number}")
                how: dict[str, Any] = {"inside": programs.kill_at(call, number, before=before)}
            else:
                after = rng.uniform(0.0, whole["seconds"])
                done.append(f"after {after:.2f} s")
                how = {"seconds": after}
            ended = self._run(job, place, *job.resume, **how)
            if ended.code not in (_KILLED, 0):
                return outcomes.CRASH, f"killed {', '.join(done)}: exit code {ended.code}: {ended.said[-200:]}"
            if ended.code == _KILLED and (lost := self._lost(name, place)) is not None:
                return outcomes.LOST, f"killed {', '.join(done)}: {lost}"
        what = f"killed {', '.join(done)}"
        ended = self._run(job, place, *job.resume)
        if ended.code:
            return outcomes.CRASH, f"{what}; the resume: exit code {ended.code}: {ended.said[-200:]}"
        return self._compare(name, place, what)
