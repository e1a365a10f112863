"""The runners of benchmark_distribution: equal steps of the engine, without a strategy and on the devices of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.host import import_tensorflow
from engine.seeds import example_seeds

LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class ReplicaJob:
    """A step and the devices that share it.

    Attributes:
        model, image_size, classes, batch_size, micro_batch_size, train, seed: as the flags of benchmark_distribution.
        devices: the number of devices of a MirroredStrategy; 0 for a step without a strategy.
    """

    model: str
    image_size: int
    classes: int
    batch_size: int
    micro_batch_size: int
    train: str
    seed: int
    devices: int


class Replicas:
    """TrainStep with AdamW on one random batch, on the CPU alone; it must be the first to use TensorFlow in its process."""

    def __init__(self, job: ReplicaJob) -> None:
        tf = import_tensorflow(start=False)
        if tf.config.get_visible_devices("GPU"):
            tf.config.set_visible_devices([], "GPU")
        if job.devices > 1:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * job.devices)
        from engine import models, select
        from engine.training import losses, optimizers
        from engine.training.step import TrainStep

        shape = (job.image_size, job.image_size, 3)
        built = models.build_model(job.model, image_shape=shape, outputs=job.classes, seed=job.seed)
        self.selection = select(built.network, job.train, statistics=built.statistics)
        names = [f"/cpu:{number}" for number in range(job.devices)]
        self.step = TrainStep(
            losses.supervised_loss(built.network),
            optimizers.AdamW(),
            seed=job.seed,
            micro_batch_size=job.micro_batch_size or None,
            strategy=tf.distribute.MirroredStrategy(names) if names else None,
        )
        rng = np.random.default_rng(job.seed)
        self.batch = {
            "image": tf.constant(rng.standard_normal((job.batch_size, *shape), np.float32)),
            "label": tf.constant(rng.integers(0, built.outputs, job.batch_size, np.int32)),
            "seeds": tf.constant(example_seeds(job.seed, 0, np.arange(job.batch_size))),
        }

    def train_step(self) -> float:
        return float(self.step(self.selection, self.batch, learning_rate=LEARNING_RATE).loss)

    def facts(self) -> dict[str, Any]:
        """What is trained, what a replica exchanges in a step as counted in its graph, and what it should."""
        from engine.training.communication import expect_communication

        return {
            "trained_parameters": self.selection.trained_parameters,
            "communication": self.step.communication(self.selection, self.batch).to_json(),
            "expected_communication": expect_communication(self.selection).to_json(),
        }
