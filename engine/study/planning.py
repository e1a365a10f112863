"""From a configuration to a plan: the job, the strategies, the runners, and which runs are done in which order."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from engine import host, locks, writing
from engine.data.source import OF_FILES
from engine.errors import InputError
from engine.files import write_json, write_npz
from engine.locks import InUseError
from engine.models.adapters.language import AdapterError
from engine.recipes.task import Task
from engine.seeds import seed_global_generators
from engine.selection.filters import FilterError
from engine.selection.proof import weights_sha256
from engine.selection.variables import is_keras
from engine.study import registry, results
from engine.study.config import StudyConfig
from engine.study.job import Job, Run, Setting, StudyError, choose_examples, keep_examples, read_record
from engine.study.quality.planning import SHARED, describe_quality, plan_quality
from engine.study.quality.run import QualityPlan
from engine.study.registry import ENGINE_RUNNERS
from engine.study.strategies import WISE_FT, ModelStrategies, Strategy, split_items

_STEPS, _KERAS_STEPS, _TRAIN_EXAMPLES, _EVAL_EXAMPLES = 21, 12, 512, 192
_FILES = re.compile(r"(job|machine|results|study)\.json|results\.csv|report\.html|(weights|examples)\.npz")
_RUN_FILES, _PICTURES = re.compile(r".+\.json"), re.compile(r".+\.png")
_QUALITY_STEPS, _QUALITY_KERAS_STEPS, _QUALITY_EVALUATIONS = 256, 64, 4
_QUALITY_STRATEGIES = ("lp_ft", "lora", "wise_ft")  # run by default besides those that are fixed selections
_EVALUATIONS = 3  # after the first one; as many as `gradual` has phases, each of which ends with one


@dataclass
class Plan:
    """Everything that a study will do.

    Attributes:
        command: the command, or the Python call, that repeats the study in the folder ``out``.
        setting: the job and its task, with the values that every run starts from.
        strategies, runners: what is compared: the strategies, and the names of the runners.
        quality: what is searched and judged; None in a study of cost alone.
        runs: all runs of cost mode, in the order in which they are done.
        left_out: the strategy, runner and reason of each combination that is not run.
    """

    config: StudyConfig
    command: str
    out: pathlib.Path
    setting: Setting
    strategies: list[Strategy]
    runners: list[str]
    quality: QualityPlan | None = None
    runs: list[Run] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def job(self) -> Job:
        return self.setting.job

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(strategy, runner) of cost mode, strategy by strategy."""
        left_out = {(row["strategy"], row["runner"]) for row in self.left_out}
        every = [(strategy.name, runner) for strategy in self.strategies for runner in self.runners]
        return [pair for pair in every if pair not in left_out]

    def finished(self) -> dict[pathlib.Path, dict[str, Any]]:
        """The results of earlier invocations, by file. Failed runs, and disturbed ones if so configured, are not in it.

        Raises StudyError if a strategy of the same name trained something else, or a file has another format.
        """
        found = {}
        for run in self.runs:
            kept = read_record(run.file)
            if kept is None or kept.get("failed") or (self.config.redo_disturbed and results.is_disturbed(kept)):
                continue
            own = json.loads(json.dumps(run.identity()))
            if any(kept.get(name) != own.get(name) for name in ("phases", "optimizer", "adapt")):
                raise StudyError(
                    f"out={self.out}: it holds runs of a strategy {run.strategy!r} that trained "
                    f"{[phase['train'] for phase in kept.get('phases', [])]}; give this one another name"
                )
            found[run.file] = kept
        return found

    def others(self) -> list[dict[str, Any]]:
        """The finished runs in the folder that are not part of this plan; their rows stay."""
        mine = {run.file for run in self.runs}
        kept = [read_record(path) for path in sorted((self.out / "runs").glob("*.json")) if path not in mine]
        return [run for run in kept if run is not None and run.get("done")]

    def prepare(self) -> None:
        """Creates the folder, or checks that it holds this very study; raises StudyError if it holds anything else."""
        self._hold_folder()
        for folder, names in (
            (self.out, _FILES),
            (self.out / "runs", _RUN_FILES),
            (self.out / "histograms", _PICTURES),
        ):
            if not folder.is_symlink():
                writing.sweep(folder, names.fullmatch)
        kept = read_record(self.out / "job.json")
        if kept is None and any(path.name != locks.FOLDER_LOCK for path in self.out.iterdir()):
            raise StudyError(
                f"out={self.out}: it is not the folder of a study (it has no readable job.json), and it is not empty"
            )
        if kept is not None:
            before, now = kept.get("job", {}), self.job.to_json()
            # wherever they lie, files with the same content are the same
            moved = [name for name in ("data", "weights") if before.get(f"{name}_sha256") == now[f"{name}_sha256"]]
            differing = [
                f"  {key}: {before.get(key)!r} in {self.out}, {now.get(key)!r} now"
                for key in dict.fromkeys((*before, *now))
                if before.get(key) != now.get(key) and key not in moved
            ]
            if differing:
                raise StudyError(
                    f"out={self.out}: it holds another study, which these settings contradict:\n" + "\n".join(differing)
                )
        for left in self.out.glob(".cache-*"):  # from a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        if kept is None:  # first of all, so that a study that is killed from here on can be continued
            write_json(
                self.out / "job.json", {"format": results.FORMAT, "job": self.job.to_json(), "command": self.command}
            )
        (self.out / "runs").mkdir(exist_ok=True)
        if self.runs:  # for their processes
            variables = self.setting.task.variables
            write_npz(self.out / "weights.npz", ((e.path, e.variable.numpy()) for e in variables))
            keep_examples(self.out, self.setting.task.source)

    def close(self) -> None:
        """Lets other processes use the folder again."""
        self._held.close()

    def _hold_folder(self) -> None:
        """Keeps other processes out of the folder: they would slow down and repeat each other's runs."""
        writing.check_folder(self.out)
        try:
            self._held.enter_context(locks.hold_folder(self.out))
        except InUseError as error:
            raise StudyError(
                f"out={self.out}: another study is running in this folder: {error.holder} is using it"
            ) from None


