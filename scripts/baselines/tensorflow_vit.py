"""The runners engine (which is measured) and hand (what an expert would write without it), on the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from engine.memory import buffers
from engine.models import vit
from engine.seeds import example_seeds
from engine.selection.selection import select
from engine.selection.variables import name_variables
from engine.study.cost import step_cost
from engine.training import losses, precision, step
from engine.training.optimizers import AdamW

from . import harness
from .harness import Job


def build(job: Job) -> vit.ViT:
    """Builds the job's network with the job's weights."""
    numbers = precision.parse(job.precision)
    config = vit.Config(**job.config | {"image": tuple(job.config["image"])})
    network = vit.ViT(config, dtype=numbers.variables, compute=numbers.compute)
    variables = name_variables(network).by_path()
    for path, value in job.arrays():
        variables[path].variable.assign(value)
    return network


class Engine:
    """engine.TrainStep with AdamW; every step is given the learning rate."""

    def __init__(self, job: Job) -> None:
        network = self.build(job)
        self.selection = select(network, job.train, statistics=job.statistics)
        hyperparameters: dict[str, Any] = dict(job.adamw)
        self.learning_rate = hyperparameters.pop("learning_rate")
        self.step = step.TrainStep(losses.supervised_loss(network), AdamW(**hyperparameters), seed=job.seed)
        images, labels = job.batch()
        self.batch = {
            "image": tf.constant(images),
            "label": tf.constant(labels),
            "seeds": tf.constant(example_seeds(job.seed, 0, np.arange(job.batch_size))),
        }

    def build(self, job: Job) -> Any:
        return build(job)

    def train_step(self) -> float:
        return float(self.step(self.selection, self.batch, learning_rate=self.learning_rate).loss)

    def cost(self) -> dict[str, float]:
        """The products of a step in GFLOP; element-wise work is not counted."""
        found = step_cost(self.step, self.selection, self.batch)
        return {"gflop": (found.forward + found.backward) * len(self.batch["label"])}

    def facts(self) -> dict[str, Any]:
        traced = self.step.micro_batch(self.selection, self.batch)
        examples = len(self.batch["label"])
        return {
            "parameters": self.selection.variables.parameters,
            "trained_parameters": self.selection.trained_parameters,
            "slot_bytes": self.step.slots.bytes(),
            "backward_ops": len(traced.backward),
            "tape": {
                "watched_variables": len(self.selection.trained),
                "all_variables": len(self.selection.variables),
                "forward_ops": len(traced.forward),
                "activation_bytes": buffers.count_saved_bytes(traced.backward, examples),
                "traces": self.step.traces,
            },
        }


class Hand:
    """A tf.function written for one selection, one optimizer and one batch shape.

    It uses nothing of the engine's step and optimizers, and does less than they do: the learning rate is a constant, all
    variables share Adam's t, and no gradient norm is computed. ``inputs`` is a batch to use instead of the job's own: the
    input of ``logits``, and labels.
    """

    def __init__(self, job: Job, inputs: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.network = build(job)
        by_path = name_variables(self.network).by_path()
        self.parameters = sum(entry.size for entry in by_path.values())
        self.variables = [by_path[path].variable for path in job.trained]
        self.decays = [path in set(job.decayed) for path in job.trained]
        self.m, self.v = ([tf.Variable(tf.zeros_like(v), trainable=False) for v in self.variables] for _ in range(2))
        self.t = tf.Variable(0.0, trainable=False)
        self.adamw = job.adamw
        images, labels = job.batch() if inputs is None else inputs
        self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.step = tf.function(self._step, autograph=False).get_concrete_function(
            tf.TensorSpec(images.shape, tf.float32), tf.TensorSpec(labels.shape, tf.int32)
        )

    def logits(self, images: Any) -> Any:
        return self.network(images, training=True)

    def _step(self, images: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            logits = self.logits(images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        traced = tf.compat.v1.get_default_graph()
        forward_ops = len(traced.get_operations())
        gradients = tape.gradient(loss, self.variables)
        self.backward_ops = len(traced.get_operations()) - forward_ops

        rate, beta1, beta2 = (self.adamw[name] for name in ("learning_rate", "beta1", "beta2"))
        t = self.t.assign_add(1.0)
        beta1_power, beta2_power = tf.pow(beta1, t), tf.pow(beta2, t)
        for variable, gradient, m, v, decays in zip(
            self.variables, gradients, self.m, self.v, self.decays, strict=True
        ):
            if decays:
                variable.assign_sub(variable * (rate * self.adamw["weight_decay"]))
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                lr=rate,
                beta1=beta1,
                beta2=beta2,
                epsilon=self.adamw["epsilon"],
                grad=gradient,
            )
        hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
        return loss, tf.reduce_mean(tf.cast(hits, tf.float32))

    def train_step(self) -> float:
        return float(self.step(self.images, self.labels)[0])

    def facts(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "trained_parameters": sum(int(tf.size(variable)) for variable in self.variables),
            "slot_bytes": sum(int(tf.size(slot)) * slot.dtype.size for slot in (*self.m, *self.v)),
            "backward_ops": self.backward_ops,
        }


def measure_engine(argument: dict[str, Any]) -> dict[str, Any]:
    """Measures the engine alone on a job."""
    job = Job(**argument)
    return harness.run_alone(Engine(job), job)
