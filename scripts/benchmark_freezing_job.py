"""What benchmark_freezing runs: the job that all runs share, one run of it, and what a process needs to do it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.training import models as v1_models
from engine import data, models, porting
from engine.data import order
from engine.data.source import check_labels
from engine.errors import InputError
from engine.files import Npz, write_npz
from engine.selection.selection import select
from engine.selection.variables import is_keras, name_variables
from engine.training import losses, optimizers, precision, schedules
from engine.training.loop import Stage
from engine.training.phases import Phase

ENGINE_RUNNERS = ("engine", "engine_cached")
V1_RUNNERS = ("v1_trainable", "v1_stop_gradient", "v1_var_list")
_EXAMPLES = "examples.npz"
RUNNERS = (*ENGINE_RUNNERS, "keras_fit", *V1_RUNNERS)


class StudyError(InputError):
    """A study that cannot be done as asked."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all runs share; kept in job.json, and not to be contradicted by whoever goes on with a study.

    Attributes:
        model, head, data, eval_fraction, image_size, loss, precision: as in flags.
        train_examples, eval_examples: how many are used; None is all.
        data_sha256: fingerprint of the data.
        weights: as in the flag; weights_sha256: of the variables that every run starts from.
        images: what the model wants its images to be, by a name of models.IMAGES; None for the model's own.
        batch_size: examples per step; micro_batches: parts of one.
        steps: of a run.
        eval_every: steps between evaluations.
        learning_rate: constant; seed: of the order of the data.
        versions: of Python and the libraries.
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

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        size = value["image_size"]
        return cls(**{**value, "image_size": None if size is None else tuple(size)})

    @property
    def micro_batch_size(self) -> int | None:
        return None if self.micro_batches == 1 else -(-self.batch_size // self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study, as its process gets it in JSON.

    Attributes:
        out: folder of the study.
        strategy, runner, repeat: which run; repeats count from 1.
        phases: fields of each engine.training.phases.Phase.
        check_numerics, histograms: as in flags.
    """

    out: str
    strategy: str
    runner: str
    repeat: int
    phases: list[dict[str, Any]]
    check_numerics: bool = False
    histograms: bool = False

    @property
    def file(self) -> pathlib.Path:
        """Where its result is kept."""
        return pathlib.Path(self.out) / "runs" / f"{self.strategy}-{self.runner}-{self.repeat}.json"

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def choose(job: Job, source: data.Source) -> data.Source:
    """The examples that a job's runs use, of the source that they come from.

    Raises:
        StudyError: fewer than 1, or more than there are.
    """

    def taken(name: str, part: data.Part, wanted: int | None) -> data.Part:
        if wanted is None:
            return part
        if not 1 <= wanted <= len(part):
            kind = "training" if name == "train" else "evaluation"
            raise StudyError(f"{name}_examples={wanted}: {job.data} has {len(part)} {kind} examples")
        return part.take(np.sort(order.fixed_permutation(len(part))[:wanted]))

    return dataclasses.replace(
        source,
        train=taken("train", source.train, job.train_examples),
        eval=taken("eval", source.eval, job.eval_examples),
    )


def keep_examples(out: pathlib.Path, source: data.Source) -> None:
    """Keeps a study's examples in its folder, so that its runs need neither read nor decode the others.

    What has more bytes than a source keeps in memory is not kept: runs open the source itself.
    """
    parts = {"train": source.train, "val": source.eval}
    each = math.prod(source.image_shape) * source.train.image_dtype.itemsize
    if sum(map(len, parts.values())) * each > data.IMAGE_CACHE:
        return
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        read = part.read(np.arange(len(part)))
        arrays |= {f"{name}_images": read["image"], f"{name}_labels": read["label"]}
    if source.classes:
        arrays["class_names"] = np.array(source.classes)
    write_npz(out / _EXAMPLES, arrays.items())


def examples(job: Job, out: pathlib.Path) -> data.Source:
    """The examples of a study in this folder.

    Raises:
        InputError: as the sources.
    """
    if (out / _EXAMPLES).exists():
        return dataclasses.replace(data.open_data(f"npz:{out / _EXAMPLES}"), name=job.data)
    return choose(job, data.open_data(job.data, eval_fraction=job.eval_fraction, image_size=job.image_size))


class Setting:
    """The job's model and rules on its examples, with whatever values its variables were built with.

    Raises:
        InputError: as the rooms that make them.
    """

    def __init__(self, job: Job, source: data.Source) -> None:
        self.job, self.source = job, source
        self.numbers = precision.parse(job.precision)
        self.model = models.build_model(
            job.model,
            image_shape=self.source.image_shape,
            outputs=self.source.outputs(job.loss),
            head=job.head,
            logits=job.loss != "mse",
            seed=job.seed,
            dtype=self.numbers.variables,
            compute=self.numbers.compute,
        )
        self._check_labels()
        self.network = self.model.network
        self.variables = name_variables(self.network)
        self.loss_fn = losses.supervised_loss(self.network, job.loss)
        self.optimizer = optimizers.by_name("adam")
        normalise = self.model.normalise
        if job.images is not None:
            normalise = models.images_as(job.images, self.source.image_shape)
        self.batches = data.TrainBatches(
            self.source.train, batch_size=job.batch_size, seed=job.seed, normalise=normalise
        )
        size = job.micro_batch_size or max(job.batch_size, 64)
        self.evaluation = data.EvalBatches(self.source.eval, batch_size=size, normalise=normalise)

    def _check_labels(self) -> None:
        """The labels must be classes, or columns, that the model has."""
        source, outputs = self.source, self.model.outputs
        if self.job.loss == "softmax":
            for name, part in (("train", source.train), ("eval", source.eval)):
                check_labels(source.name, f"{name}_labels", part.labels, outputs)
        elif outputs != (wanted := source.outputs(self.job.loss)):
            raise StudyError(
                f"model={self.job.model!r}: it has {outputs} outputs; loss {self.job.loss} on {source.name} wants {wanted}"
            )

    @property
    def keras(self) -> bool:
        return is_keras(self.network)

    def stages(self, phases: Iterable[Phase]) -> list[Stage]:
        """Phases with their selections; one optimizer rule and one learning rate for all."""
        return [
            Stage(
                phase=phase,
                selection=select(self.variables, phase.train, statistics=self.model.statistics),
                optimizer=self.optimizer,
                schedule=schedules.parse("constant"),
                learning_rate=self.job.learning_rate,
            )
            for phase in phases
        ]

    def start(self, weights: pathlib.Path) -> None:
        """Gives every variable the value that all runs start from."""
        by_path = self.variables.by_path()
        with Npz(weights) as file:
            for path in file.names():
                by_path[path].variable.assign(file.read(path))
        self.variables.refresh()

    def loss_scale(self) -> precision.LossScale | None:
        return precision.LossScale() if self.numbers.scaled else None


def why_not(runner: str, setting: Setting) -> str | None:
    """Why a runner cannot run a job, whatever the strategy; None where it can."""
    job = setting.job
    if runner in V1_RUNNERS:
        try:
            v1_models.check_name(job.model)
        except v1_models.ModelError as error:
            return str(error)
    if runner == "keras_fit":
        if not setting.keras:
            return f"{job.model} is no Keras model"
        if job.micro_batches > 1:
            return f"micro_batches={job.micro_batches}: Keras' accumulation never applies an incomplete last group"
    return None


def load(setting: Setting, weights: str) -> tuple[str, str | None]:
    """Loads the weights that a flag names into a setting's model.

    Returns:
        What was done, in words; and what the images must be then (``Job.images``).

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    model, spec = setting.model, setting.job.model
    if model.load is not None and (said := model.load(weights)) is not None:
        return said, None
    if weights == "none":
        return "random", None
    if weights == "auto" and model.shipped_weights is None:
        return f"random (none ship with {spec})", None
    file = model.shipped_weights if weights == "auto" else pathlib.Path(weights)
    assert file is not None
    try:
        ledger = porting.load(model.network, file)
    except porting.PortError as error:
        hint = f" They are for {model.shipped_for}; --weights=none starts from random ones." * (weights == "auto")
        raise InputError(f"weights={weights!r}: {error}{hint}") from None
    setting.variables.refresh()
    return f"{file.name}, {ledger.summary()}", None if model.images_chosen else ledger.images
