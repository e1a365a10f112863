"""Layers in TF1 style: variables from get_variable, in a variable scope with the name of the layer.

The custom getter, regularizer, partitioner and reuse of the scope all apply. Variables are named and initialised as
in engine.models.layers, and the arithmetic is the same. They are float64 where ``x`` is, and float32 otherwise;
layers compute in the dtype of ``x``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from engine.models import layers as engine_layers
from engine.training.precision import wide_type, widen

v1 = tf.compat.v1


def dense(x: Any, units: int, *, name: str, scale: float | None = None) -> Any:
    """x @ kernel + bias, [..., inputs] to [..., units]; the kernel is Glorot uniform, or truncated normal of ``scale``."""
    inputs = x.shape[-1]
    made = v1.glorot_uniform_initializer() if scale is None else v1.truncated_normal_initializer(stddev=scale)
    with v1.variable_scope(name):
        kernel = weight("kernel", [inputs, units], made, x.dtype)
        bias = weight("bias", [units], v1.zeros_initializer(), x.dtype)
        # one matrix, and a float16 bias added in float32, for the reasons given in engine.models.layers
        y = tf.matmul(tf.reshape(x, [-1, inputs]), tf.cast(kernel, x.dtype))
        y = tf.cast(widen(y) + bias, x.dtype) if x.dtype == tf.float16 else tf.nn.bias_add(y, tf.cast(bias, x.dtype))
        return tf.reshape(y, [-1, *x.shape[1:-1], units])


def conv(
    x: Any, filters: int, size: int, *, name: str, stride: int = 1, padding: str = "SAME", bias: bool = True
) -> Any:
    """2-D convolution, NHWC, with a He normal kernel [size, size, inputs, filters] and an optional bias."""
    inputs = x.shape[-1]
    he = v1.random_normal_initializer(stddev=math.sqrt(2.0 / (size * size * inputs)))
    with v1.variable_scope(name):
        kernel = weight("kernel", [size, size, inputs, filters], he, x.dtype)
        y = tf.nn.conv2d(x, tf.cast(kernel, x.dtype), stride, padding)
        if not bias:
            return y
        return tf.nn.bias_add(y, tf.cast(weight("bias", [filters], v1.zeros_initializer(), x.dtype), x.dtype))


def layer_norm(x: Any, *, name: str, epsilon: float = 1e-6) -> Any:
    """Layer normalisation over the last axis (arXiv:1607.06450)."""
    features = x.shape[-1]
    with v1.variable_scope(name):
        gamma = weight("gamma", [features], v1.ones_initializer(), x.dtype)
        beta = weight("beta", [features], v1.zeros_initializer(), x.dtype)
        return tf.cast(engine_layers.standardise(widen(x), epsilon) * gamma + beta, x.dtype)


def batch_norm(x: Any, *, training: bool, name: str, momentum: float = 0.9, epsilon: float = 1e-3) -> Any:
    """Batch normalisation of [B, height, width, features] over all axes but the last (arXiv:1502.03167).

    In training mode the moments are those of the batch, and the ops that move the statistics are added to
    UPDATE_OPS, on which the train op must depend. float32 uses the fused kernel (FusedBatchNormV3); float64, which
    that kernel does not support, uses ``moments`` and ``batch_normalization``. The fused kernel returns the variance
    with n - 1 in the denominator; the statistics here use n, as the engine and the other branch do.
    """
    given, x = x.dtype, widen(x)
    features = x.shape[-1]
    with v1.variable_scope(name):
        moving_mean = statistic("moving_mean", [features], v1.zeros_initializer(), x.dtype)
        moving_variance = statistic("moving_variance", [features], v1.ones_initializer(), x.dtype)
        # read before the weights, as in the engine: the last variable read names a place in the graph
        known = () if training else (tf.convert_to_tensor(moving_mean), tf.convert_to_tensor(moving_variance))
        gamma = weight("gamma", [features], v1.ones_initializer(), x.dtype)
        beta = weight("beta", [features], v1.zeros_initializer(), x.dtype)
        if x.dtype == tf.float32:
            moments = dict(zip(("mean", "variance"), known, strict=False))
            y, mean, variance = v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon, is_training=training, **moments)
            count = tf.cast(tf.size(x) // features, x.dtype)
            variance = variance * ((count - 1) / count)
        else:
            mean, variance = known or tf.nn.moments(x, list(range(x.shape.rank - 1)))
            y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
        if training:
            for moving, now in ((moving_mean, mean), (moving_variance, variance)):
                step = (moving - tf.stop_gradient(now)) * tf.constant(1.0 - momentum, now.dtype)
                v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, v1.assign_sub(moving, step))
    return tf.cast(y, given)


def attention(x: Any, heads: int, *, name: str) -> Any:
    """Multi-head self-attention on tokens [B, N, width], with the projections query, key, value and out."""
    tokens, width = x.shape[1:]
    size = width // heads
    with v1.variable_scope(name):
        query, key, value = (
            tf.transpose(tf.reshape(dense(x, width, name=part), [-1, tokens, heads, size]), [0, 2, 1, 3])
            for part in ("query", "key", "value")
        )
        query = query * tf.constant(1.0 / math.sqrt(size), query.dtype)
        scores = widen(tf.matmul(query, key, transpose_b=True))
        weights = tf.cast(tf.nn.softmax(scores, axis=-1), query.dtype)
        mixed = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return dense(tf.reshape(mixed, [-1, tokens, width]), width, name="out")


def mlp(x: Any, hidden: int, *, name: str, approximate: bool) -> Any:
    """Dense, GELU (with tanh if ``approximate``, else erf), dense, on [..., features]."""
    features = x.shape[-1]
    with v1.variable_scope(name):
        up = dense(x, hidden, name="up")
        return dense(engine_layers.gelu(up, approximate=approximate), features, name="down")


def weight(name: str, shape: Sequence[int], initializer: Any, dtype: Any) -> Any:
    """Returns a trainable variable as a tensor; a partitioned one is joined, and a custom getter applies."""
    made = v1.get_variable(name, shape, wide_type(dtype), initializer)
    return tf.convert_to_tensor(made)


def statistic(name: str, shape: Sequence[int], initializer: Any, dtype: Any) -> Any:
    """Returns a variable that no optimizer moves; it is not partitioned, so that it can be assigned, nor regularised."""
    with _whole():
        return v1.get_variable(name, shape, dtype, initializer, v1.no_regularizer, trainable=False)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Suspends the partitioner of the scope, which get_variable uses unless it is given one."""
    scope = v1.get_variable_scope()
    partitioner = scope.partitioner
    scope.set_partitioner(None)
    try:
        yield
    finally:
        scope.set_partitioner(partitioner)
