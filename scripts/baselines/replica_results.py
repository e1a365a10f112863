"""What benchmark_distribution found: rows, JSON, tables, and why a runner does not do what it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.files import write_json
from engine.host import quantiles
from engine.text import table

from . import step_results, turns

_AGREEMENT = 1e-5  # relative, of the first losses: other shares are summed in another order
_FORMAT = 1


def find_fault(one: turns.Participant, base: turns.Participant) -> str | None:
    """Why a runner does not do what it should: another loss than ``base``, or other bytes than those of what trains."""
    mine, other = one.first_loss, base.first_loss
    if mine is None or other is None or not abs(mine - other) <= _AGREEMENT * abs(other):  # a NaN fails too
        return (
            f"the loss of its first step is {mine!r}; expected {other!r}, up to a relative difference of {_AGREEMENT:g}"
        )
    several = one.runner.startswith("mirrored_")
    expected = one.facts["expected_communication"] if several else {"bytes": 0, "collectives": 0}
    if (found := one.facts["communication"]) != expected:
        return f"a replica exchanges {found} in a step; expected {expected}"
    return None


class Results:
    """What was measured, as rows, JSON and text."""

    def __init__(self, facts: dict[str, Any], *, out: str | None = None) -> None:
        self._facts, self._out = facts, out
        self.parts: list[tuple[str, Sequence[turns.Participant]]] = []

    def failures(self) -> list[str]:
        """A sentence for each runner that failed."""
        runners = [(train, one) for train, each in self.parts for one in each]
        return [f"{train}: {one.runner}: {one.failed}" for train, one in runners if one.failed is not None]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each selection and runner; ratios are to the runner none."""
        found = []
        for train, runners in self.parts:
            none = runners[0]
            for one in runners:
                steps = [step for step in one.steps if step is not None]
                row: dict[str, Any] = {"train": train, "runner": one.runner, "failed": one.failed, "rounds": len(steps)}
                for name, key in (("step_ms", "seconds"), ("cpu_ms", "cpu_seconds")):
                    row[name] = quantiles([1e3 * step[key] for step in steps]) if steps else None
                row["ratio"] = step_results.pair_ratios(one, none) if one is not none else None
                row |= {"peak_rss_bytes": one.peak_rss_bytes, "peak_ratio": None, "first_loss": one.first_loss}
                if one is not none and one.peak_rss_bytes and none.peak_rss_bytes:
                    row["peak_ratio"] = one.peak_rss_bytes / none.peak_rss_bytes
                names = ("trained_parameters", "communication", "expected_communication")
                found.append(row | {name: one.facts.get(name) for name in names} | {"steps": one.steps})
        return found

    def write(self, *, finished: bool) -> None:
        """Writes the JSON file, if one is asked for."""
        if self._out:
            write_json(self._out, {"format": _FORMAT, "finished": finished, **self._facts, "rows": self.rows()})

    def text(self) -> str:
        """The tables for people."""
        lines = [("train", "runner", "step ms", "CPU ms", "to none, wall", "to none, CPU", "peak MiB", "to none",
                  "bytes a step", "collectives")]  # fmt: skip
        for row in self.rows():
            sent = row["communication"] or {"bytes": 0, "collectives": 0}
            peak, times = row["peak_rss_bytes"], (row["step_ms"], row["cpu_ms"])
            lines.append(
                (
                    row["train"],
                    row["runner"],
                    *("failed" if each is None else f"{each['median']:.1f}" for each in times),
                    *(_ratio(row["ratio"] and row["ratio"][key]) for key in ("wall", "cpu")),
                    "" if peak is None else f"{peak / 2**20:.0f}",
                    "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.3f}",
                    f"{sent['bytes']:,}",
                    f"{sent['collectives']:,}",
                )
            )
        machine = self._facts["machine"]
        return (
            f"{machine['processor']}, {machine['cores']} core(s)\n{table(lines, right=range(2, 10))}\n"
            "ratios are those of the runner's step to that of none in the same round: the median (p10 to p90)"
        )


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3f} ({found['p10']:.3f} to {found['p90']:.3f})"
