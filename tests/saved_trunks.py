"""Tiny SavedModels of TensorFlow 2, as a module that is called with training=True and False."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

SHAPE = (6, 6, 3)
FEATURES = 5
MOMENTUM = 0.9


class ConvNorm(tf.Module):
    """A convolution and a BatchNorm, by single operations or by the fused one."""

    def __init__(
        self, path: str, inner: int, width: int, seed: int, *, fused: bool, named: bool, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        rng = np.random.default_rng(seed)
        self.fused = fused

        def make(name: str, value: Any, trainable: bool = True) -> tf.Variable:
            value = tf.constant(value, tf.float32)
            return tf.Variable(value, trainable=trainable, name=f"{path}/{name}" if named else "Variable")

        self.kernel = make("conv/kernel", rng.standard_normal([3, 3, inner, width]) / 4)
        self.gamma = make("bn/gamma", rng.uniform(0.5, 1.5, width))
        self.beta = make("bn/beta", rng.standard_normal(width) / 4)
        self.moving_mean = make("bn/moving_mean", rng.standard_normal(width) / 4, False)
        self.moving_variance = make("bn/moving_variance", rng.uniform(0.5, 1.5, width), False)

    def __call__(self, x: Any, training: bool) -> Any:
        x = tf.nn.conv2d(x, self.kernel, self.stride, "SAME")
        if not self.fused:
            mean, variance = self.moving_mean, self.moving_variance
            if training:
                mean, variance = tf.nn.moments(x, [0, 1, 2])
                for average, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                    average.assign(average * MOMENTUM + now * (1 - MOMENTUM))
            return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, 1e-3))
        given: dict[str, Any] = {} if training else {"mean": self.moving_mean, "variance": self.moving_variance}
        norm = tf.compat.v1.nn.fused_batch_norm
        x, mean, variance = norm(x, self.gamma, self.beta, is_training=training, **given)
        if training:
            for average, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign_sub((average - now) * (1 - MOMENTUM))
        return tf.nn.relu(x)


class Trunk(tf.Module):
    """Two blocks ``low`` and ``high``, perhaps a dropout between them, and a dense layer on the mean of all places."""

    def __init__(self, *, fused: bool = False, dropout: float = 0.0, named: bool = True, softmax: bool = False) -> None:
        super().__init__()
        self.low = ConvNorm("low", 3, 4, 1, fused=fused, named=named, stride=2)
        self.high = ConvNorm("high", 4, 4, 2, fused=fused, named=named)
        dense = np.random.default_rng(3).standard_normal([4, FEATURES]) / 2
        self.dense = tf.Variable(tf.constant(dense, tf.float32), name="dense/kernel" if named else "Variable")
        self.dropout, self.softmax = dropout, softmax

    @tf.function(autograph=False)
    def block(self, x: Any, training: bool) -> Any:
        """A function within the function, as layers of SavedModels are."""
        return self.low(x, training)

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        x = self.block(x, training)
        if training and self.dropout:
            x = tf.nn.dropout(x, self.dropout)
        found = self.high(x, training)
        pooled = tf.reduce_mean(found, [1, 2]) @ self.dense
        return found, tf.nn.softmax(pooled) if self.softmax else pooled

    @tf.function(autograph=False)
    def __call__(self, x: Any, training: bool = False) -> Any:
        return self.compute(x, training)[1]


class TwoOutputs(Trunk):
    """Returns its features by name."""

    @tf.function(autograph=False)
    def __call__(self, x: Any, training: bool = False) -> Any:
        found, pooled = self.compute(x, training)
        return {"map": found, "pooled": pooled}


class Switched(Trunk):
    """Its mode is a tensor, so that one trace has both."""

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([], tf.bool, name="training")]
    )
    def __call__(self, x: Any, training: Any) -> Any:
        return tf.cond(training, lambda: self.compute(x, True)[1], lambda: self.compute(x, False)[1])


class ServedOnly(Trunk):
    """It has a trace for inference alone."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, *SHAPE], name="pictures")])
    def serve(self, x: Any) -> Any:
        return self.compute(x, False)[1]


def save(module: tf.Module, folder: pathlib.Path, *, size: tuple[int | None, ...] = SHAPE) -> str:
    """Saves a module with traces for training and inference, or with those that it has."""
    if type(module).__call__ is Trunk.__call__ or isinstance(module, TwoOutputs):
        for training in (True, False) if not isinstance(module, ServedOnly) else ():
            module.__call__.get_concrete_function(tf.TensorSpec([None, *size]), training=training)
    tf.saved_model.save(module, str(folder))
    return str(folder)
