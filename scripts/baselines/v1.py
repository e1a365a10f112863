"""The runners of compare_v1 and benchmark_v1: the engine, and the three ways to freeze in TF1, on the same job."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.training import leaks
from compat_v1.training import models as v1_models
from compat_v1.training.freezing import METHODS, Freezing
from compat_v1.training.session_loop import SessionLoop
from compat_v1.training.train_op import check_form
from engine.files import PathLike, write_npz
from engine.host import peak_rss_bytes, quantiles
from engine.recipes.task import Task
from engine.seeds import seed_global_generators
from engine.selection.proof import weights_sha256
from engine.selection.selection import Selection, select
from engine.training import losses, optimizers
from engine.training.step import TrainStep

RUNNERS = ("engine", *(f"v1_{method}" for method in METHODS))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all runners do.

    Attributes:
        weights: an .npz file of every variable, from which each runner starts.
        images: the preprocessing that the weights expect (``engine.models.IMAGES``); None uses the model's own.

    The others are as in the flags.
    """

    model: str
    data: str
    loss: str
    train: str
    optimizer: str
    precision: str
    weights: str
    images: str | None
    batch_size: int
    micro_batches: int
    steps: int
    learning_rate: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def micro_batch_size(self) -> int | None:
        return None if self.micro_batches == 1 else -(-self.batch_size // self.micro_batches)


class Setting:
    """A job with its task and its selection.

    ``load`` names the weights to load; by default none are, because runners assign the job's. Raises InputError as
    ``Task.open`` does, or if the model or the optimizer has no TF1 form.
    """

    def __init__(self, job: Job, *, load: PathLike | None = None) -> None:
        self.job = job
        v1_models.check_name(job.model)
        self.task = Task.open(
            data=job.data,
            model=job.model,
            weights=load,
            loss=job.loss,
            precision=job.precision,
            seed=job.seed,
            batch_size=job.batch_size,
        )
        if job.images is not None:
            self.task = self.task.with_images(job.images)
        self.network = self.task.model.network
        self.selection: Selection = select(self.task.variables, job.train, statistics=self.task.model.statistics)
        self.batches = self.task.train_batches()
        self.optimizer = optimizers.build_optimizer(job.optimizer)
        check_form(self.optimizer)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and value of each variable that the job starts from."""
        with np.load(self.job.weights, allow_pickle=False) as archive:
            for path in archive.files:
                yield path, archive[path]

    def assign_weights(self) -> None:
        """Gives every variable the value that the job starts from."""
        by_path = self.task.variables.by_path()
        for path, value in self.weights():
            by_path[path].variable.assign(value)


class EngineRunner:
    """TrainStep on a job."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.step = TrainStep(
            setting.task.loss_fn,
            setting.optimizer,
            seed=setting.job.seed,
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.task.loss_scale(),
        )
        setting.assign_weights()

    def train(self, batch: Mapping[str, Any]) -> float:
        rate = self.setting.job.learning_rate
        return float(self.step(self.setting.selection, batch, learning_rate=rate).loss)

    def facts(self) -> dict[str, Any]:
        """In place of TF1's lists, what the tape watches; checkpoints hold every variable, whatever is trained."""
        selection = self.setting.selection
        trained = [entry.path for entry in selection.trained]
        return {
            "weights_sha256": weights_sha256((e.path, e.variable.numpy()) for e in selection.variables),
            "trainable_collection": trained,
            "in_compute_gradients": trained,
            "slots": [f"{path}/{name}" for path, slots in self.step.slots.values.items() for name in slots],
            "saver_would_lose": [],
            "backward_ops": len(self.step.micro_batch(selection, self.setting.batches.at(0)).backward),
        }

    def weights(self) -> dict[str, np.ndarray]:
        return {entry.path: entry.variable.numpy() for entry in self.setting.selection.variables}

    def close(self) -> None:
        pass


class V1Runner:
    """A SessionLoop that freezes by one method, on a job."""

    def __init__(self, setting: Setting, method: str) -> None:
        self.setting = setting
        network = v1_models.translate_network(setting.network, setting.selection)
        self.loop = SessionLoop(
            losses.supervised_loss(network, setting.job.loss),
            Freezing(method, setting.selection),
            setting.optimizer,
            _arrays(setting.batches.at(0)),
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.task.loss_scale(),
            seed=setting.job.seed,
        )
        self.loop.assign(dict(setting.weights()))

    def train(self, batch: Mapping[str, Any]) -> float:
        return float(self.loop.step(_arrays(batch), learning_rate=self.setting.job.learning_rate).loss)

    def facts(self) -> dict[str, Any]:
        collection = [variable.op.name for variable in self.loop.built.graph.get_collection("trainable_variables")]
        return {
            "weights_sha256": weights_sha256(self.loop.values()),
            "trainable_collection": collection,
            "in_compute_gradients": self.loop.built.gradients.listed,
            "slots": self.loop.built.slots,
            "saver_would_lose": [path for path in self.loop.built.variables if path not in collection],
            "backward_ops": self.loop.built.backward_ops,
        }

    def weights(self) -> dict[str, np.ndarray]:
        return dict(self.loop.values())

    def close(self) -> None:
        self.loop.close()


def build_runner(runner: str, setting: Setting) -> EngineRunner | V1Runner:
    return EngineRunner(setting) if runner == "engine" else V1Runner(setting, runner.removeprefix("v1_"))


def _arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}


def train(argument: dict[str, Any]) -> dict[str, Any]:
    """Trains a ``job`` by a ``runner``, writes the weights next to those it started from, and reports."""
    setting, name = _open(argument["job"]), argument["runner"]
    runner = build_runner(name, setting)
    losses_seen, seconds = [], []
    for number in range(setting.job.steps):
        batch = setting.batches.at(number)
        start = time.perf_counter()
        losses_seen.append(runner.train(batch))
        seconds.append(time.perf_counter() - start)
    write_npz(pathlib.Path(setting.job.weights).parent / f"{name}.npz", runner.weights().items())
    facts = runner.facts()
    runner.close()
    step_ms = quantiles([1e3 * value for value in seconds[1:]])
    return {"losses": losses_seen, **facts, "step_ms": step_ms, "peak_rss_bytes": peak_rss_bytes()}


def measure_leaks(argument: dict[str, Any]) -> dict[str, Any]:
    """Measures, for a ``job``, what each method of TF1 lets through."""
    setting = _open(argument["job"])
    setting.assign_weights()
    batch = _arrays(setting.batches.at(0))
    seeds = batch.pop("seeds")
    batch.pop("index")
    subject = leaks.Subject(setting.network, setting.selection, batch, seeds, setting.job.loss)
    return {"leaks": [leak._asdict() for leak in leaks.measure_leaks(subject)]}


def _open(job: dict[str, Any]) -> Setting:
    seed_global_generators(job["seed"])
    tf.config.experimental.enable_op_determinism()
    return Setting(Job(**job))
