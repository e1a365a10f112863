"""Compare a study in quality mode with the same trials done apart: the time of all, and whether each has the same result.

The study is one process: frostline benchmark-freezing --mode=quality, with its judging. Apart, each trial is a process of
its own: frostline finetune with the flags of that trial and a feature cache of its own, which is thrown away after it. The
time of a process is the clock's from its start to its end, so that starting it counts, and its CPU seconds. With --rates=one
only one trial of each strategy is done apart, with the middle rate, and counts for all of its trials: what a step costs does
not depend on its learning rate.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from engine.text import table

from . import cli

if TYPE_CHECKING:
    from engine.study.config import StudyConfig

F = flags.FLAGS

_STRATEGIES = "head,last_1,last_2,last_3,last_4,last_5,norms,full"
flags.DEFINE_string("model", "vit:mini", "The model, as in benchmark_freezing.")
flags.DEFINE_string("weights", "auto", "The weights that all trials start from, as in benchmark_freezing.")
flags.DEFINE_string("data", "fashion_mnist_mini", "The data, as in benchmark_freezing.")
flags.DEFINE_string("image_size", None, "The size in pixels, N or HEIGHTxWIDTH, to which images are resized.")
flags.DEFINE_string("strategies", _STRATEGIES, "The strategies, comma-separated, as in benchmark_freezing.")
flags.DEFINE_string("learning_rates", "1e-2,1e-3,1e-4", "The learning rates, comma-separated.")
flags.DEFINE_integer("steps", None, "The number of steps of each trial (by default that of benchmark_freezing).")
flags.DEFINE_integer("batch_size", 32, "The number of examples per step.")
flags.DEFINE_enum("rates", "all", ["all", "one"], "Which trials of a strategy are done apart.")
flags.DEFINE_string("out", None, "A .json file for the results (seconds); by default none is written.")
_STUDY = ("model", "weights", "data", "image_size", "strategies", "learning_rates", "steps", "batch_size")


def main() -> int:
    cli.check_out(F.out)
    cli.import_tensorflow()
    from engine.study.config import StudyConfig

    given = {name: getattr(F, name) for name in _STUDY if getattr(F, name) is not None}
    given["strategies"] = given["strategies"].split(",")
    config = StudyConfig(mode="quality", corrupt="none", **given)
    with tempfile.TemporaryDirectory(prefix="benchmark_quality-") as folder:
        commands = list_commands(config)
        study = pathlib.Path(folder, "study")
        words = [f"--{name}={','.join(v) if isinstance(v, list) else v}" for name, v in given.items()]
        together = run_program(["benchmark_freezing", "--mode=quality", "--corrupt=none", *words, f"--out={study}"])
        if together["error"]:
            return _fail("the study", together)
        print(f"the study: {together['seconds']:.1f} s, {together['cpu_seconds']:.1f} CPU s", flush=True)
        trials = read_trials(study)
        for number, command in enumerate(commands):
            out = pathlib.Path(folder, "apart", "run")
            found = run_program([*command.pop("words"), f"--out={out}"])
            if found["error"]:
                return _fail(f"{command['strategy']}, {command['learning_rate']:g}", found)
            command |= found | {"apart": compare(out, trials[command["strategy"], command["learning_rate"]])}
            subprocess.run(["rm", "-rf", os.fspath(out.parent)], check=True)
            print(
                f"  {number + 1} of {len(commands)}, {command['strategy']}, {command['learning_rate']:g}: "
                f"{command['seconds']:.1f} s, {command['cpu_seconds']:.1f} CPU s",
                flush=True,
            )
    results = sum_up(together, commands, rates=len(config.learning_rates.split(",")))
    _print(results)
    cli.write_out(results)
    return cli.DONE


def list_commands(config: StudyConfig) -> list[dict[str, Any]]:
    """The trials of a study as plain runs: the strategy, the rate, and the words of the command without ``--out``."""
    from engine.study.planning import build_plan
    from engine.study.quality.trial import write_command

    plan = build_plan(config, command="")
    quality = plan.quality
    assert quality is not None
    found = []
    for name, strategy in quality.trained.items():
        rates = quality.search.rates if F.rates == "all" else quality.search.rates[len(quality.search.rates) // 2 :][:1]
        for rate in rates:
            command = write_command(quality.setup.config(strategy, rate, config.seed), cache_dir=None)
            found.append({"strategy": name, "learning_rate": rate, "words": shlex.split(command)[1:]})
    return found


def run_program(words: list[str]) -> dict[str, Any]:
    """Runs a program, and returns its seconds, its CPU seconds and the last line of its error, if it failed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", __package__, *words], capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = done.stderr.strip().splitlines()
    return {"seconds": seconds, "cpu_seconds": cpu, "error": (lines or ["?"])[-1] if done.returncode else ""}


def read_trials(study: pathlib.Path) -> dict[tuple[str, float], dict[str, Any]]:
    """The trials of a study by strategy and rate."""
    rows = json.loads((study / "results.json").read_text(encoding="utf-8"))
    return {
        (row["strategy"], rate["learning_rate"]): rate["seeds"][0] for row in rows for rate in row["quality"]["rates"]
    }


def compare(out: pathlib.Path, trial: dict[str, Any]) -> float:
    """The largest relative difference between the evaluation losses of a plain run and those of a trial."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["eval_loss"] for row in map(json.loads, lines) if row.get("eval_loss") is not None]
    own = [point["eval_loss"] for point in trial["points"]]
    if len(losses) != len(own):
        return math.inf
    return max(abs(one - other) / abs(other) for one, other in zip(own, losses, strict=True))


def sum_up(together: dict[str, Any], runs: list[dict[str, Any]], *, rates: int) -> dict[str, Any]:
    """The times of both ways, and their ratios."""
    each = rates if F.rates == "one" else 1
    apart = {name: each * sum(run[name] for run in runs) for name in ("seconds", "cpu_seconds")}
    return {
        "trials": each * len(runs),
        "done_apart": len(runs),
        "study": {name: together[name] for name in apart},
        "apart": apart,
        "ratio": {name: together[name] / apart[name] for name in apart},
        "largest_difference": max(run["apart"] for run in runs),
        "runs": runs,
    }


def _print(results: dict[str, Any]) -> None:
    rows = [("", "seconds", "CPU seconds")]
    for name, key in (("the study", "study"), (f"{results['trials']} runs apart", "apart")):
        rows.append((name, f"{results[key]['seconds']:.1f}", f"{results[key]['cpu_seconds']:.1f}"))
    rows.append(("ratio", f"{results['ratio']['seconds']:.3f}", f"{results['ratio']['cpu_seconds']:.3f}"))
    print()
    print(table(rows, right=(1, 2)))
    print(f"largest relative difference of an evaluation loss: {results['largest_difference']:.1e}")


def _fail(what: str, found: dict[str, Any]) -> int:
    print(f"benchmark_quality: {what} failed: {found['error']}", file=sys.stderr)
    return cli.FAILED


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
