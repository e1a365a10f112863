"""The kind "disk": programs on a disk that is full."""

from __future__ import annotations

import ctypes
import pathlib
import random
import resource
import subprocess

from . import outcomes
from .jobs import JOBS
from .outcomes import Case
from .runs import Runs

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of unshare(2)


class Disk(Runs):
    """A disk that is full after so many bytes; then a resume with room enough.

    The disk is a tmpfs where this process may mount one. Elsewhere only the size of each single file is limited.
    """

    groups = ("finetune", "cache", "port", "reverse")
    needed = groups
    sizes = 30  # per group; further cases draw others

    def _perform(self, case: Case, place: pathlib.Path, rng: random.Random) -> tuple[str, str]:
        whole = self._whole[case.group]
        share = (case.index + 1) / (self.sizes + 1) if case.index < self.sizes else rng.random()
        size = whole["old_bytes"] + int(whole["bytes"] * share)
        mounted = _mount(place, size)
        try:
            return self._fill(case, place, size, mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(place)], check=False)

    def _fill(self, case: Case, place: pathlib.Path, size: int, mounted: bool) -> tuple[str, str]:
        job = JOBS[case.group]
        try:
            if job.before is not None:
                job.before(self.shared, place)
        except OSError:
            return outcomes.SKIPPED, f"{size} bytes hold not even the old files"
        how = {} if mounted else {"inside": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
        ended = self._run(job, place, *job.resume, **how)
        what = f"{size} bytes, {'on a full disk' if mounted else 'for each file'}: exit code {ended.code}"
        if ended.code not in (0, 1, 2) or "Traceback" in ended.said:
            return outcomes.CRASH, f"{what}: {ended.said[-200:]}"
        if ended.code and (lost := self._lost(case.group, place)) is not None:
            return outcomes.LOST, f"{what}: {lost}"
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        ended = self._run(job, place, *job.resume)
        if ended.code:
            return outcomes.CRASH, f"{what}; then with room: exit code {ended.code}: {ended.said[-200:]}"
        return self._compare(case.group, place, what)


def _mount(folder: pathlib.Path, size: int) -> bool:
    """Whether a small disk could be mounted there; it is seen by this process alone, and goes with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        return False
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    private = subprocess.run(["mount", "--make-rprivate", "/"], check=False, **quiet)  # type: ignore[call-overload]
    words = ["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "none", str(folder)]
    return private.returncode == 0 and subprocess.run(words, check=False, **quiet).returncode == 0  # type: ignore[call-overload]