def build_plan(config: StudyConfig, *, command: str, say: Callable[[str], None] | None = None) -> Plan:
    """Opens data, model and weights, and decides what will be run. Everything is checked before anything runs.

    ``command`` is the command, or the Python call, that repeats the study; ``say`` is called with lines about files that
    are left out and slow progress. Raises InputError if something that the configuration names does not exist or does
    not fit, or if nothing would be run.
    """
    for name in config.runners:
        registry.runner_target(name)
    if config.measures_quality:  # as finetune does
        seed_global_generators(config.seed)
        tf.config.experimental.enable_op_determinism()
    setting = _open_setting(config, say)
    model = setting.task.model
    known = ModelStrategies(setting.task.variables, model.statistics, network=model.network)
    strategies, unmatched = _choose_strategies(config, known)
    runners, unable = _choose_runners(config, setting) if config.measures_cost else ([], {})
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    name = config.model.replace(":", "-").replace("/", "-").split(",")[0]
    out = pathlib.Path(config.out or f"runs/{stamp}-freezing-{name}")
    plan = Plan(config, command, out, setting, strategies, runners)
    plan.left_out = [
        {"strategy": s, "runner": r, "reason": why} for s, why in unmatched.items() for r in runners or ["quality"]
    ]
    plan.left_out += [{"strategy": s.name, "runner": r, "reason": why} for r, why in unable.items() for s in strategies]
    plan.left_out += [
        {"strategy": s.name, "runner": r, "reason": why} for s in strategies for r in runners if (why := _why_not(s, r))
    ]
    if not config.measures_quality and not plan.pairs:
        left = plan.left_out[-1]
        raise StudyError(f"strategies={left['strategy']}: {left['reason']}")
    if config.measures_quality:
        plan.quality = plan_quality(config, setting, strategies, out=out)
    steps, rate = setting.job.steps, setting.job.learning_rate
    phases = {s.name: [dataclasses.asdict(p) for p in s.phases(steps, learning_rate=rate)] for s in strategies}
    by_name = {s.name: s for s in strategies}
    for repeat in range(config.repeat_count):
        turned = len(plan.pairs) * repeat // config.repeat_count  # a machine that slows down hits other runs each time
        for strategy, runner in plan.pairs[turned:] + plan.pairs[:turned]:
            plan.runs.append(
                Run(
                    out=str(plan.out),
                    strategy=strategy,
                    runner=runner,
                    repeat=repeat + 1,
                    target=registry.runner_target(runner),
                    phases=phases[strategy],
                    optimizer=by_name[strategy].optimizer,
                    adapt=by_name[strategy].adapt,
                    check_numerics=config.check_numerics,
                    histograms=config.histograms and runner in ENGINE_RUNNERS and repeat == 0,
                )
            )
    if config.histograms:
        _check_histograms(runners)
    return plan


