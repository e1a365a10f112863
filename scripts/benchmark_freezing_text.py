"""What benchmark_freezing prints: the plan, the progress with the time left, and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.text import table

if TYPE_CHECKING:
    from engine.study.planning import Plan
    from engine.study.run import StudyResult

HEAD = ("strategy", "runner", "trained", "step ms", "p10-p90", "ex/s", "peak MiB", "slots MiB", "bwd ops",
        "GFLOP/ex", "of GEMM", "accuracy", "loss", "job s", "to target s", "frozen")  # fmt: skip


def print_plan(plan: Plan) -> None:
    """Prints what will be done."""
    from engine.study.planning import summarize_left_out

    job, task = plan.job, plan.setting.task
    if task.weights is not None:
        print(f"weights: {task.weights.text}")
    print(f"model:   {job.model}, {task.variables.parameters:,} parameters in {len(task.variables)} variables")
    for note in task.model.notes:
        print(f"         {note}")
    source = task.source
    print(f"data:    {source.name}, {len(source.train)} training and {len(source.eval)} evaluation examples")
    print(
        f"each:    {job.steps} steps of {job.batch_size} examples, adam with learning rate {job.learning_rate:g}, "
        f"evaluated every {job.eval_every} steps"
    )
    print(f"compare: {', '.join(strategy.name for strategy in plan.strategies)}")
    print(f"by:      {', '.join(plan.runners)}")
    for line in summarize_left_out(plan.left_out):
        print(f"without: {line}")


class Progress:
    """Which of how many runs is running, and how long the rest will take: a bar on a terminal with rich, else lines."""

    def __init__(self, total: int, *, done: int) -> None:
        from engine.runs.progress import open_bar

        self._total, self._done, self._before = total, done, done
        self._began = time.monotonic()
        self._bar, self._task = open_bar(total, done)

    def start(self, what: str) -> None:
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def end(self, result: str) -> None:
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
        each = (time.monotonic() - self._began) / max(1, self._done - self._before)
        seconds = round(each * (self._total - self._done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def describe_run(run: Mapping[str, Any]) -> str:
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


def print_study(done: StudyResult) -> None:
    """Prints what came out of a study."""
    from engine.study.planning import summarize_left_out

    print()
    _print_rows(done.study["results"])
    for note in done.study["notes"]:
        print(f"note: {note}")
    for line in summarize_left_out(done.study["left_out"]):
        print(f"left out: {line}")
    print(f"\nwritten: {done.out} (results.json, results.csv, study.json, report.html)")


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows; with rich on a terminal, as one of its tables."""
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
        _format(row["trained_parameters"], ",d"),
        _format(step["median"], ".1f"),
        spread,
        _format(row["examples_per_second"], ".0f"),
        _format(row["peak_rss_bytes"], ".0f", 2**20),
        _format(row["slot_bytes"], ".2f", 2**20),
        _format(row["backward_ops"], "d"),
        _format(row["gflop_per_example"], ".4g"),
        _format(row["gemm_share"], ".0%"),
        _format(row["eval_accuracy"], ".4f"),
        _format(row["eval_loss"], ".4f"),
        _format(row["job_seconds"], ".1f"),
        _format(row["time_to_target_seconds"], ".1f"),
        "FAILED" if row["failed"] else verified,
    )


def _format(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value if unit == 1 else value / unit, form)
