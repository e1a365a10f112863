"""What a case of the campaign is, and how it can end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# How a case may end well ...
CLEAN, SAME, OTHER = "clean error", "same values", "other values"
EXACT, REFUSED, STOPPED, FLAT, SKIPPED = "exact", "refused", "stopped by a limit", "flat", "skipped"
# ... and how it may not.
WRONG, MISSING, CRASH = "wrong values", "missing entries", "traceback"
HANG, ABORT, MEMORY = "hang", "abort", "over memory"
DIFFERS, LEFTOVERS, LOST, GROWS, ACCEPTED = "bits differ", "leftovers", "old files lost", "grows", "accepted"
FINE = (CLEAN, SAME, OTHER, EXACT, REFUSED, STOPPED, FLAT, SKIPPED)
FAILURES = (WRONG, MISSING, CRASH, HANG, ABORT, MEMORY, DIFFERS, LEFTOVERS, LOST, GROWS, ACCEPTED)


@dataclass(frozen=True)
class Case:
    """One case. ``group`` is the format or program, ``index`` and ``seed`` decide everything that is random."""

    kind: str
    group: str
    seed: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.group}:{self.seed}:{self.index}"

    @property
    def repro(self) -> str:
        """The command that repeats this case alone."""
        return f"python -m scripts.endure --kinds={self.kind} --only={self.name}"


@dataclass(frozen=True)
class Result:
    """How a case ended; ``detail`` says what was done and what came of it."""

    kind: str
    group: str
    name: str
    outcome: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome not in FINE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def conclude(case: Case, outcome: str, detail: str = "") -> Result:
    """The result of a case; the detail is cut to one line."""
    return Result(case.kind, case.group, case.name, outcome, " ".join(detail.split())[:300])


def sums(values: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """A digest of each array (its dtype, shape and bytes) or bytes, by name."""
    found = {}
    for name, value in values:
        array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value)
        head = f"{array.dtype.str} {array.shape} ".encode()
        found[name] = hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return found


def judge(expected: Mapping[str, str], found: Mapping[str, str], *, checksums: bool) -> tuple[str, str]:
    """How an accepted damaged file counts: (outcome, what differs)."""
    if found == expected:
        return SAME, ""
    lost = [name for name in expected if name not in found]
    if len(found) < len(expected):
        return MISSING, f"{len(found)} of {len(expected)} entries; without {', '.join(lost[:3])}"
    differing = lost or [name for name in expected if found[name] != expected[name]]
    return (WRONG if checksums else OTHER), f"{len(differing)} of {len(expected)} differ, first {differing[:1]}"
