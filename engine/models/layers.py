"""The layers of the engine's own models. Shapes are [batch, ..., features].

Layers compute in the dtype of their input, whatever the dtype of their variables is. Norms and softmax of 16-bit tensors
are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine import seeds as example_seeds
from engine import tensorflow_private
from engine.distribution.moments import moments
from engine.models.adapters import kinds
from engine.models.spec import name_heads
from engine.training import pieces
from engine.training.precision import widen

_NEVER = -1e9  # a score whose weight in a softmax is 0; where all are masked, weights stay finite


class Layer(tf.Module):
    """A layer that adapters may be attached to (engine.models.adapters); each attribute has the variables of one."""

    lora: Any = None
    adapter: Any = None
    ssf: Any = None

    def adapted(self, x: Any, y: Any) -> Any:
        """The output y for the input x, with what is attached."""
        if self.lora is None and self.adapter is None and self.ssf is None:
            return y
        return kinds.adapt(self, x, y)


class Dense(Layer):
    """x @ kernel + bias; the kernel [inputs, outputs] is drawn Glorot uniform, or truncated normal of a given scale."""

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
        return self.adapted(x, self._multiply(x))

    def project(self, x: Any, kernel: Any) -> Any:
        """The product of x with another kernel."""
        return kinds.multiply(x, kernel)

    def _multiply(self, x: Any) -> Any:
        # as one matrix: otherwise the kernel's gradient is computed per example and then summed
        y = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.cast(self.kernel, x.dtype))
        shape = [-1, *x.shape[1:-1], y.shape[-1]]
        if x.dtype == tf.float16:  # TensorFlow fuses product and bias into a kernel that is 100 times slower
            return tf.reshape(tf.cast(widen(y) + widen(self.bias), x.dtype), shape)
        bias = tf.cast(self.bias, x.dtype)
        if (
            x.dtype == tf.bfloat16
        ):  # fused with the bias, the product does not use AMX; behind a reshape it is not fused
            return tf.nn.bias_add(tf.reshape(y, shape), bias)
        return tf.reshape(tf.nn.bias_add(y, bias), shape)


def make_heads(width: int, outputs: int | Mapping[str, int], *, rng: np.random.Generator, dtype: Any) -> Any:
    """The last layer of a network; for several tasks a dict of such layers, called as their tasks (``spec.name_heads``)."""
    if isinstance(outputs, Mapping):
        names = name_heads(outputs)
        return {names[task]: make_heads(width, count, rng=rng, dtype=dtype) for task, count in outputs.items()}
    # small but not zero: a frozen head of zeros would pass no gradient on
    return Dense(width, outputs, rng=rng, scale=0.02, dtype=dtype)


def apply_heads(head: Any, features: Any, tasks: Sequence[str]) -> Any:
    """The logits of a head in at least float32, [B, outputs]; those of several tasks by their names."""
    if not tasks:
        return widen(head(features))
    names = name_heads(tasks)
    return {task: widen(head[names[task]](features)) for task in tasks}


class Conv(Layer):
    """2-D convolution in NHWC; the kernel [size, size, inputs, outputs] is drawn He normal, and the bias is optional."""

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
        y = self.project(x, tf.cast(self.kernel, x.dtype))
        return self.adapted(x, y if self.bias is None else tf.nn.bias_add(y, tf.cast(self.bias, x.dtype)))

    def project(self, x: Any, kernel: Any) -> Any:
        """The convolution of x with another kernel."""
        return tf.nn.conv2d(x, kernel, self.stride, self.padding)


class LayerNorm(Layer):
    """Layer normalisation over the last axis (arXiv:1607.06450)."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, dtype: Any = tf.float32) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gamma = tf.Variable(tf.ones([features], dtype), name="gamma")
        self.beta = tf.Variable(tf.zeros([features], dtype), name="beta")

    def __call__(self, x: Any) -> Any:
        y = tf.cast(standardise(widen(x), self.epsilon) * self.gamma + self.beta, x.dtype)
        return self.adapted(x, y)