def _open_setting(config: StudyConfig, say: Callable[[str], None] | None) -> Setting:
    """Data, model and weights, and the job that follows from them."""
    shared = {name: getattr(config, name) for name in SHARED}
    task = Task.open(**shared, image_size=config.image_size, say=say)
    check_comparable(config, task)
    if say is not None and task.weights is not None:
        say(f"weights: {task.weights.text}")
    whole = config.measures_quality  # as finetune trains and evaluates
    train = _count(config.train_examples, None if whole else _TRAIN_EXAMPLES, len(task.source.train))
    evaluation = _count(config.eval_examples, None if whole else _EVAL_EXAMPLES, len(task.source.eval))
    chosen = choose_examples(task.source, train=train, evaluation=evaluation)
    resized = config.image_size is not None or config.data.partition(":")[0] in (*OF_FILES, "tfds")
    resized &= len(chosen.image_shape) == 3
    sha256 = task.source.fingerprint()
    task = dataclasses.replace(task, source=chosen)
    steps = _count_steps(config, task)
    job = Job(
        **shared,
        data_sha256=sha256,
        train_examples=train,
        eval_examples=evaluation,
        image_size=(chosen.image_shape[0], chosen.image_shape[1]) if resized else None,
        weights_sha256=weights_sha256((e.path, e.variable.numpy()) for e in task.variables),
        images=task.images,
        micro_batches=config.micro_batches,
        steps=steps,
        eval_every=config.eval_every or -(-steps // (_QUALITY_EVALUATIONS if whole else _EVALUATIONS)),
        learning_rate=config.learning_rate,
        versions=host.versions(),
        quality=describe_quality(config, chosen) if whole else None,
    )
    return Setting(job, task)


def _why_not(strategy: Strategy, runner: str) -> str | None:
    """Why cost mode does not run a strategy by a runner; None if it does."""
    if strategy.interpolated is not None:
        return f"it averages weights after training, which costs what {strategy.interpolated} costs"
    if strategy.auto_freeze is not None:
        return "it decides its phases while it trains, by evaluations; `frostline finetune --auto_freeze=on` does that"
    if strategy.adapt is not None and runner not in ENGINE_RUNNERS:
        return "it has no adapters"
    return None


def _count(asked: int | None, usual: int | None, count: int) -> int | None:
    """How many examples are used: as many as asked, else as many as usual; None for all."""
    if asked is None:
        return usual if usual is not None and count > usual else None
    return asked or None


def _count_steps(config: StudyConfig, task: Task) -> int:
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, round(config.epochs * task.per_epoch))
    keras = is_keras(task.model.network)
    if config.measures_quality:
        steps = _QUALITY_KERAS_STEPS if keras else _QUALITY_STEPS
        return steps // 4 if config.quick else steps
    steps = _KERAS_STEPS if keras else _STEPS
    return steps // 2 if config.quick else steps


