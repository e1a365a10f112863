"""``run_study``: does the runs of a study, each in its own process, and writes the results.

Importing this module imports no TensorFlow: the processes of the runs begin to import it while the study is planned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import locks, writing
from engine.errors import InputError
from engine.study import registry
from engine.study.child import ChildError
from engine.study.config import StudyConfig
from engine.study.quality.listener import QualityListener
from engine.study.server import ForkServer

if TYPE_CHECKING:
    from engine.study.job import Run
    from engine.study.planning import Plan
    from engine.study.quality.run import QualityPlan, QualityResult

RunResult = Mapping[str, Any]  # what a run's file holds


class StudyListener(QualityListener):
    """Receives the events of a study; subclass it and override what you need. This one ignores them all."""

    def planned(self, plan: Plan) -> None:
        """Everything has been checked; nothing has been written or run."""

    def prepared(self, plan: Plan, finished: int) -> None:
        """The folder is ready; ``finished`` is the number of runs in it that need not be done again."""

    def run_started(self, run: Run) -> None:
        """A run starts."""

    def run_ended(self, run: Run, result: RunResult) -> None:
        """A run ended: finished, failed (``failed``, ``reason``) or left out (``left_out``)."""

    def runs_ended(self) -> None:
        """No further run starts; also called when the study is stopped or the disk is full."""

    def quality_ended(self) -> None:
        """The search and the judging have ended, or were stopped."""

    def say(self, line: str) -> None:
        """A line about files that are left out, or about slow progress."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        out: the folder with study.json, results.json, results.csv and report.html.
        study: the content of study.json; its ``results`` are the rows of results.json.
        planned, done: the number of planned runs, and of those that finished, failed or were left out.
        stopped: whether KeyboardInterrupt ended the study early. The same configuration with ``out`` continues it.
    """

    out: pathlib.Path
    study: Mapping[str, Any]
    planned: int
    done: int
    stopped: bool

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """The rows of which a run failed."""
        return [row for row in self.study["results"] if row["failed"]]

    @property
    def broken(self) -> list[Mapping[str, Any]]:
        """The rows whose freeze proof failed: frozen variables changed."""
        return [row for row in self.study["results"] if row["freeze_verified"] is False]


def run_study(config: StudyConfig, *, listener: StudyListener | None = None, command: str | None = None) -> StudyResult:
    """Compares freezing strategies: trains each one by each runner, and writes a report that recommends one.

    Every run has its own process, starts from the same weights and takes the same steps on the same data. A folder
    (``config.out``) that holds the same study is continued: only missing and failed runs are done.

    Args:
        config: the study.
        listener: receives the plan and the result of each run; by default nothing is shown.
        command: how the report says that the study can be repeated; by default the Python call.

    Raises:
        InputError: something that the configuration names does not exist or does not fit. Nothing has been run then.
        NoSpaceError: the disk is full (engine.writing). Finished runs stay, and the same study can be continued.
    """
    listener = listener or StudyListener()
    if config.out:  # before anything takes time
        writing.check_folder(config.out)
        try:
            locks.check_free(config.out)
        except locks.InUseError as error:
            reason = f"another study is running in this folder: {error.holder} is using it"
            raise InputError(f"out={config.out}: {reason}") from None
    processes: Any = contextlib.nullcontext()  # quality mode needs none
    if config.measures_cost:
        processes = ForkServer(["engine.study.worker", *registry.runner_modules()])
    with processes as server:
        from engine.host import import_tensorflow

        import_tensorflow()
        from engine.study.planning import build_plan

        plan = build_plan(config, command=command or config.describe_call(), say=listener.say)
        listener.planned(plan)
        try:
            plan.prepare()
            runs, quality = plan.finished(), None
            listener.prepared(plan, len(runs))
            try:
                stopped = server is not None and _do_runs(plan, runs, server, listener)
            finally:
                listener.runs_ended()
            if plan.quality is not None and not stopped:
                quality = _do_quality(plan, plan.quality, listener)
                stopped = quality.stopped
            study = _write(plan, list(runs.values()), quality)
        finally:
            plan.close()
    return StudyResult(out=plan.out, study=study, planned=len(plan.runs), done=len(runs), stopped=stopped)


def _do_runs(plan: Plan, runs: dict[pathlib.Path, dict[str, Any]], server: ForkServer, listener: StudyListener) -> bool:
    """Does the missing runs, one at a time; returns whether it was interrupted."""
    try:
        if not (plan.out / "machine.json").exists():
            server.run("engine.study.worker:measure_machine", os.fspath(plan.out))
        for run in plan.runs:
            if run.file not in runs:
                listener.run_started(run)
                runs[run.file] = _do_run(run, runs, server)
                listener.run_ended(run, runs[run.file])
    except KeyboardInterrupt:
        return True
    return False


def _do_run(run: Run, runs: Mapping[pathlib.Path, dict[str, Any]], server: ForkServer) -> dict[str, Any]:
    """Does a run, and returns the content of its file."""
    from engine.files import write_json
    from engine.study.job import read_record

    for other in runs.values():
        if "left_out" in other and (other["strategy"], other["runner"]) == (run.strategy, run.runner):
            found = run.identity() | {"left_out": other["left_out"]}
            break
    else:
        run.file.unlink(missing_ok=True)
        try:
            server.run("engine.study.worker:do_run", dataclasses.asdict(run))
            return read_record(run.file) or {}
        except ChildError as error:
            found = run.identity() | {"failed": True, "reason": str(error)}
    write_json(run.file, found)
    return found


def _do_quality(plan: Plan, quality: QualityPlan, listener: StudyListener) -> QualityResult:
    """Searches and judges, in this process."""
    from engine.study.quality.run import run_quality

    try:
        return run_quality(quality, plan.out, listener)
    finally:
        listener.quality_ended()


def _write(plan: Plan, runs: list[dict[str, Any]], quality: QualityResult | None) -> dict[str, Any]:
    """Writes the files of a study from the runs that there are, and returns the content of study.json."""
    from engine.files import write_json
    from engine.study import results
    from engine.study.html import report
    from engine.study.quality.build_rows import flatten_row
    from engine.study.summary import summarize

    found = summarize(plan, runs, quality)
    write_json(plan.out / "results.json", found["results"])
    results.write_csv(plan.out / "results.csv", [flatten_row(row) for row in found["results"]])
    write_json(plan.out / "study.json", found)
    report.write_report(plan.out / "report.html", found)
    return found
