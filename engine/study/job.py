"""What the processes of a study share: the job, the runs, the examples, and the task that all runs start from."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import data
from engine.data import order
from engine.data.batch_names import WEIGHT
from engine.data.part import number_classes
from engine.errors import InputError
from engine.files import Npz, write_npz
from engine.reading import read_file
from engine.recipes.task import Task, find_tokenizer
from engine.selection.selection import select
from engine.selection.variables import is_keras
from engine.study.results import FORMAT
from engine.study.strategies import OPTIMIZER
from engine.training import optimizers, schedules
from engine.training.loop import Stage
from engine.training.phases import Phase

_EXAMPLES = "examples.npz"
_LARGEST = 1 << 28  # bytes of a record


class StudyError(InputError):
    """A study that cannot be run as configured."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all runs of a study share. It is kept in job.json; whoever continues the study must not contradict it.

    Attributes:
        image_size: (height, width) that images are resized to; None leaves them as they are.
        train_examples, eval_examples: the number of examples used; None uses all.
        data_sha256, weights_sha256: the digests of the data, and of the variables that every run starts from.
        images: the preprocessing that the weights expect (``engine.models.IMAGES``); None uses the model's own.
        steps, eval_every: the number of steps of a run, and between evaluations.
        versions: the versions of Python and the libraries.
        quality: how a quality study searches and judges; None for a study of cost alone.

    The others are as in ``StudyConfig``.
    """

    model: str
    head: str | None
    data: str
    data_sha256: str
    eval_fraction: float | None
    train_examples: int | None
    eval_examples: int | None
    image_size: tuple[int, int] | None
    loss: str
    precision: str
    weights: str
    weights_sha256: str
    images: str | None
    batch_size: int
    micro_batches: int
    steps: int
    eval_every: int
    learning_rate: float
    seed: int
    versions: Mapping[str, str]
    quality: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        size = value["image_size"]
        return cls(**{**value, "image_size": None if size is None else tuple(size)})

    @property
    def micro_batch_size(self) -> int | None:
        return None if self.micro_batches == 1 else -(-self.batch_size // self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study in a folder, as its process receives it.

    Attributes:
        repeat: which repeat this is, from 1.
        target: the class of the runner, as ``module:class``.
        phases: the fields of each ``engine.training.phases.Phase``.
        optimizer, adapt: as in ``Strategy``.
    """

    out: str
    strategy: str
    runner: str
    repeat: int
    target: str
    phases: list[dict[str, Any]]
    optimizer: str = OPTIMIZER
    adapt: str | None = None
    check_numerics: bool = False
    histograms: bool = False

    @property
    def file(self) -> pathlib.Path:
        """Where its result is kept."""
        return pathlib.Path(self.out) / "runs" / f"{self.strategy}-{self.runner}-{self.repeat}.json"

    def identity(self) -> dict[str, Any]:
        """The keys with which its file begins."""
        names = ["strategy", "runner", "repeat", "phases", *(["optimizer"] if self.optimizer != OPTIMIZER else [])]
        names += ["adapt"] if self.adapt is not None else []
        return {"format": FORMAT} | {name: getattr(self, name) for name in names}


