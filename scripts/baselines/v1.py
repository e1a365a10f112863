"""The runners of compare_v1 and benchmark_v1: the engine, and TF1's three ways to freeze, on one job each."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.training import models as v1_models
from compat_v1.training.freezing import METHODS, Freezing
from compat_v1.training.session_loop import SessionLoop
from engine import data, models
from engine.selection.proof import weights_sha256
from engine.selection.selection import Selection, select
from engine.training import losses, optimizers, precision
from engine.training.step import TrainStep

RUNNERS = ("engine", *(f"v1_{method}" for method in METHODS))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all runners do, as a process gets it in JSON on its standard input.

    Attributes:
        model, data, loss, train, optimizer, precision: as in flags.
        weights: an .npz file of every variable: what each runner starts from.
        images: what the model wants its images to be, by a name of models.IMAGES, or None for the model's own.
        batch_size: examples per step.
        micro_batches: parts of a step.
        steps: steps.
        learning_rate, seed: of all.
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

    @classmethod
    def read(cls) -> Job:
        """The job on standard input."""
        return cls(**json.load(sys.stdin))

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def micro_batch_size(self) -> int | None:
        return None if self.micro_batches == 1 else -(-self.batch_size // self.micro_batches)


class Setting:
    """The job's data, network and selection.

    Raises:
        InputError: as the rooms that make them.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        v1_models.check_name(job.model)
        self.numbers = precision.parse(job.precision)
        source = data.open_data(job.data)
        model = models.build_model(
            job.model,
            image_shape=source.image_shape,
            outputs=source.outputs(job.loss),
            logits=job.loss != "mse",
            seed=job.seed,
            dtype=self.numbers.variables,
            compute=self.numbers.compute,
        )
        self.model, self.source = model, source
        self.network = model.network
        self.selection: Selection = select(self.network, job.train, statistics=model.statistics)
        normalise = model.normalise if job.images is None else models.images_as(job.images, source.image_shape)
        self.batches = data.TrainBatches(source.train, batch_size=job.batch_size, seed=job.seed, normalise=normalise)
        self.optimizer = optimizers.by_name(job.optimizer)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        with np.load(self.job.weights, allow_pickle=False) as archive:
            for path in archive.files:
                yield path, archive[path]

    def loss_scale(self) -> precision.LossScale | None:
        return precision.LossScale() if self.numbers.scaled else None


class EngineRunner:
    """TrainStep on the job."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.step = TrainStep(
            losses.supervised_loss(setting.network, setting.job.loss),
            setting.optimizer,
            seed=setting.job.seed,
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.loss_scale(),
        )
        by_path = setting.selection.variables.by_path()
        for path, value in setting.weights():
            by_path[path].variable.assign(value)

    def train(self, batch: Mapping[str, Any]) -> float:
        rate = self.setting.job.learning_rate
        return float(self.step(self.setting.selection, batch, learning_rate=rate).loss)

    def facts(self) -> dict[str, Any]:
        """What the tape watches stands for TF1's lists; checkpoints hold every variable, whatever trains."""
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
    """A SessionLoop with one method on the job."""

    def __init__(self, setting: Setting, method: str) -> None:
        self.setting = setting
        network = v1_models.of(setting.network, setting.selection)
        self.loop = SessionLoop(
            losses.supervised_loss(network, setting.job.loss),
            Freezing(method, setting.selection),
            setting.optimizer,
            _arrays(setting.batches.at(0)),
            micro_batch_size=setting.job.micro_batch_size,
            loss_scale=setting.loss_scale(),
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


def make(runner: str, setting: Setting) -> EngineRunner | V1Runner:
    return EngineRunner(setting) if runner == "engine" else V1Runner(setting, runner.removeprefix("v1_"))


def _arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}
