"""What benchmark_freezing is asked to do: the job, the strategies, the runners, and which runs in which order."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from absl import flags

from engine import data, host, models
from engine.errors import InputError
from engine.files import write_json, write_npz
from engine.selection.filters import FilterError
from engine.selection.proof import weights_sha256
from engine.study import results
from engine.study.strategies import ModelStrategies, Strategy, split
from engine.text import nearest
from scripts.benchmark_freezing_job import (
    ENGINE_RUNNERS,
    RUNNERS,
    Job,
    Run,
    Setting,
    StudyError,
    choose,
    keep_examples,
    load,
    why_not,
)

F = flags.FLAGS

_STEPS, _KERAS_STEPS, _TRAIN_EXAMPLES, _EVAL_EXAMPLES = 21, 12, 512, 192
_EVALUATIONS = 3  # after the first; as many as gradual has phases, each of which ends with one


@dataclass
class Plan:
    """Attributes:
    out: folder of the study.
    job: what all runs share.
    setting: its model, with the values that every run starts from.
    strategies, runners: what is compared.
    runs: all of them, in the order in which they are run.
    left_out: (strategy, runner) that are not run: strategy, runner, reason.
    """

    out: pathlib.Path
    job: Job
    setting: Setting
    strategies: list[Strategy]
    runners: list[str]
    runs: list[Run] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(strategy, runner), strategy by strategy."""
        return [(strategy.name, runner) for strategy in self.strategies for runner in self.runners]

    def there(self) -> dict[pathlib.Path, dict[str, Any]]:
        """What earlier invocations finished, by its file; failed runs are run again, and disturbed ones if that is asked.

        Raises:
            StudyError: a strategy of the same name meant something else then.
        """
        found = {}
        for run in self.runs:
            kept = read(run.file)
            if kept is None or kept.get("failed") or (F.redo_disturbed and results.is_disturbed(kept)):
                continue
            if kept.get("phases") != json.loads(json.dumps(run.phases)):
                raise StudyError(
                    f"out={self.out}: it has runs of a strategy {run.strategy!r} that trained "
                    f"{[phase['train'] for phase in kept.get('phases', [])]}; give this one another name"
                )
            found[run.file] = kept
        return found

    def others(self) -> list[dict[str, Any]]:
        """What earlier invocations finished in this folder besides: their rows stay."""
        mine = {run.file for run in self.runs}
        kept = [read(path) for path in sorted((self.out / "runs").glob("*.json")) if path not in mine]
        return [run for run in kept if run is not None and run.get("done")]

    def prepare(self) -> None:
        """Makes the folder, or sees that it holds this very study.

        Raises:
            StudyError: it is another study's, or something else's.
        """
        kept = read(self.out / "job.json")
        if kept is None and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise StudyError(f"out={self.out}: it is no folder of a study (it has no job.json), and not empty")
        if kept is not None:
            before, now = kept.get("job", {}), self.job.to_json()
            differing = [
                f"  {key}: {before.get(key)!r} in {self.out}, {now.get(key)!r} now"
                for key in dict.fromkeys((*before, *now))
                if before.get(key) != now.get(key)
            ]
            if differing:
                raise StudyError(
                    f"out={self.out}: it holds another study, which these flags contradict:\n" + "\n".join(differing)
                )
        try:
            (self.out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, (FileExistsError, NotADirectoryError, PermissionError)):
                raise StudyError(f"out={self.out}: the folder cannot be made ({error.strerror})") from None
            raise
        self._take()
        for left in self.out.glob(".cache-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        write_npz(self.out / "weights.npz", ((e.path, e.variable.numpy()) for e in self.setting.variables))
        keep_examples(self.out, self.setting.source)
        if kept is None:
            write_json(self.out / "job.json", {"version": 1, "job": self.job.to_json(), "command": command()})

    def _take(self) -> None:
        """Keeps others out of the folder, as long as this process lives: they would slow and repeat each other's runs."""
        try:
            import fcntl
        except ImportError:  # a system without such locks
            return
        self._lock = open(self.out / ".lock", "w")  # noqa: SIM115 - it is held until the end
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"out={self.out}: another benchmark_freezing is at work in it") from None


