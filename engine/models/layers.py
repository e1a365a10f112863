"""The few layers that the project's own models are made of. Shapes are [batch, ..., features]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from engine import seeds as example_seeds


class Dense(tf.Module):
    """x @ kernel + bias; kernel [inputs, outputs], Glorot uniform, or truncated normal of a given scale."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rng: np.random.Generator,
        scale: float | None = None,
        dtype: Any = tf.float32,
    ) -> None:
        super().__init__()
        shape = (inputs, outputs)
        limit = math.sqrt(6.0 / (inputs + outputs))
        value = _uniform(rng, shape, limit) if scale is None else truncated_normal(rng, shape, scale)
        self.kernel = tf.Variable(tf.cast(value, dtype), name="kernel")
        self.bias = tf.Variable(tf.zeros([outputs], dtype), name="bias")

    def __call__(self, x: Any) -> Any:
        return tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)


class Conv(tf.Module):
    """2-D convolution, NHWC, kernel [size, size, inputs, outputs], He normal; with a bias if asked."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: str = "SAME",
        bias: bool = True,
        rng: np.random.Generator,
        dtype: Any = tf.float32,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        scale = math.sqrt(2.0 / (size * size * inputs))
        value = rng.standard_normal((size, size, inputs, outputs), np.float32) * np.float32(scale)
        self.kernel = tf.Variable(tf.cast(value, dtype), name="kernel")
        self.bias = tf.Variable(tf.zeros([outputs], dtype), name="bias") if bias else None

    def __call__(self, x: Any) -> Any:
        y = tf.nn.conv2d(x, self.kernel, self.stride, self.padding)
        return y if self.bias is None else tf.nn.bias_add(y, self.bias)


class LayerNorm(tf.Module):
    """Layer normalisation over the last axis (arXiv:1607.06450)."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, dtype: Any = tf.float32) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gamma = tf.Variable(tf.ones([features], dtype), name="gamma")
        self.beta = tf.Variable(tf.zeros([features], dtype), name="beta")

    def __call__(self, x: Any) -> Any:
        mean, variance = tf.nn.moments(x, axes=-1, keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)


class BatchNorm(tf.Module):
    """Batch normalisation over all axes but the last (arXiv:1502.03167).

    ``statistics`` names the variables that follow this layer, ``update_statistics`` is the switch
    that a Selection sets while a step is traced: False is inference mode, whatever ``training`` says.
    """

    statistics = ("moving_mean", "moving_variance")

    def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-3, dtype: Any = tf.float32) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.update_statistics = True
        self.gamma = tf.Variable(tf.ones([features], dtype), name="gamma")
        self.beta = tf.Variable(tf.zeros([features], dtype), name="beta")
        self.moving_mean = tf.Variable(tf.zeros([features], dtype), trainable=False, name="moving_mean")
        self.moving_variance = tf.Variable(tf.ones([features], dtype), trainable=False, name="moving_variance")

    def __call__(self, x: Any, *, training: bool) -> Any:
        if training and self.update_statistics:
            mean, variance = tf.nn.moments(x, axes=list(range(x.shape.rank - 1)))
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign_sub((moving - tf.stop_gradient(now)) * tf.constant(1.0 - self.momentum, now.dtype))
        else:
            mean, variance = self.moving_mean, self.moving_variance
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)


def gelu(x: Any, *, approximate: bool) -> Any:
    """GELU (arXiv:1606.08415) with erf, or with tanh.

    The operations of ``tf.nn.gelu``, which rounds its constants to float32 in float64 too.
    """
    if approximate:
        cubic = tf.constant(0.044715, x.dtype) * tf.pow(x, 3)
        return 0.5 * x * (1.0 + tf.tanh(math.sqrt(2.0 / math.pi) * (x + cubic)))
    return 0.5 * x * tf.math.erfc(-x * tf.constant(math.sqrt(0.5), x.dtype))


def dropout(x: Any, rate: float, *, seeds: Any, site: int) -> Any:
    """Zeroes elements with probability ``rate`` and scales the rest by 1 / (1 - rate); by example seeds."""
    drawn = example_seeds.uniform(seeds, x.shape[1:].as_list(), site=site)
    return tf.where(drawn >= rate, x / (1.0 - rate), tf.zeros([], x.dtype))


def drop_path(x: Any, rate: float, *, seeds: Any, site: int) -> Any:
    """Drops a residual branch for whole examples with probability ``rate`` (arXiv:1603.09382)."""
    drawn = example_seeds.uniform(seeds, [1] * (x.shape.rank - 1), site=site)
    return tf.where(drawn >= rate, x / (1.0 - rate), tf.zeros([], x.dtype))


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal numbers, those beyond two standard deviations drawn again."""
    values = rng.standard_normal(shape, np.float32)
    while (far := np.abs(values) > 2).any():
        values[far] = rng.standard_normal(int(far.sum()), np.float32)
    return values * np.float32(scale)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], limit: float) -> np.ndarray:
    return ((rng.random(shape, np.float32) * 2 - 1) * limit).astype(np.float32)
