"""What benchmark_step finds: written as it goes, and printed as a table at the end."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine import text
from engine.files import write_json
from engine.host import quantiles

from .harness import Job, find_disagreement
from .turns import Participant

FORMAT = 1
PRODUCT = "product"  # the runner that measures the rate of the machine
_TIMES = ("seconds", "cpu_seconds")


class Results:
    """The results of all selections; ``write`` puts them into the file ``out``, if there is one."""

    def __init__(self, *, out: str | None, facts: dict[str, Any]) -> None:
        self._out, self._facts = out, facts
        self._parts: list[Part] = []
        self._finished = False
        self._date = datetime.datetime.now(datetime.UTC).date().isoformat()

    def begin(self, job: Job, participants: Sequence[Participant]) -> Part:
        """The results of the next selection."""
        self._parts.append(Part(job, participants))
        self.write()
        return self._parts[-1]

    def finish(self) -> None:
        self._finished = True
        self.write()

    def write(self) -> None:
        if self._out:
            write_json(self._out, self.to_json())

    def to_json(self) -> dict[str, Any]:
        rows = [row for part in self._parts for row in part.rows()]
        rates = [rate for part in self._parts for rate in part.rates()]
        return {
            "format": FORMAT,
            "date": self._date,
            "finished": self._finished,
            **self._facts,
            "product_rates": rates,
            "rows": rows,
        }

    def failures(self) -> list[str]:
        """A sentence for each runner that ended early, other than those that are not available."""
        return [
            f"{part.job.train}: {one.name}: {one.failed}"
            for part in self._parts
            for one in part.participants
            if one.failed is not None and not one.unavailable
        ]

    def text(self) -> str:
        """The table for people, with what its figures mean."""
        machine = self._facts["machine"]
        found = self.to_json()
        about = ", ".join([machine["processor"], *machine["instructions"], f"{machine['cores']} core(s)"])
        lines = ["", f"{about}; {self._date}", table(found["rows"])]
        for rate in found["product_rates"]:
            lines.append(
                f"{rate['selection']}: {rate['precision']} products of this machine: "
                f"{rate['gflops']['median']:.0f} GFLOP/s by the clock, {rate['gflop_per_cpu_second']['median']:.0f} GFLOP "
                "per CPU second"
            )
        lines.append(
            "ratios are those of the engine's step to the runner's in the same round: the median (p10 to p90); below 1, the "
            "engine is faster. Product rate: the share of a CPU second in which the machine could have done the step's "
            "products alone. Peak memory is that of a whole process, libraries included."
        )
        return "\n".join(lines)


class Part:
    """The results of one selection."""

    def __init__(self, job: Job, participants: Sequence[Participant]) -> None:
        self.job, self.participants = job, participants
        self._by_name = {(one.runner, one.precision): one for one in participants}
        self._started = time.monotonic()

    def check(self, say: Callable[[str], None]) -> None:
        """Ends the part of runners that do not compute what the engine, or else the first runner, computes."""
        for one in self.participants:
            able = [o for o in self.participants if o.precision == one.precision and o.failed is None]
            base = next((o for o in able if o.runner != PRODUCT), None)
            if one.failed is None and one.runner != PRODUCT and base is not None and base is not one:
                said, other = (o.facts | {"first_loss": o.first_loss} for o in (one, base))
                if (reason := find_disagreement(self._job(one), one.runner, said, other)) is not None:
                    one.fail(f"{reason} ({base.runner})", say=say)

    def _job(self, one: Participant) -> Job:
        return Job(**self.job.to_json() | {"precision": one.precision})

    def progress(self) -> str:
        """The seconds and CPU seconds of each runner's last step."""
        found = []
        for one in self.participants:
            if one.runner != PRODUCT and (last := one.last) is not None:
                found.append(f"{one.name} {last['seconds']:.3g} s ({last['cpu_seconds']:.3g} CPU)")
        return ", ".join(found) + f"; {time.monotonic() - self._started:.0f} s so far"

    def rows(self) -> list[dict[str, Any]]:
        return [self._row(one) for one in self.participants if one.runner != PRODUCT]

    def rates(self) -> list[dict[str, Any]]:
        """The measured rates of products."""
        found = []
        for one in self.participants:
            steps = [step for step in one.steps if step is not None]
            if one.runner == PRODUCT and steps and one.facts:
                gflop = one.facts["gflop"]
                named = {"selection": self.job.train, "precision": one.precision}
                by_clock, by_cpu = (quantiles([gflop / max(s[name], 1e-9) for s in steps]) for name in _TIMES)
                found.append(named | {"gflops": by_clock, "gflop_per_cpu_second": by_cpu})
        return found

    def _row(self, one: Participant) -> dict[str, Any]:
        steps = [step for step in one.steps if step is not None]
        engine = self._by_name.get(("engine", one.precision))
        single = self._by_name.get((one.runner, "float32"))
        return {
            "selection": self.job.train,
            "runner": one.runner,
            "precision": one.precision,
            "available": not one.unavailable,
            "failed": one.failed,
            "rounds": len(steps),
            "step_ms": quantiles([1e3 * step["seconds"] for step in steps]) if steps else None,
            "cpu_seconds": quantiles([step["cpu_seconds"] for step in steps]) if steps else None,
            "engine_ratio": None if one.runner == "engine" else pair_ratios(engine, one),
            "float32_ratio": None if one.precision == "float32" else pair_ratios(one, single),
            "product_rate_share": self._share(one),
            "peak_rss_bytes": one.peak_rss_bytes,
            "first_loss": one.first_loss,
            **{name: one.facts.get(name) for name in ("library", "parameters", "trained_parameters", "slot_bytes",
                                                      "backward_ops", "tape", "xla")},
            "steps": one.steps,
        }  # fmt: skip

    def _share(self, one: Participant) -> float | None:
        """The CPU seconds of the step's products at the rate of the machine, as a share of those of the step."""
        engine = self._by_name.get(("engine", one.precision))
        product = self._by_name.get((PRODUCT, one.precision))
        ratios = pair_ratios(product, one)
        if engine is None or engine.cost is None or product is None or not product.facts or ratios is None:
            return None
        return ratios["cpu"]["median"] * engine.cost / float(product.facts["gflop"])


