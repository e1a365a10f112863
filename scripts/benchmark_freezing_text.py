"""What benchmark_freezing shows in a terminal: which run of how many, the time left, and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engine.runs.progress import open_bar
from engine.text import table

HEAD = ("strategy", "runner", "trained", "step ms", "p10-p90", "ex/s", "peak MiB", "slots MiB", "bwd ops",
        "GFLOP/ex", "of GEMM", "accuracy", "loss", "job s", "to target s", "frozen")  # fmt: skip


class Progress:
    """Which of how many runs, and how long the rest will take; a bar on a terminal with rich, else lines."""

    def __init__(self, total: int, *, there: int) -> None:
        self._total, self._done, self._there = total, there, there
        self._began = time.monotonic()
        self._bar, self._task = open_bar(total, there)

    def starts(self, what: str) -> None:
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def ended(self, result: str) -> None:
        self._done += 1
        line = f"[{self._done}/{self._total}] {self._what}: {result}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(f"{line} | left: {self._left()}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _left(self) -> str:
        each = (time.monotonic() - self._began) / max(1, self._done - self._there)
        seconds = round(each * (self._total - self._done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def result(run: Mapping[str, Any]) -> str:
    """One run in a few words."""
    if run.get("failed"):
        return f"FAILED: {run['reason']}"
    if "left_out" in run:
        return f"left out: {run['left_out']}"
    last = run["points"][-1]
    accuracy = "" if last["eval_accuracy"] is None else f", accuracy {last['eval_accuracy']:.4f}"
    return (
        f"{run['job_seconds']:.1f} s{accuracy}, loss {last['eval_loss']:.4f}, {run['peak_rss_bytes'] / 2**20:.0f} MiB"
    )


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows; as a table of rich on a terminal that has it."""
    body = [_cells(row) for row in rows]
    if sys.stdout.isatty():
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for number, name in enumerate(HEAD):
                shown.add_column(name, justify="left" if number < 2 else "right", no_wrap=number < 2)
            last = None
            for cells in body:
                if last not in (None, cells[0]):
                    shown.add_section()
                last = cells[0]
                shown.add_row(*cells)
            Console().print(shown)
            return
    print(table([HEAD, *body], right=range(2, len(HEAD))))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    step = row["step_ms"]
    spread = "" if step["p10"] is None else f"{step['p10']:.1f}-{step['p90']:.1f}"
    verified = {True: "kept", False: "CHANGED", None: ""}[row["freeze_verified"]]
    return (
        row["strategy"],
        row["runner"],
        _text(row["trained_parameters"], ",d"),
        _text(step["median"], ".1f"),
        spread,
        _text(row["examples_per_second"], ".0f"),
        _text(row["peak_rss_bytes"], ".0f", 2**20),
        _text(row["slot_bytes"], ".2f", 2**20),
        _text(row["backward_ops"], "d"),
        _text(row["gflop_per_example"], ".4g"),
        _text(row["gemm_share"], ".0%"),
        _text(row["eval_accuracy"], ".4f"),
        _text(row["eval_loss"], ".4f"),
        _text(row["job_seconds"], ".1f"),
        _text(row["time_to_target_seconds"], ".1f"),
        "FAILED" if row["failed"] else verified,
    )


def _text(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value if unit == 1 else value / unit, form)
