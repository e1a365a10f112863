"""An equal ViT in plain keras.layers, trained by model.fit of Keras 3 (keras_fit) or step by step by train_on_batch (keras)."""

from __future__ import annotations

import functools
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from engine.host import peak_rss_bytes
from engine.models.keras.scopes import dtype_policy

from .harness import Job


class ClassToken(keras.layers.Layer):
    """Prepends a learned token to the patches."""

    def build(self, shape: Any) -> None:
        self.token = self.add_weight(name=self.name, shape=(1, 1, shape[-1]), initializer="zeros")

    def call(self, x: Any) -> Any:
        token = keras.ops.broadcast_to(self.token, (keras.ops.shape(x)[0], 1, x.shape[-1]))
        return keras.ops.concatenate([token, x], axis=1)


class PositionEmbedding(keras.layers.Layer):
    """Adds a learned embedding to each token."""

    def build(self, shape: Any) -> None:
        self.embedding = self.add_weight(name=self.name, shape=(1, *shape[1:]), initializer="zeros")

    def call(self, x: Any) -> Any:
        return x + self.embedding


def build(config: dict[str, Any]) -> Any:
    """Builds the ViT; layers are named after the engine's paths, with "." for "/", which Keras does not allow."""
    layers = keras.layers
    width, heads, side = config["width"], config["heads"], config["patch"]
    height, breadth, channels = config["image"]
    rows, columns = height // side, breadth // side
    gelu = functools.partial(keras.activations.gelu, approximate=config["gelu"] == "tanh")

    images = keras.Input((height, breadth, channels))
    x = layers.Reshape((rows, side, columns, side * channels))(images)
    x = layers.Reshape((rows * columns, side * side * channels))(layers.Permute((1, 3, 2, 4))(x))
    x = layers.Dense(width, name="patch")(x)
    x = PositionEmbedding(name="position_embedding")(ClassToken(name="class_token")(x))
    for number in range(config["depth"]):
        block = f"blocks.{number}"
        y = layers.LayerNormalization(epsilon=1e-6, name=f"{block}.norm1")(x)
        y = layers.MultiHeadAttention(heads, width // heads, name=f"{block}.attention")(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"{block}.norm2")(x)
        y = layers.Dense(4 * width, activation=gelu, name=f"{block}.mlp.up")(y)
        x = layers.Add()([x, layers.Dense(width, name=f"{block}.mlp.down")(y)])
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    return keras.Model(images, layers.Dense(config["classes"], name="head")(x[:, 0]))


def name_variables(model: Any) -> dict[str, Any]:
    """Maps the engine's variable paths to Keras variables."""
    found = {}
    for variable in model.weights:
        path = variable.path.replace(".", "/").replace("attention_output", "out")
        layer, _, name = path.rpartition("/")
        found[layer if layer == name else path] = variable
    return found


def freeze(model: Any, trained: set[str]) -> None:
    """Freezes whole layers where nothing is trained, and single variables in layers that are trained in part."""
    known = {id(variable): path for path, variable in name_variables(model).items()}
    for layer in model.layers:
        frozen = [variable for variable in layer.weights if known[id(variable)] not in trained]
        if len(frozen) == len(layer.weights):
            layer.trainable = False
        for variable in frozen:
            variable.trainable = False


class Stopwatch(keras.callbacks.Callback):
    """Records the seconds of every step, from fetching the batch to the end of the update, and the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(float(logs["loss"]))
        self.seconds.append(time.perf_counter() - self._start)


def build_compiled(job: Job) -> Any:
    """Builds the job's model with its weights and freezes, and compiles it with the job's AdamW; nothing is traced."""
    with dtype_policy(job.precision):
        model = build(job.config)
    variables = name_variables(model)
    for path, value in job.arrays():
        variables[path].assign(np.reshape(value, variables[path].shape))
    freeze(model, set(job.trained))

    compile_model(model, job, undecayed=[variables[path] for path in job.trained if path not in set(job.decayed)])
    return model


def compile_model(model: Any, job: Job, *, undecayed: list[Any]) -> None:
    """Compiles a model with the job's AdamW, cross-entropy and accuracy; ``undecayed`` are Keras variables."""
    optimizer = keras.optimizers.AdamW(**{name.replace("beta", "beta_"): value for name, value in job.adamw.items()})
    if undecayed:
        optimizer.exclude_from_weight_decay(var_list=undecayed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])


class Keras:
    """train_on_batch: Keras' own train_step, which Keras compiles itself."""

    def __init__(self, job: Job) -> None:
        self.model = self.build(job)
        self.images, self.labels = (tf.constant(array) for array in job.batch())

    def build(self, job: Job) -> Any:
        return build_compiled(job)

    def train_step(self) -> float:
        return float(self.model.train_on_batch(self.images, self.labels, return_dict=True)["loss"])

    def facts(self) -> dict[str, Any]:
        return {"library": f"Keras {keras.__version__}", "xla": bool(self.model.jit_compile), **describe(self.model)}


def measure_fit(argument: dict[str, Any]) -> dict[str, Any]:
    """Fits the model of a job; reports as ``harness.run_alone``."""
    job = Job(**argument)
    model = build_compiled(job)
    steps = job.warmup + job.steps
    watch = Stopwatch()
    data = tf.data.Dataset.from_tensors(job.batch()).repeat(steps)
    model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[watch])
    return {
        "first_loss": watch.losses[0],
        "last_loss": watch.losses[-1],
        "seconds": watch.seconds[job.warmup :],
        "peak_rss_bytes": peak_rss_bytes(),
        **describe(model),
    }


def measure_first_step(argument: dict[str, Any]) -> dict[str, Any]:
    """Times the first ``train_on_batch``; reports as ``harness.run_alone``, and whether XLA compiled the step."""
    job = Job(**argument)
    model = build_compiled(job)
    images, labels = (tf.constant(array) for array in job.batch())
    start = time.perf_counter()
    loss = float(model.train_on_batch(images, labels, return_dict=True)["loss"])
    seconds = time.perf_counter() - start
    return {
        "first_loss": loss,
        "seconds": [seconds],
        "peak_rss_bytes": peak_rss_bytes(),
        "xla": bool(model.jit_compile),
        **describe(model),
    }


def describe(model: Any) -> dict[str, Any]:
    """parameters, trained_parameters and slot_bytes of a model that has been trained."""
    slots = [v for v in model.optimizer.variables if v.path.endswith(("_momentum", "_velocity"))]
    return {
        "parameters": sum(int(np.prod(v.shape)) for v in model.weights),
        "trained_parameters": sum(int(np.prod(v.shape)) for v in model.trainable_weights),
        "slot_bytes": sum(int(np.prod(v.shape)) * 4 for v in slots),
    }
