"""What benchmark_freezing prints: the plan, the progress with the time left, and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.text import table

if TYPE_CHECKING:
    from engine.study.planning import Plan
    from engine.study.quality.run import QualityPlan
    from engine.study.quality.trial import Trial
    from engine.study.run import StudyResult

HEAD = ("strategy", "runner", "trained", "step ms", "p10-p90", "ex/s", "peak MiB", "slots MiB", "bwd ops",
        "GFLOP/ex", "of GEMM", "accuracy", "loss", "job s", "to target s", "frozen")  # fmt: skip

QUALITY_HEAD = ("strategy", "best rate", "eval. acc.", "accuracy", "corrupted", "loss", "calibration", "trained",
                "train s", "search s", "frozen")  # fmt: skip
_SELDOM = 30.0  # seconds between lines about what is going on


def print_plan(plan: Plan) -> None:
    """Prints what will be done."""
    from engine.study.planning import summarize_left_out

    job, task = plan.job, plan.setting.task
    print(f"model:   {job.model}, {task.variables.parameters:,} parameters in {len(task.variables)} variables")
    for note in task.model.notes:
        print(f"         {note}")
    source = task.source
    print(f"data:    {source.name}, {len(source.train)} training and {len(source.eval)} evaluation examples")
    rate = "" if plan.quality is not None else f" with learning rate {job.learning_rate:g}"
    print(
        f"each:    {job.steps} steps of {job.batch_size} examples, adam{rate}, evaluated every {job.eval_every} steps"
    )
    print(f"compare: {', '.join(strategy.name for strategy in plan.strategies)}")
    if plan.runners:
        print(f"by:      {', '.join(plan.runners)}")
    if plan.quality is not None:
        for line in describe_quality(plan.quality):
            print(line)
    for line in summarize_left_out(plan.left_out):
        print(f"without: {line}")


def describe_quality(plan: QualityPlan) -> list[str]:
    """How a quality study searches and judges."""
    search = plan.search
    tried = f"{', '.join(f'{rate:g}' for rate in search.rates)}" if search.rates else "3 around a range test"
    if not search.rates and search.extend:
        tried += ", and beyond where the best one lies at an end"
    seeds = f"{len(search.seeds)} seed{'s'[: len(search.seeds) - 1]}"
    by = "accuracy" if search.by == "eval_accuracy" else "loss"
    shifted = f", and through {len(plan.corrupt)} corruptions of them" if plan.corrupt else ""
    lines = [
        f"rates:   {tried}; each with {seeds}, {plan.setup.shared.schedule} schedule, {search.kind} search by the "
        f"evaluation {by}",
        f"judged:  once per strategy, on {len(plan.part):,} {plan.part_name} examples{shifted}",
    ]
    if plan.part_name != "test":
        lines.append(
            "         The data have no test part: the same evaluation examples choose and judge, so the figures are too good "
            "by what choosing gains."
        )
    return lines


class SearchProgress:
    """Which trial is training, how far it is, and what came out: a bar on a terminal with rich, else lines."""

    def __init__(self, plan: QualityPlan) -> None:
        from engine.runs.progress import open_bar

        self._rates = len(plan.search.rates) or 3
        self._strategies, self._seeds = list(plan.trained), len(plan.search.seeds)
        self._total = len(self._strategies) * self._rates * self._seeds
        self._ended = 0
        self._began, self._told = time.monotonic(), 0.0
        self._before: int | None = None
        self._bar, self._task = open_bar(self._total, 0)

    def search(self, strategy: str) -> None:
        """The search of a strategy begins: those before it have no trials left."""
        self._ended = self._strategies.index(strategy) * self._rates * self._seeds

    def start(self, trial: Trial) -> None:
        if self._before is None:
            self._before, self._began = self._ended, time.monotonic()
        self._show(trial.describe())

    def step(self, trial: Trial, step: int, steps: int) -> None:
        self._show(f"{trial.describe()}: step {step} of {steps}", seldom=True)

    def end(self, trial: Trial, record: Mapping[str, Any]) -> None:
        self._ended = min(self._ended + 1, self._total)
        self._print(f"[{self._ended}/{self._total}] {trial.describe()}: {describe_trial(record)}", left=True)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._ended)

    def judge(self, strategy: str, done: int, passes: int) -> None:
        if done == 0:
            self._print(f"judging {strategy}: {passes} passes over the examples")
        self._show(f"judging {strategy}: pass {done} of {passes}", seldom=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, text: str, *, seldom: bool = False) -> None:
        """What is being done now; without a bar a line, and ``seldom`` one in half a minute."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif seldom and time.monotonic() - self._told > _SELDOM:
            self._print(text)

    def _print(self, line: str, *, left: bool = False) -> None:
        self._told = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(f"{line}{self._left() if left else ''}", flush=True)

    def _left(self) -> str:
        if self._before is None or self._ended == self._before:
            return ""
        each = (time.monotonic() - self._began) / (self._ended - self._before)
        return f" | left: about {format_clock(each * (self._total - self._ended))}"


def describe_trial(record: Mapping[str, Any]) -> str:
    """A trial in a few words."""
    if record["ended"] == "diverged":
        return f"diverged after {record['steps']} steps"
    accuracy = "" if record["eval_accuracy"] is None else f"accuracy {record['eval_accuracy']:.4f}, "
    ended = "" if record["ended"] == "done" else f", {record['ended'].replace('_', ' ')} after {record['steps']} steps"
    loss = "not finite" if record["eval_loss"] is None else f"{record['eval_loss']:.4f}"
    return f"{accuracy}loss {loss}, {record['seconds']:.1f} s{ended}"


def format_clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


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
        return format_clock(each * (self._total - self._done))


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
    quality = [row for row in done.study["results"] if row.get("quality")]
    if len(quality) < len(done.study["results"]):
        _print_rows([row for row in done.study["results"] if not row.get("quality")])
    if quality:
        print(table([QUALITY_HEAD, *map(_quality_cells, quality)], right=range(1, len(QUALITY_HEAD))))
        if (verdict := done.study["quality"]["verdict"]) is not None:
            print(f"\n{verdict['sentence']}")
            for reason in (*verdict["warnings"], *verdict["reasons"]):
                print(f"  {reason}")
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


def _quality_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row["quality"]
    chosen, test, shifted = found["chosen"] or {}, found["test"] or {}, (found["shifted"] or {}).get("mean", {})
    verified = {True: "kept", False: "CHANGED", None: ""}[row["freeze_verified"]]
    return (
        row["strategy"],
        _format(chosen.get("learning_rate"), "g"),
        _format(row["eval_accuracy"], ".4f"),
        _format(test.get("accuracy"), ".4f"),
        _format(shifted.get("accuracy"), ".4f"),
        _format(test.get("loss"), ".4f"),
        _format(test.get("calibration_error"), ".4f"),
        _format(row["trained_parameters"], ",d"),
        _format(found["seconds"], ".1f"),
        _format(found["search_seconds"], ".0f"),
        "failed" if row["failed"] else verified,
    )


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
