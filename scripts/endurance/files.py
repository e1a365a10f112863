"""The kind "files": damaged files of every format, read as the programs read them."""

from __future__ import annotations

import pathlib
import random
import shutil
from collections.abc import Mapping

from . import formats_data, formats_graphs, formats_runs, formats_weights, outcomes, pool
from .formats import Format
from .outcomes import Case, Result, conclude, judge

ALL = (*formats_weights.FORMATS, *formats_data.FORMATS, *formats_graphs.FORMATS, *formats_runs.FORMATS)


class Files:
    """Damaged files; valid ones of all formats are written into ``folder`` first, by a child."""

    limits = pool.Limits()
    each = 100

    def __init__(self, folder: pathlib.Path, *, formats: Mapping[str, Format] | None = None) -> None:
        self.folder = folder
        self.formats = formats or {each.name: each for each in ALL}
        self._expected: dict[str, dict[str, str]] = {}

    def list_cases(self, count: int, seed: int) -> list[Case]:
        names = list(self.formats)
        return [Case("files", names[number % len(names)], seed, number // len(names)) for number in range(count)]

    def prepare(self) -> None:
        self._expected = pool.in_child(self._write_all)

    def _write_all(self) -> dict[str, dict[str, str]]:
        found = {}
        for name, each in self.formats.items():
            place = self.folder / "whole" / name
            if place.exists():
                shutil.rmtree(place)
            place.mkdir(parents=True)
            each.write(place)
            found[name] = dict(each.read(place))
            if not found[name] or each.read(place) != found[name]:
                raise RuntimeError(f"{name}: a valid file reads differently the second time, or holds nothing")
        return found

    def perform(self, case: Case) -> Result:
        kind = self.formats[case.group]
        rng = random.Random(f"{case.group}:{case.seed}:{case.index}")
        place = self.folder / "damaged" / case.name.replace(":", "-")
        shutil.copytree(self.folder / "whole" / case.group, place)
        try:
            file = rng.choice(sorted(path for path in place.glob(kind.damaged) if path.is_file()))
            damage = rng.choice(kind.choices())
            before = file.read_bytes()
            after = damage(before, rng)
            file.write_bytes(after)
            what = f"{damage.__name__} in {file.name}"
            checksums = kind.checksums and damage not in kind.forgeries
            result = pool.attempt(case, lambda case: self._read(case, kind, place, checksums=checksums))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if after == before:
            return conclude(case, outcomes.SAME, f"{what}: no byte changed")
        return conclude(case, result.outcome, f"{what}: {result.detail}")

    def _read(self, case: Case, kind: Format, place: pathlib.Path, *, checksums: bool) -> Result:
        outcome, detail = judge(self._expected[kind.name], kind.read(place), checksums=checksums)
        if outcome == outcomes.MISSING and not kind.counted:
            outcome = outcomes.OTHER
        return conclude(case, outcome, detail)
