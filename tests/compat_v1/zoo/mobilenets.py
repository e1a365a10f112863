"""TF-Slim's MobileNets in TensorFlow 1, written from the tables of the papers and the scopes of its checkpoints."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from slim_layers import Layers, Network

_V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def logits(layers: Layers, x: Any, classes: int, scope: str = "Logits") -> Any:
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    with layers.scope(scope):
        return tf.squeeze(layers.conv(x, "Conv2d_1c_1x1", classes, 1, norm=False, activation=None), [1, 2])


def v1(*, alpha: float = 1.0, classes: int = 1001) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("MobilenetV1"):
            x = layers.conv(x, "Conv2d_0", int(32 * alpha), 3, 2)
            for number, (filters, stride) in enumerate(_V1, 1):
                x = layers.depthwise(x, f"Conv2d_{number}_depthwise", 3, stride)
                x = layers.conv(x, f"Conv2d_{number}_pointwise", int(filters * alpha), 1)
            return logits(layers, x, classes)

    return network


def divisible(filters: float) -> int:
    """The nearest multiple of 8 that is not below 0.9 of it."""
    near = max(8, int(filters + 4) // 8 * 8)
    return near + 8 if near < 0.9 * filters else near


_V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def v2(*, alpha: float = 1.0, classes: int = 1001, output_stride: int = 32, top: bool = True) -> Network:
    """With a smaller ``output_stride``, layers beyond it are dilated instead of strided, as in DeepLab."""

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("MobilenetV2"):
            x = layers.conv(x, "Conv", divisible(32 * alpha), 3, 2)
            number, reached, rate = 0, 2, 1
            for expansion, filters, count, first in _V2:
                for stride in (first, *[1] * (count - 1)):
                    here, dilation = (1, rate) if reached == output_stride else (stride, 1)
                    if reached == output_stride:
                        rate *= stride
                    reached *= here
                    with layers.scope(f"expanded_conv_{number}" if number else "expanded_conv"):
                        y = layers.conv(x, "expand", expansion * x.shape[-1], 1) if expansion > 1 else x
                        y = layers.depthwise(y, "depthwise", 3, here, rate=dilation)
                        y = layers.conv(y, "project", divisible(filters * alpha), 1, activation=None)
                        x = x + y if here == stride == 1 and x.shape[-1] == y.shape[-1] else y
                    number += 1
            if not top:
                return x
            x = layers.conv(x, "Conv_1", 1280 if alpha <= 1 else divisible(1280 * alpha), 1)
            return logits(layers, x, classes)

    return network


def hard_swish(x: Any) -> Any:
    return x * tf.nn.relu6(x + 3) / 6


# kernel, expansion, filters, stride, squeeze and excite, hard swish
_LARGE = [
    (3, 1, 16, 1, False, False), (3, 4, 24, 2, False, False), (3, 3, 24, 1, False, False),
    (5, 3, 40, 2, True, False), (5, 3, 40, 1, True, False), (5, 3, 40, 1, True, False),
    (3, 6, 80, 2, False, True), (3, 2.5, 80, 1, False, True), (3, 2.3, 80, 1, False, True), (3, 2.3, 80, 1, False, True),
    (3, 6, 112, 1, True, True), (3, 6, 112, 1, True, True),
    (5, 6, 160, 2, True, True), (5, 6, 160, 1, True, True), (5, 6, 160, 1, True, True),
]  # fmt: skip
_SMALL = [
    (3, 1, 16, 2, True, False), (3, 72 / 16, 24, 2, False, False), (3, 88 / 24, 24, 1, False, False),
    (5, 4, 40, 2, True, True), (5, 6, 40, 1, True, True), (5, 6, 40, 1, True, True),
    (5, 3, 48, 1, True, True), (5, 3, 48, 1, True, True),
    (5, 6, 96, 2, True, True), (5, 6, 96, 1, True, True), (5, 6, 96, 1, True, True),
]  # fmt: skip


def v3(size: str, *, alpha: float = 1.0, classes: int = 1001) -> Network:
    table, last = (_LARGE, 1280) if size == "large" else (_SMALL, 1024)

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("MobilenetV3"):
            x = layers.conv(x, "Conv", divisible(16 * alpha), 3, 2)
            for number, (kernel, expansion, filters, stride, gated, swish) in enumerate(table):
                act = hard_swish if swish else tf.nn.relu
                with layers.scope(f"expanded_conv_{number}" if number else "expanded_conv"):
                    y = layers.conv(x, "expand", divisible(expansion * x.shape[-1]), 1, activation=act) if number else x
                    y = layers.depthwise(y, "depthwise", kernel, stride, activation=act)
                    y = _gate(layers, y) if gated else y
                    y = layers.conv(y, "project", divisible(filters * alpha), 1, activation=None)
                    x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
            x = layers.conv(x, "Conv_1", divisible(6 * table[-1][2] * alpha), 1)
            x = tf.reduce_mean(x, [1, 2], keepdims=True)
            x = layers.conv(x, "Conv_2", last, 1, norm=False)
            return logits(layers, x, classes)

    return network


def _gate(layers: Layers, x: Any) -> Any:
    with layers.scope("squeeze_excite"):
        y = tf.reduce_mean(x, [1, 2], keepdims=True)
        y = layers.conv(y, "Conv", divisible(x.shape[-1] / 4), 1, norm=False, activation=tf.nn.relu)
        y = layers.conv(y, "Conv_1", x.shape[-1], 1, norm=False, activation=None)
    return x * tf.nn.relu6(y + 3) * 0.16667
