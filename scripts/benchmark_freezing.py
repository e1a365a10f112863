"""Which variables should I train? Runs freezing strategies side by side, on your model, data and machine.

Each strategy is trained by each runner (the engine, the engine on kept features, Keras' fit, TF1's three ways to freeze)
from the same weights on the same steps, each run in a fresh process. OUT gets results.json, results.csv, study.json
and report.html, which recommends a strategy and says why. Stopped or killed halfway, the same command with the same
--out does what is missing.

    python -m scripts.benchmark_freezing --quick
    python -m scripts.benchmark_freezing --data=folder:photos --model=keras:MobileNetV2 --out=runs/which
"""

from __future__ import annotations

import errno
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from scripts import benchmark_freezing_flags, cli
from scripts.benchmark_freezing_server import Server

F = flags.FLAGS

_FULL = (errno.ENOSPC, errno.EDQUOT)


def main() -> int:
    benchmark_freezing_flags.check_numbers()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told as Ctrl-C is: what is there is shown
    with Server() as server:
        return _study(server)


def _study(server: Server) -> int:
    from scripts import benchmark_freezing_plan as planning
    from scripts import benchmark_freezing_text as show

    plan = planning.make()
    planning.described(plan)
    try:
        plan.prepare()
        runs = plan.there()
        print(f"\n{len(plan.runs)} runs in {plan.out}" + (f", {len(runs)} are there" * bool(runs)), flush=True)
        stopped = _run_all(plan, runs, server, show)
        found = _write(plan, list(runs.values()))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        print(
            f"benchmark_freezing: out={plan.out}: no space left on the disk. Finished runs stay; with more space the same "
            f"command with --out={shlex.quote(str(plan.out))} does the rest",
            file=sys.stderr,
        )
        return cli.FAILED
    print()
    show.print_table(found["results"])
    for note in found["notes"]:
        print(f"note: {note}")
    for line in planning.once(found["left_out"]):
        print(f"left out: {line}")
    print(f"\nwritten: {plan.out} (results.json, results.csv, study.json, report.html)")
    return _code(plan, runs, found, stopped=stopped)


def _run_all(plan: Any, runs: dict[pathlib.Path, dict[str, Any]], server: Server, show: Any) -> bool:
    """Does what is missing, one run at a time; whether a signal stopped it."""
    progress = show.Progress(len(plan.runs), there=len(runs))
    try:
        if not (plan.out / "machine.json").exists():
            server.do("machine", os.fspath(plan.out))
        for run in plan.runs:
            if run.file not in runs:
                progress.starts(f"{run.strategy}, {run.runner}, repeat {run.repeat}")
                runs[run.file] = _run(run, runs, server)
                progress.ended(show.result(runs[run.file]))
    except KeyboardInterrupt:
        return True
    finally:
        progress.close()
    return False


def _run(run: Any, runs: Mapping[pathlib.Path, dict[str, Any]], server: Server) -> dict[str, Any]:
    """What a run's process wrote, or how it failed.

    Raises:
        OSError: the disk is full.
    """
    from engine.files import write_json
    from scripts.benchmark_freezing_plan import read

    identity = {"strategy": run.strategy, "runner": run.runner, "repeat": run.repeat, "phases": run.phases}
    for other in runs.values():
        if "left_out" in other and (other["strategy"], other["runner"]) == (run.strategy, run.runner):
            found = identity | {"left_out": other["left_out"]}
            write_json(run.file, found)
            return found
    run.file.unlink(missing_ok=True)
    reason = server.do("run", run.text())
    found = read(run.file) or {}
    if not reason and not found:
        reason = "it ended without a result"
    if reason:
        found = identity | {"failed": True, "reason": reason}
        write_json(run.file, found)
    return found


def _write(plan: Any, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The files of a study, from what there is of it."""
    from engine.files import write_json
    from engine.study import results
    from engine.study.html import report
    from scripts.benchmark_freezing_study import whole

    found = whole(plan, runs)
    write_json(plan.out / "results.json", found["results"])
    results.write_csv(plan.out / "results.csv", found["results"])
    write_json(plan.out / "study.json", found)
    report.write(plan.out / "report.html", found)
    return found


def _code(plan: Any, runs: Mapping[pathlib.Path, Any], found: Mapping[str, Any], *, stopped: bool) -> int:
    def say(text: str) -> None:
        print(f"benchmark_freezing: {text}", file=sys.stderr)

    failed = [row for row in found["results"] if row["failed"]]
    for row in failed:
        say(f"{row['strategy']}, {row['runner']} failed: {row['reason']}")
    broken = [row for row in found["results"] if row["freeze_verified"] is False]
    for row in broken:
        say(f"{row['strategy']}, {row['runner']}: frozen variables changed")
    if stopped:
        again = f"the same command with --out={shlex.quote(str(plan.out))}"
        say(f"stopped; {len(runs)} of {len(plan.runs)} runs are done, and {again} does the rest")
        return cli.STOPPED
    return cli.FAILED if failed or broken else cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=benchmark_freezing_flags.__name__)


if __name__ == "__main__":
    run()