def pair_ratios(one: Participant | None, other: Participant | None) -> dict[str, dict[str, float]] | None:
    """The ratios of one runner's steps to another's in the same rounds, by the clock and in CPU seconds; None without any."""
    if one is None or other is None:
        return None
    pairs = [(a, b) for a, b in zip(one.steps, other.steps, strict=False) if a is not None and b is not None]
    if not pairs:
        return None
    wall, cpu = (quantiles([a[name] / max(b[name], 1e-9) for a, b in pairs]) for name in _TIMES)
    return {"wall": wall, "cpu": cpu}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as an aligned table."""
    head = ("train", "runner", "precision", "step ms", "p10", "p90", "CPU s", "engine to it, CPU", "engine to it, wall",
            "to its float32, CPU", "peak MiB", "product rate")  # fmt: skip
    lines = [head]
    for row in rows:
        names = (row["selection"], row["runner"], row["precision"])
        if row["step_ms"] is None:
            lines.append((*names, "not available" if not row["available"] else "failed", *[""] * (len(head) - 4)))
            continue
        engine, single = row["engine_ratio"], row["float32_ratio"]
        share, peak = row["product_rate_share"], row["peak_rss_bytes"]
        lines.append(
            (
                *names,
                *(f"{row['step_ms'][key]:.1f}" for key in ("median", "p10", "p90")),
                f"{row['cpu_seconds']['median']:.3f}",
                _ratio(engine and engine["cpu"]),
                _ratio(engine and engine["wall"]),
                _ratio(single and single["cpu"]),
                f"{peak / 2**20:.0f}",
                "" if share is None else f"{share:.0%}",
            )
        )
    return text.table(lines, right=range(3, len(head)))


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3f} ({found['p10']:.3f} to {found['p90']:.3f})"