class BatchNorm(Layer):
    """Batch normalisation over all axes but the last (arXiv:1502.03167).

    ``statistics`` names the layer's moving statistics. A Selection sets ``update_statistics`` while a step is traced: False
    means inference mode, whatever ``training`` is.
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
        given, x = x.dtype, widen(x)
        if training and self.update_statistics:
            mean, variance = moments(x, axes=range(x.shape.rank - 1))
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign_sub((moving - tf.stop_gradient(now)) * tf.constant(1.0 - self.momentum, now.dtype))
        else:
            mean, variance = self.moving_mean, self.moving_variance
        y = tf.cast(tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon), given)
        return self.adapted(x, y)


def standardise(x: Any, epsilon: float) -> Any:
    """(x - mean) / deviation over the last axis (arXiv:1607.06450); only the result y is saved for the gradient.

    For the incoming gradient g, the gradient is (g - mean(g) - y mean(g y)) / deviation.
    """

    @tf.custom_gradient
    def apply(x: Any) -> Any:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + epsilon)
        y = centred * scale

        def backward(g: Any) -> Any:
            along = tf.reduce_mean(g * y, axis=-1, keepdims=True)
            return (g - tf.reduce_mean(g, axis=-1, keepdims=True) - y * along) * scale

        return y, backward

    return apply(x)


def gelu(x: Any, *, approximate: bool) -> Any:
    """GELU (arXiv:1606.08415), exact with erf or approximate with tanh.

    Its derivative shares most of its work, so it is computed with it and saved for the gradient, instead of ``x``.
    """

    compiled = pieces.pay(x) and tensorflow_private.is_recorded(x)

    @tf.custom_gradient
    def apply(x: Any) -> Any:
        if compiled:
            value, gradient = _COMPILED_TANH if approximate else _COMPILED_ERF
            return value(x), lambda g: gradient(x, g)
        y, slope = _gelu_tanh(x) if approximate else _gelu_erf(x)
        return y, lambda g: g * slope

    return apply(x)


def _gelu_erf(x: Any) -> tuple[Any, Any]:
    """x P(x) with the normal distribution function P, and its derivative P(x) + x p(x) with the density p.

    Halves are exact, so their place changes no bit; where ``x`` has it, converters to TFLite know the whole as a GELU.
    """
    twice = 1.0 + tf.math.erf(x * tf.constant(math.sqrt(0.5), x.dtype))  # 2 P(x)
    density = tf.exp(-0.5 * tf.square(x)) * tf.constant(1.0 / math.sqrt(2.0 * math.pi), x.dtype)
    return 0.5 * x * twice, 0.5 * twice + x * density


def _gelu_tanh(x: Any) -> tuple[Any, Any]:
    """x (1 + t) / 2 with t = tanh(c (x + a x^3)), and its derivative (1 + t + x (1 - t^2) c (1 + 3 a x^2)) / 2."""
    c, a = tf.constant(math.sqrt(2.0 / math.pi), x.dtype), tf.constant(0.044715, x.dtype)
    square = tf.square(x)
    t = tf.tanh(c * x * (1.0 + a * square))
    slope = c * (1.0 + 3.0 * a * square)
    return 0.5 * x * (1.0 + t), 0.5 * (1.0 + t + x * (1.0 - tf.square(t)) * slope)


def _compile_gelu(parts: Callable[[Any], tuple[Any, Any]]) -> tuple[pieces.Piece, pieces.Piece]:
    """The value, and the gradient from ``x`` and the incoming gradient: one pass each, so nothing but ``x`` is saved."""

    def value(x: Any) -> Any:
        return tf.cast(parts(widen(x))[0], x.dtype)

    def gradient(x: Any, g: Any) -> Any:
        return tf.cast(widen(g) * parts(widen(x))[1], x.dtype)

    return pieces.Piece(value), pieces.Piece(gradient)


_COMPILED_ERF, _COMPILED_TANH = _compile_gelu(_gelu_erf), _compile_gelu(_gelu_tanh)


def attend(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    """softmax(query key') value of tensors [B, heads, N, size], as [B, N, heads, size]. Queries are scaled before.

    Keys where ``mask``, bool [B, 1, 1, N], is False get a weight of exactly 0, and so no gradient.

    Its gradient needs the sum of weight times its gradient along each row of [N, N]. That is the sum of output times its
    gradient along ``size`` (arXiv:2205.14135, appendix B.2), which is shorter.
    """

    @tf.custom_gradient
    def apply(query: Any, key: Any, value: Any) -> Any:
        scores = widen(tf.matmul(query, key, transpose_b=True))
        if mask is not None:
            scores = tf.where(mask, scores, tf.constant(_NEVER, scores.dtype))
        weights = tf.cast(tf.nn.softmax(scores, axis=-1), query.dtype)
        mixed = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])

        def backward(g: Any) -> Any:
            along = tf.reduce_sum(widen(g) * widen(mixed), axis=-1, keepdims=True)
            g = tf.transpose(g, [0, 2, 1, 3])
            of_weights, along = tf.matmul(g, value, transpose_b=True), tf.transpose(along, [0, 2, 1, 3])
            gradient = _compiled_of_scores if pieces.pay(weights) else _of_scores
            of_scores = gradient(weights, of_weights, along)
            return (
                tf.matmul(of_scores, key),
                tf.matmul(of_scores, query, transpose_a=True),
                tf.matmul(weights, g, transpose_a=True),
            )

        return mixed, backward

    return apply(query, key, value)


def _of_scores(weights: Any, of_weights: Any, along: Any) -> Any:
    """The gradient of softmax from its result, the gradient of that, and the sum of their product along each row."""
    return tf.cast(widen(weights) * (widen(of_weights) - along), weights.dtype)


_compiled_of_scores = pieces.Piece(_of_scores)


def dropout(x: Any, rate: float, *, seeds: Any, site: int) -> Any:
    """Zeroes elements with probability ``rate`` and scales the others by 1 / (1 - rate), drawn from per-example seeds."""
    drawn = example_seeds.uniform(seeds, x.shape[1:].as_list(), site=site)
    return tf.where(drawn >= rate, x / (1.0 - rate), tf.zeros([], x.dtype))


def drop_path(x: Any, rate: float, *, seeds: Any, site: int) -> Any:
    """Drops a residual branch with probability ``rate`` per example (arXiv:1603.09382)."""
    drawn = example_seeds.uniform(seeds, [1] * (x.shape.rank - 1), site=site)
    return tf.where(drawn >= rate, x / (1.0 - rate), tf.zeros([], x.dtype))


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal numbers; those beyond two standard deviations are redrawn."""
    values = rng.standard_normal(shape, np.float32)
    while (far := np.abs(values) > 2).any():
        values[far] = rng.standard_normal(int(far.sum()), np.float32)
    return values * np.float32(scale)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], limit: float) -> np.ndarray:
    return ((rng.random(shape, np.float32) * 2 - 1) * limit).astype(np.float32)