def _choose_strategies(config: StudyConfig, known: ModelStrategies) -> tuple[list[Strategy], dict[str, str]]:
    """The strategies to compare; and, for each that this model does not have, the reason."""
    own = [f"train={config.train}"] if config.train is not None else []
    found: list[Strategy] = []
    if config.strategies:
        asked = split_items(config.strategies)
        if own and any(item.partition("=")[0] == "train" for item in asked):
            raise StudyError(f"train={config.train!r}: strategies has one of that name too")
        own = asked + own
    elif config.quick:
        quick = ("head", *(f"last_{n}" for n in known.ladder[:2][-1:]), "bias", "full")
        own = [name for name in known.names() if name in quick] + own
    elif config.measures_quality:
        found = [strategy for strategy in known.defaults() if not strategy.name.startswith("gradual")]
        own = [name for name in _QUALITY_STRATEGIES if name in known.names()] + own
    else:
        found = known.defaults()
    unmatched: dict[str, str] = {}
    for text in own:
        try:
            base = next((one for one in found if "=" not in text and text == f"{one.name}+{WISE_FT}"), None)
            found.append(known.strategy(text) if base is None else base.averaged(text))
        except (FilterError, AdapterError) as error:
            if not config.skip_unmatched:
                raise type(error)(f"{error}\n(skip_unmatched leaves such strategies out)") from None
            unmatched[text.partition("=")[0]] = str(error)
    if not found:
        raise StudyError(f"strategies={','.join(config.strategies)!r}: none of them matches anything on this model")
    return found, unmatched


def _choose_runners(config: StudyConfig, setting: Setting) -> tuple[list[str], dict[str, str]]:
    """The runners to compare; and, for each that cannot run the job, the reason."""
    names = config.runners or registry.runner_names()
    classes = {name: registry.load_runner(registry.runner_target(name)) for name in names}
    unable = {name: why for name, kind in classes.items() if (why := kind.why_not(setting)) is not None}
    if config.runners and unable:
        name, why = next(iter(unable.items()))
        raise StudyError(f"runners={name!r}: it cannot run this job, because {why}")
    able = [name for name in names if name not in unable]
    if config.quick and not config.runners:
        third = next((name for name in ("v1_var_list", "keras_fit") if name in able), None)
        able = [*ENGINE_RUNNERS, *([third] if third else [])]
    return able, unable


def _check_histograms(runners: Sequence[str]) -> None:
    if not set(runners) & set(ENGINE_RUNNERS):
        raise StudyError(
            f"histograms: only the runners {' and '.join(ENGINE_RUNNERS)} have them, and runners has neither"
        )
    for package in ("tensorboard", "matplotlib"):
        try:
            __import__(package)
        except ImportError:
            raise InputError(f"histograms: the package {package} is missing; install the extra `report`") from None


def summarize_left_out(left_out: Sequence[Mapping[str, str]]) -> list[str]:
    """What is left out, one line for each reason."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in left_out:
        strategies, runners = found.setdefault(row["reason"], ({}, {}))
        strategies[row["strategy"]] = runners[row["runner"]] = None
    return [f"{', '.join(runners)} on {', '.join(strategies)}: {why}" for why, (strategies, runners) in found.items()]


def check_comparable(config: StudyConfig, task: Task) -> None:
    """Raises InputError unless the study can compare strategies on these data."""
    part, name = task.source.train, task.source.name
    if task.source.tasks or part.columns or part.labels.ndim > 2:
        what = "a label for each pixel or several boxes" if part.labels.ndim > 2 else "weights"
        what = "several labels for an example" if task.source.tasks else what
        raise InputError(
            f"data={name}: a study compares strategies by one label for an example, each of which counts the same, and these data have {what}; compare "
            "runs of finetune, whose figures are in run.json"
        )
    specs = part.input_specs
    if config.measures_cost and (len(specs) > 1 or not next(iter(specs.values())).is_image):
        raise InputError(
            f"data={name}, mode={config.mode}: the runners of cost mode take an image, and an example of these data has "
            f"{', '.join(specs)}; give --mode=quality"
        )
