"""Which variables should I train? Runs freezing strategies side by side, on your model, data and machine.

In the mode cost, each strategy is trained by each runner (the engine, the engine on cached features, Keras' fit, the three ways to freeze
in TF1) from the same weights on the same steps, each run in a fresh process: time and memory. The mode quality finds each
strategy's best learning rate on the evaluation part and judges it once on the test part, as it is and corrupted. OUT receives results.json, results.csv,
study.json and report.html, which recommends a strategy and says why. If the study is stopped or killed halfway, the same
command with the same --out does the missing runs.

    python -m scripts.benchmark_freezing --quick
    python -m scripts.benchmark_freezing --mode=quality --quick
    python -m scripts.benchmark_freezing --data=folder:photos --model=keras:MobileNetV2 --out=runs/which
"""

from __future__ import annotations

import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from engine.study import registry
from engine.study.run import RunResult, StudyListener, StudyResult, run_study
from engine.writing import NoSpaceError

from . import benchmark_freezing_flags, cli
from . import benchmark_freezing_text as text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.study.job import Run
    from engine.study.planning import Plan
    from engine.study.quality.trial import Trial

_V1 = "compat_v1.training.study_runner"
_OTHERS = {
    "keras_fit": f"{__package__}.baselines.keras_runner:KerasRunner",
    "v1_trainable": f"{_V1}:TrainableRunner",
    "v1_stop_gradient": f"{_V1}:StopGradientRunner",
    "v1_var_list": f"{_V1}:VarListRunner",
}


def main() -> int:
    config = benchmark_freezing_flags.read_config()  # bad flags are refused before TensorFlow is imported
    cli.import_tensorflow()
    for name, target in _OTHERS.items():
        registry.register_runner(name, target)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is finished is shown
    screen = Screen()
    try:
        done = run_study(config, listener=screen, command=_command())
    except NoSpaceError as error:
        if screen.plan is None:
            raise
        _complain(
            f"out={screen.plan.out}: no space left on the disk ({error}). Finished runs are kept; when there is more "
            f"space, the same command with --out={shlex.quote(str(screen.plan.out))} does the rest"
        )
        return cli.FAILED
    text.print_study(done)
    return _exit_code(done)


class Screen(StudyListener):
    """Prints the plan and the progress of a study."""

    plan: Plan | None = None
    _progress: text.Progress | None = None
    _search: text.SearchProgress | None = None

    def planned(self, plan: Plan) -> None:
        self.plan = plan
        text.print_plan(plan)

    def prepared(self, plan: Plan, finished: int) -> None:
        if not plan.runs:
            print(f"\n{plan.out}", flush=True)
            return
        there = f", {finished} of them already finished" if finished else ""
        print(f"\n{len(plan.runs)} runs in {plan.out}{there}", flush=True)
        self._progress = text.Progress(len(plan.runs), done=finished)

    def run_started(self, run: Run) -> None:
        assert self._progress is not None
        self._progress.start(f"{run.strategy}, {run.runner}, repeat {run.repeat}")

    def run_ended(self, run: Run, result: RunResult) -> None:
        assert self._progress is not None
        self._progress.end(text.describe_run(result))

    def runs_ended(self) -> None:
        if self._progress is not None:
            self._progress.close()

    def searching(self, strategy: str) -> None:
        if self._search is None:
            assert self.plan is not None
            assert self.plan.quality is not None
            self._search = text.SearchProgress(self.plan.quality)
        self._search.search(strategy)

    def trial_started(self, trial: Trial) -> None:
        self._show().start(trial)

    def trial_step(self, trial: Trial, step: int, steps: int) -> None:
        self._show().step(trial, step, steps)

    def trial_ended(self, trial: Trial, record: Mapping[str, Any]) -> None:
        self._show().end(trial, record)

    def judging(self, strategy: str, done: int, passes: int) -> None:
        self._show().judge(strategy, done, passes)

    def quality_ended(self) -> None:
        if self._search is not None:
            self._search.close()

    def say(self, line: str) -> None:
        print(line, flush=True)

    def _show(self) -> text.SearchProgress:
        assert self._search is not None
        return self._search


def _exit_code(done: StudyResult) -> int:
    """The exit code of the program; complains about what went wrong."""
    for row in done.failed:
        _complain(f"{row['strategy']}, {row['runner']} failed: {row['reason']}")
    for row in done.broken:
        _complain(f"{row['strategy']}, {row['runner']}: frozen variables changed")
    if done.stopped:
        again = f"the same command with --out={shlex.quote(str(done.out))}"
        counted = f"{done.done} of {done.planned} runs are done" if done.planned else "trials that have ended are kept"
        _complain(f"stopped; {counted}, and {again} does the rest")
        return cli.STOPPED
    return cli.FAILED if done.failed or done.broken else cli.DONE


def _command() -> str:
    """The command line, to be repeated."""
    return shlex.join(["python", "-m", f"{__package__}.benchmark_freezing", *sys.argv[1:]])


def _complain(reason: Any) -> None:
    print(f"benchmark_freezing: {reason}", file=sys.stderr)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=benchmark_freezing_flags.__name__)


if __name__ == "__main__":
    run()