def make() -> Plan:
    """Everything that flags ask for, checked before anything runs.

    Raises:
        InputError: as the rooms that are asked; unknown runners and strategies; nothing to be run.
    """
    setting = _setting()
    said, images = load(setting, F.weights)
    print(f"weights: {said}")
    steps = _steps(setting)
    job = dataclasses.replace(
        setting.job,
        weights_sha256=weights_sha256((e.path, e.variable.numpy()) for e in setting.variables),
        images=images,
        steps=steps,
        eval_every=F.eval_every or -(-steps // _EVALUATIONS),
    )
    setting.job = job
    known = ModelStrategies(setting.variables, setting.model.statistics)
    strategies, unmatched = _strategies(known)
    runners, unable = _runners(setting)
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    name = F.model.replace(":", "-").replace("/", "-").split(",")[0]
    plan = Plan(pathlib.Path(F.out or f"runs/{stamp}-freezing-{name}"), job, setting, strategies, runners)
    plan.left_out = [{"strategy": s, "runner": r, "reason": why} for s, why in unmatched.items() for r in runners]
    plan.left_out += [{"strategy": s.name, "runner": r, "reason": why} for r, why in unable.items() for s in strategies]
    phases = {s.name: [dataclasses.asdict(phase) for phase in s.phases(steps)] for s in strategies}
    repeats = 1 if F.quick and not F["repeats"].present else F.repeats
    for repeat in range(repeats):
        turned = len(plan.pairs) * repeat // repeats  # a machine that slows down does not hit the same runs each time
        for strategy, runner in plan.pairs[turned:] + plan.pairs[:turned]:
            plan.runs.append(
                Run(
                    out=str(plan.out),
                    strategy=strategy,
                    runner=runner,
                    repeat=repeat + 1,
                    phases=phases[strategy],
                    check_numerics=F.check_numerics,
                    histograms=F.histograms and runner in ENGINE_RUNNERS and repeat == 0,
                )
            )
    _check_histograms(plan)
    return plan


def command() -> str:
    """The command line, to be repeated."""
    return shlex.join(["python", "-m", "scripts.benchmark_freezing", *sys.argv[1:]])


def _setting() -> Setting:
    """The model and data of the flags; its steps are not decided yet."""
    size = None if F.image_size is None else data.parse_image_size(F.image_size)
    if size is None and F.data.startswith("folder:"):
        size = models.default_image_size(F.model)
    source = data.open_data(F.data, eval_fraction=F.eval_fraction, image_size=size)
    job = Job(
        model=F.model,
        head=F.head,
        data=F.data,
        data_sha256=source.fingerprint(),
        eval_fraction=F.eval_fraction,
        train_examples=_examples(F.train_examples, _TRAIN_EXAMPLES, len(source.train)),
        eval_examples=_examples(F.eval_examples, _EVAL_EXAMPLES, len(source.eval)),
        image_size=size,
        loss=F.loss,
        precision=F.precision,
        weights=F.weights,
        weights_sha256="",
        images=None,
        batch_size=F.batch_size,
        micro_batches=F.micro_batches,
        steps=1,
        eval_every=1,
        learning_rate=F.learning_rate,
        seed=F.seed,
        versions=host.versions(),
    )
    return Setting(job, choose(job, source))


def _examples(asked: int | None, usual: int, count: int) -> int | None:
    """How many are used: what is asked for, else as many as usual; None for all."""
    if asked is None:
        return usual if count > usual else None
    return asked or None


def _steps(setting: Setting) -> int:
    if F.steps is not None:
        return int(F.steps)
    if F.epochs is not None:
        return max(1, round(F.epochs * setting.batches.per_epoch))
    steps = _KERAS_STEPS if setting.keras else _STEPS
    return steps // 2 if F.quick else steps


def _strategies(known: ModelStrategies) -> tuple[list[Strategy], dict[str, str]]:
    """What is compared; and name -> why, of what this model does not have."""
    own = [f"train={F.train}"] if F.train is not None else []
    if F.strategies:
        asked = split(F.strategies)
        if own and any(item.partition("=")[0] == "train" for item in asked):
            raise StudyError(f"train={F.train!r}: --strategies has one of that name too")
        found: list[Strategy] = []
        own = asked + own
    elif F.quick:
        found = []
        quick = ("head", *(f"last_{n}" for n in known.ladder[:2][-1:]), "bias", "full")
        own = [name for name in known.names() if name in quick] + own
    else:
        found = known.usual()
    unmatched: dict[str, str] = {}
    for text in own:
        try:
            found.append(known.strategy(text))
        except FilterError as error:
            if not F.skip_unmatched:
                raise FilterError(f"{error}\n(--skip_unmatched leaves such strategies out)") from None
            unmatched[text.partition("=")[0]] = str(error)
    if not found:
        raise StudyError(f"strategies={','.join(F.strategies)!r}: each of them matches nothing on this model")
    return found, unmatched


def _runners(setting: Setting) -> tuple[list[str], dict[str, str]]:
    """Who runs; and runner -> why, of those that cannot."""
    for name in F.runners:
        if name not in RUNNERS:
            raise StudyError(f"runners={name!r}: known are {', '.join(RUNNERS)}{nearest(name, list(RUNNERS))}")
        if F.runners.count(name) > 1:
            raise StudyError(f"runners={','.join(F.runners)!r}: {name} is there twice")
    unable = {name: why for name in F.runners or RUNNERS if (why := why_not(name, setting)) is not None}
    if F.runners and unable:
        name, why = next(iter(unable.items()))
        raise StudyError(f"runners={name!r}: it cannot run this: {why}")
    able = [name for name in F.runners or RUNNERS if name not in unable]
    if F.quick and not F.runners:
        third = next((name for name in ("v1_var_list", "keras_fit") if name in able), None)
        able = [*ENGINE_RUNNERS, *([third] if third else [])]
    return able, unable


def _check_histograms(plan: Plan) -> None:
    if not F.histograms:
        return
    if not set(plan.runners) & set(ENGINE_RUNNERS):
        raise StudyError(f"histograms: they are of the runners {' and '.join(ENGINE_RUNNERS)}; --runners has neither")
    for package in ("tensorboard", "matplotlib"):
        try:
            __import__(package)
        except ImportError:
            raise InputError(f"histograms: the package {package} is missing (extra `report`)") from None


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object; None when there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def described(plan: Plan) -> None:
    """Prints what will be done."""
    job, source = plan.job, plan.setting.source
    print(
        f"model:   {job.model}, {plan.setting.variables.parameters:,} parameters in {len(plan.setting.variables)} variables"
    )
    for note in plan.setting.model.notes:
        print(f"         {note}")
    print(f"data:    {source.name}, {len(source.train)} train, {len(source.eval)} evaluation examples")
    print(
        f"each:    {job.steps} steps of {job.batch_size}, adam at {job.learning_rate:g}, evaluated every {job.eval_every}"
    )
    print(f"compare: {', '.join(strategy.name for strategy in plan.strategies)}")
    print(f"by:      {', '.join(plan.runners)}")
    for line in once(plan.left_out):
        print(f"without: {line}")


def once(left_out: Sequence[Mapping[str, str]]) -> list[str]:
    """What is left out, a line for each reason."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in left_out:
        strategies, runners = found.setdefault(row["reason"], ({}, {}))
        strategies[row["strategy"]] = runners[row["runner"]] = None
    return [f"{', '.join(runners)} on {', '.join(strategies)}: {why}" for why, (strategies, runners) in found.items()]
