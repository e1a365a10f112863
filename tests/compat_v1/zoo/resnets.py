"""TF-Slim's ResNets in TensorFlow 1, written from the tables of the papers and the scopes of its checkpoints."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from slim_layers import Layers, Network, max_pool

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(version: int, depth: int, *, classes: int = 1000, width: int = 64, units: Any = None) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        plain = {"norm": False, "activation": None}
        with layers.scope(f"resnet_v{version}_{depth}"):
            x = layers.conv(x, "conv1", width, 7, 2, padding="FIXED", **({} if version == 1 else plain))
            x = max_pool(x, 3, 2)
            for number, count in enumerate(units or UNITS[depth], 1):
                for unit in range(1, count + 1):
                    stride = 2 if unit == count and number < 4 else 1
                    with layers.scope(f"block{number}/unit_{unit}/bottleneck_v{version}"):
                        x = (_v1 if version == 1 else _v2)(layers, x, width * 2 ** (number - 1), stride)
            if version == 2:
                x = layers.norm(x, "postnorm", activation=tf.nn.relu)
            x = tf.reduce_mean(x, [1, 2], keepdims=True)
            return tf.squeeze(layers.conv(x, "logits", classes, 1, **plain), [1, 2])

    return network


def _v1(layers: Layers, x: Any, depth: int, stride: int) -> Any:
    if x.shape[-1] == 4 * depth:
        beside = x[:, ::stride, ::stride]
    else:
        beside = layers.conv(x, "shortcut", 4 * depth, 1, stride, activation=None)
    y = layers.conv(x, "conv1", depth, 1)
    y = layers.conv(y, "conv2", depth, 3, stride, padding="FIXED")
    return tf.nn.relu(beside + layers.conv(y, "conv3", 4 * depth, 1, activation=None))


def _v2(layers: Layers, x: Any, depth: int, stride: int) -> Any:
    ready = layers.norm(x, "preact", activation=tf.nn.relu)
    if x.shape[-1] == 4 * depth:
        beside = x[:, ::stride, ::stride]
    else:
        beside = layers.conv(ready, "shortcut", 4 * depth, 1, stride, norm=False, activation=None)
    y = layers.conv(ready, "conv1", depth, 1)
    y = layers.conv(y, "conv2", depth, 3, stride, padding="FIXED")
    return beside + layers.conv(y, "conv3", 4 * depth, 1, norm=False, activation=None)


def bit(depth: int, *, factor: float = 1, classes: int = 1000, units: Any = None) -> Network:
    """The ResNets of Big Transfer, with group norms and standardised kernels."""

    def conv(layers: Layers, x: Any, name: str, filters: int, kernel: int, stride: int = 1) -> Any:
        if kernel > 1:
            edges = [kernel // 2] * 2
            x = tf.pad(x, [[0, 0], edges, edges, [0, 0]])
        weights = layers.variable(f"{name}/kernel", kernel, kernel, x.shape[-1], filters)
        mean, variance = tf.nn.moments(weights, [0, 1, 2], keepdims=True)
        return tf.nn.conv2d(x, (weights - mean) / tf.sqrt(variance + 1e-10), stride, "VALID")

    def norm(layers: Layers, x: Any) -> Any:
        size = x.shape[-1]
        with layers.scope("group_norm"):
            gamma, beta = layers.variable("gamma", size), layers.variable("beta", size)
        groups = tf.reshape(x, [*x.shape[:3], 32, size // 32])
        mean, variance = tf.nn.moments(groups, [1, 2, 4], keepdims=True)
        beta, gamma = (tf.reshape(each, [32, size // 32]) for each in (beta, gamma))
        y = tf.nn.batch_normalization(groups, mean, variance, beta, gamma, 1e-5)
        return tf.nn.relu(tf.reshape(y, x.shape))

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("resnet"):
            width = int(64 * factor)
            x = conv(layers, x, "root_block/standardized_conv2d", width, 7, 2)
            x = max_pool(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
            for block, count in enumerate(units or UNITS[depth], 1):
                for unit in range(1, count + 1):
                    stride = 2 if unit == 1 and block > 1 else 1
                    filters = width * 2 ** (block - 1)
                    with layers.scope(f"block{block}/unit{unit:02d}"):
                        beside = x
                        with layers.scope("a"):
                            x = norm(layers, x)
                            if stride > 1 or beside.shape[-1] != 4 * filters:
                                beside = conv(layers, x, "proj/standardized_conv2d", 4 * filters, 1, stride)
                            x = conv(layers, x, "standardized_conv2d", filters, 1)
                        with layers.scope("b"):
                            x = conv(layers, norm(layers, x), "standardized_conv2d", filters, 3, stride)
                        with layers.scope("c"):
                            x = beside + conv(layers, norm(layers, x), "standardized_conv2d", 4 * filters, 1)
            x = tf.reduce_mean(norm(layers, x), [1, 2])
            with layers.scope("head/conv2d"):
                kernel = layers.variable("kernel", 1, 1, x.shape[-1], classes)
                return x @ kernel[0, 0] + layers.variable("bias", classes)

    return network