def read_record(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object that a study wrote; None when none can be read, a StudyError when it has another format."""
    try:
        found = json.loads(read_file(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if found.get("format") != FORMAT:
        has = f"format {found['format']!r}" if "format" in found else "an older format, without a number"
        raise StudyError(
            f"{path}: the file has {has}; expected format {FORMAT}. Another version of Frostline wrote this study, so it "
            "cannot be continued or mixed with new runs; choose another out="
        )
    return found


def choose_examples(source: data.Source, *, train: int | None, evaluation: int | None) -> data.Source:
    """A source with only some of its examples, chosen by a fixed permutation; None keeps all.

    Raises StudyError if a number is below 1, or the source has fewer examples.
    """

    def take(name: str, part: data.Part, count: int | None) -> data.Part:
        if count is None:
            return part
        if not 1 <= count <= len(part):
            kind = "training" if name == "train" else "evaluation"
            raise StudyError(f"{name}_examples={count}: {source.name} has {len(part)} {kind} examples")
        return part.take(np.sort(order.fixed_permutation(len(part))[:count]))

    return dataclasses.replace(
        source, train=take("train", source.train, train), eval=take("eval", source.eval, evaluation)
    )


def keep_examples(out: pathlib.Path, source: data.Source) -> None:
    """Keeps a study's examples in its folder, so that its runs need not read and decode all the others.

    Examples with more bytes than a source keeps in memory are not kept, nor others than images: runs open the source itself.
    """
    if len(source.train.input_specs) > 1 or len(source.image_shape) != 3 or source.train.labels.ndim > 2:
        return
    parts = {"train": source.train, "val": source.eval}
    if source.tasks or any(part.columns.keys() - {WEIGHT} for part in parts.values()):
        return
    each = math.prod(source.image_shape) * source.train.image_dtype.itemsize
    if sum(map(len, parts.values())) * each > data.IMAGE_CACHE:
        return
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        read = part.read(np.arange(len(part)))
        arrays |= {f"{name}_images": read["image"], f"{name}_labels": read["label"]}
        if WEIGHT in read:
            arrays[f"{name}_weights"] = read[WEIGHT]
    if source.classes:
        arrays["class_names"] = np.array(source.classes)
    write_npz(out / _EXAMPLES, arrays.items())


def open_examples(job: Job, out: pathlib.Path) -> data.Source:
    """The examples of the study in a folder; raises as ``engine.open_data``."""
    if (out / _EXAMPLES).exists():
        source = data.open_data(f"npz:{out / _EXAMPLES}", say=lambda line: None)  # the study has told them
        named = source.classes != number_classes(len(source.classes))  # the file names classes in any case
        return dataclasses.replace(source, name=job.data, named=named)
    source = data.open_data(
        job.data,
        eval_fraction=job.eval_fraction,
        image_size=job.image_size,
        tokenizer=find_tokenizer(job.model, job.data, None),
    )
    return choose_examples(source, train=job.train_examples, evaluation=job.eval_examples)


class Setting:
    """A job with its task: what every run trains, by which optimizer, and the batches of its training and evaluation."""

    def __init__(self, job: Job, task: Task) -> None:
        self.job, self.task = job, task
        self.optimizer = optimizers.build_optimizer(OPTIMIZER)
        self.batches = task.train_batches()
        self.evaluation = task.eval_batches(batch_size=job.micro_batch_size)

    @classmethod
    def open(cls, job: Job, out: pathlib.Path, *, adapt: str | None = None) -> Setting:
        """The setting of the study in a folder, with the weights that all its runs start from; raises as ``Task.open``."""
        task = Task.open(
            data=open_examples(job, out),
            model=job.model,
            weights=None,
            head=job.head,
            loss=job.loss,
            precision=job.precision,
            seed=job.seed,
            batch_size=job.batch_size,
            adapt=adapt,
        ).with_images(job.images)
        by_path = task.variables.by_path()
        with Npz(out / "weights.npz") as file:
            for path in file.names():
                by_path[path].variable.assign(file.read(path))
        task.variables.refresh()
        return cls(job, task if adapt is None else task.with_adapters())

    @property
    def is_keras(self) -> bool:
        return is_keras(self.task.model.network)

    def stages(self, phases: Iterable[Phase], *, optimizer: str = OPTIMIZER) -> list[Stage]:
        """Phases with their selections, the optimizer of their strategy, and the learning rate of the job or their own."""
        rule = optimizers.build_optimizer(optimizer)
        return [
            Stage(
                phase=phase,
                selection=select(self.task.variables, phase.train, statistics=self.task.model.statistics),
                optimizer=dataclasses.replace(rule, layer_decay=phase.layer_decay),
                schedule=schedules.parse("constant"),
                learning_rate=phase.learning_rate or self.job.learning_rate,
            )
            for phase in phases
        ]
