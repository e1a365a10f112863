"""A campaign: the cases of several kinds, their results in a file that a later call goes on with, and the table."""

from __future__ import annotations

import importlib
import json
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from engine.errors import InputError
from engine.text import nearest, table

from . import outcomes, pool
from .outcomes import Case, Result

KINDS = ("files", "kills", "disk", "graphs", "locks", "long")
STATE = "results.jsonl"
# How many damaged files are worth one case of another kind, where files are among the kinds.
FILES_PER_CASE = {"files": 1, "kills": 133, "disk": 133, "graphs": 200, "locks": 2500, "long": 200}


class Kind(Protocol):
    """One kind of cases. ``prepare`` is called once before the first ``perform``, which is called in children."""

    @property
    def limits(self) -> pool.Limits: ...

    @property
    def each(self) -> int: ...

    def list_cases(self, count: int, seed: int) -> list[Case]: ...

    def prepare(self) -> None: ...

    def perform(self, case: Case) -> Result: ...


def make_kind(name: str, folder: pathlib.Path) -> Kind:
    """The kind of this name, which works in a folder of its own."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f".{name}", __package__)
    kind: Kind = getattr(module, name.capitalize())(place)
    return kind


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises InputError if a kind is unknown."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"kinds={kind!r}: expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")


def count_cases(kinds: Sequence[str], kind: str, cases: int) -> int:
    """The number of cases of a kind: ``cases``, but among others beside files its share of them."""
    return max(1, cases // FILES_PER_CASE[kind]) if "files" in kinds else cases


def find_case(kinds: Sequence[str], only: str) -> Case:
    """The case of a repro: GROUP:SEED:INDEX of the only kind; raises InputError if it is not one."""
    group, _, rest = only.partition(":")
    numbers = rest.split(":")
    if len(kinds) != 1 or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise InputError(f"only={only!r}: expected one kind and GROUP:SEED:INDEX, such as --kinds=files --only=npz:0:3")
    return Case(kinds[0], group, int(numbers[0]), int(numbers[1]))


def read_results(folder: pathlib.Path) -> dict[tuple[str, str], Result]:
    """The results of an earlier call by (kind, case); a half line at the end, of a killed campaign, is left out."""
    found = {}
    file = folder / STATE
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.kind, result.name] = result
    return found


def run_campaign(
    kinds: Iterable[tuple[str, Kind, Sequence[Case]]],
    folder: pathlib.Path,
    *,
    say: Callable[[str], None],
    limits: pool.Limits | None = None,
    workers: int = 2,
) -> list[Result]:
    """Performs the cases that have no result in ``folder`` yet, and returns the results of all."""
    results = read_results(folder)
    found: list[Result] = []
    with open(folder / STATE, "a", encoding="utf-8") as state:
        state.write("\n")  # a half line of a killed campaign must not swallow the next one
        for name, kind, cases in kinds:
            left = [case for case in cases if (name, case.name) not in results]
            say(f"{name}: {len(cases):,} cases, {len(cases) - len(left):,} done before")
            if left:
                kind.prepare()
            progress = _Progress(name, len(left), say)

            def report(result: Result, progress: Any = progress) -> None:
                state.write(json.dumps(result.to_json()) + "\n")
                state.flush()
                results[result.kind, result.name] = result
                if result.failed:
                    case = Case(result.kind, result.group, *map(int, result.name.rsplit(":", 2)[1:]))
                    say(f"FAILED {result.outcome}: {result.detail}\n  {case.repro}")
                progress.step()

            pool.run_cases(
                left, kind.perform, limits=limits or kind.limits, report=report, workers=workers, each=kind.each
            )
            found += [results[name, case.name] for case in cases]
    return found


def summarise(results: Sequence[Result]) -> str:
    """The table of counts by kind, group and outcome, and the failures."""
    counts = Counter((result.kind, result.group, result.outcome) for result in results)
    columns = [each for each in (*outcomes.FINE, *outcomes.FAILURES) if any(key[2] == each for key in counts)]
    head = ["kind", "format", "cases", *(name.upper() if name in outcomes.FAILURES else name for name in columns)]
    rows = [head]
    for kind, group in dict.fromkeys((kind, group) for kind, group, _ in counts):
        numbers = [counts[kind, group, name] for name in columns]
        rows.append([kind, group, f"{sum(numbers):,}", *(f"{number:,}" if number else "-" for number in numbers)])
    failed = sum(result.failed for result in results)
    return f"{table(rows, right=range(2, len(head)))}\n\n{len(results):,} cases, {failed:,} failed"


class _Progress:
    """Says every ten seconds how far a kind has come."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]) -> None:
        self._name, self._total, self._say = name, total, say
        self._done, self._start = 0, time.monotonic()
        self._shown = self._start

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown > 10:
            self._shown = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._say(f"{self._name}: {self._done:,} of {self._total:,}, about {left / 60:.0f} min left")
