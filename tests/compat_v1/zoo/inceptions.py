"""TF-Slim's Inceptions in TensorFlow 1, under the scopes of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from slim_layers import Layers, Network, avg_pool, max_pool

from compat_v1.examples import slim_inception
from compat_v1.examples.layer_table import apply_table


class SlimMaker:
    """Makes the layers of a table in TensorFlow 1."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def conv(self, x: Any, scope: str, filters: int, kernel: tuple[int, int], strides: int, padding: str) -> Any:
        return self.layers.conv(x, scope, filters, kernel, strides, padding=padding.upper())

    def pool(self, x: Any, kind: str, size: int, strides: int, padding: str) -> Any:
        return (max_pool if kind == "max" else avg_pool)(x, size, strides, padding.upper())

    def join(self, branches: Sequence[Any]) -> Any:
        return tf.concat(branches, -1)


def same(filters: int) -> int:
    return filters


def logits(layers: Layers, x: Any, name: str, classes: int) -> Any:
    """A convolution under Logits (v1 to v3), or a fully connected layer."""
    with layers.scope("Logits"):
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        if name == "Logits":
            return layers.dense(tf.squeeze(x, [1, 2]), name, classes)
        return tf.squeeze(layers.conv(x, name, classes, 1, norm=False, activation=None), [1, 2])


def v1(*, scale: Callable[[int], int] = same, classes: int = 1001) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("InceptionV1"):
            x = apply_table(slim_inception.V1, x, SlimMaker(layers), scale=scale)
            return logits(layers, x, "Conv2d_0c_1x1", classes)

    return network


def v2(
    *, scale: Callable[[int], int] = same, classes: int = 1001, scope: str = "InceptionV2", norm: bool = False
) -> Network:
    """``norm``: the first layer has a norm, as in detectors, instead of biases."""

    def network(layers: Layers, x: Any) -> Any:
        with layers.scope(scope):
            with layers.scope("Conv2d_1a_7x7"):
                filters = scale(64)
                multiplier = min(filters // 3, 8)
                deep = layers.variable("depthwise_weights", 7, 7, 3, multiplier)
                point = layers.variable("pointwise_weights", 1, 1, 3 * multiplier, filters)
                x = tf.nn.separable_conv2d(x, deep, point, [1, 2, 2, 1], "SAME")
                x = tf.nn.relu(layers.norm(x) if norm else x + layers.variable("biases", filters))
            x = apply_table(slim_inception.V2, x, SlimMaker(layers), scale=scale)
            return logits(layers, x, "Conv2d_1c_1x1", classes)

    return network


def v4(*, scale: Callable[[int], int] = same, classes: int = 1001) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("InceptionV4"):
            x = apply_table(slim_inception.V4, x, SlimMaker(layers), scale=scale)
            return logits(layers, x, "Logits", classes)

    return network


V3 = """
Conv2d_1a_3x3 32 /2 valid
Conv2d_2a_3x3 32 valid
Conv2d_2b_3x3 64
max 3 /2 valid
Conv2d_3b_1x1 80 valid
Conv2d_4a_3x3 192 valid
max 3 /2 valid
Mixed_5b: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 48, Conv2d_0b_5x5 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 32
Mixed_5c: Conv2d_0a_1x1 64 | Conv2d_0b_1x1 48, Conv_1_0c_5x5 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 64
Mixed_5d: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 48, Conv2d_0b_5x5 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 64
Mixed_6a: Conv2d_1a_1x1 384 3x3 /2 valid | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_1a_1x1 96 3x3 /2 valid | max 3 /2 valid
""" + "\n".join(
    f"Mixed_6{letter}: Conv2d_0a_1x1 192 | Conv2d_0a_1x1 {n}, Conv2d_0b_1x7 {n}, Conv2d_0c_7x1 192 | "
    f"Conv2d_0a_1x1 {n}, Conv2d_0b_7x1 {n}, Conv2d_0c_1x7 {n}, Conv2d_0d_7x1 {n}, Conv2d_0e_1x7 192 | avg 3, Conv2d_0b_1x1 192"
    for letter, n in zip("bcde", (128, 160, 160, 192), strict=True)
)

_LAST = (
    "Conv2d_0a_1x1 320 | Conv2d_0a_1x1 384, Conv2d_0b_1x3 384 & Conv2d_{}_3x1 384 | "
    "Conv2d_0a_1x1 448, Conv2d_0b_3x3 384, Conv2d_0c_1x3 384 & Conv2d_0d_3x1 384 | avg 3, Conv2d_0b_1x1 192"
)
V3 += f"""
Mixed_7a: Conv2d_0a_1x1 192, Conv2d_1a_3x3 320 /2 valid | Conv2d_0a_1x1 192, Conv2d_0b_1x7 192, Conv2d_0c_7x1 192, Conv2d_1a_3x3 192 /2 valid | max 3 /2 valid
Mixed_7b: {_LAST.format("0b")}
Mixed_7c: {_LAST.format("0c")}
"""


def v3(*, classes: int = 1001) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("InceptionV3"):
            return logits(layers, apply_table(V3, x, SlimMaker(layers)), "Conv2d_1c_1x1", classes)

    return network


_STEM = """
Conv2d_1a_3x3 32 /2 valid
Conv2d_2a_3x3 32 valid
Conv2d_2b_3x3 64
max 3 /2 valid
Conv2d_3b_1x1 80 valid
Conv2d_4a_3x3 192 valid
"""
_5B = "max 3 /2 valid\nMixed_5b: Conv2d_1x1 96 | Conv2d_0a_1x1 48, Conv2d_0b_5x5 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 64"


def _residual(layers: Layers, x: Any, scope: str, branches: str, scale: float, *, activation: Any = tf.nn.relu) -> Any:
    with layers.scope(scope):
        y = [
            apply_table(branch.strip().replace(", ", "\n"), x, _Branch(layers, number))
            for number, branch in enumerate(branches.split("|"))
        ]
        up = layers.conv(tf.concat(y, -1), "Conv2d_1x1", x.shape[-1], 1, norm=False, activation=None)
    x = x + scale * up
    return x if activation is None else activation(x)


class _Branch(SlimMaker):
    def __init__(self, layers: Layers, number: int) -> None:
        super().__init__(layers)
        self.number = number

    def conv(self, x: Any, scope: str, *rest: Any) -> Any:
        return super().conv(x, f"Branch_{self.number}/{scope}", *rest)


def _inception_resnet(layers: Layers, x: Any, *, counts: Sequence[int], tables: Sequence[str]) -> Any:
    """The trunk of Inception-ResNet: blocks of three kinds, whose branches ``tables`` has, and two reductions."""
    maker = SlimMaker(layers)
    for number in range(1, counts[0] + 1):
        x = _residual(layers, x, f"Repeat/block35_{number}", tables[0], 0.17)
    x = apply_table(tables[1], x, maker)
    for number in range(1, counts[1] + 1):
        x = _residual(layers, x, f"Repeat_1/block17_{number}", tables[2], 0.1)
    x = apply_table(tables[3], x, maker)
    for number in range(1, counts[2] + 1):
        x = _residual(layers, x, f"Repeat_2/block8_{number}", tables[4], 0.2)
    return _residual(layers, x, "Block8", tables[4], 1.0, activation=None)


RESNET_V2 = (
    "Conv2d_1x1 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 48, Conv2d_0c_3x3 64",
    "Mixed_6a: Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_0b_3x3 256, Conv2d_1a_3x3 384 /2 valid | max 3 /2 valid",
    "Conv2d_1x1 192 | Conv2d_0a_1x1 128, Conv2d_0b_1x7 160, Conv2d_0c_7x1 192",
    "Mixed_7a: Conv2d_0a_1x1 256, Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_1a_3x3 288 /2 valid | "
    "Conv2d_0a_1x1 256, Conv2d_0b_3x3 288, Conv2d_1a_3x3 320 /2 valid | max 3 /2 valid",
    "Conv2d_1x1 192 | Conv2d_0a_1x1 192, Conv2d_0b_1x3 224, Conv2d_0c_3x1 256",
)


def resnet_v2(*, classes: int = 1001) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("InceptionResnetV2"):
            x = apply_table(_STEM + _5B, x, SlimMaker(layers))
            x = _inception_resnet(layers, x, counts=(10, 20, 9), tables=RESNET_V2)
            x = layers.conv(x, "Conv2d_7b_1x1", 1536, 1)
            return logits(layers, x, "Logits", classes)

    return network


FACENET = (
    "Conv2d_1x1 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32, Conv2d_0c_3x3 32",
    "Mixed_6a: Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 192, Conv2d_0b_3x3 192, Conv2d_1a_3x3 256 /2 valid | max 3 /2 valid",
    "Conv2d_1x1 128 | Conv2d_0a_1x1 128, Conv2d_0b_1x7 128, Conv2d_0c_7x1 128",
    "Mixed_7a: Conv2d_0a_1x1 256, Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_1a_3x3 256 /2 valid | "
    "Conv2d_0a_1x1 256, Conv2d_0b_3x3 256, Conv2d_1a_3x3 256 /2 valid | max 3 /2 valid",
    "Conv2d_1x1 192 | Conv2d_0a_1x1 192, Conv2d_0b_1x3 192, Conv2d_0c_3x1 192",
)


def facenet(*, counts: Sequence[int] = (5, 10, 5), size: int = 512) -> Network:
    def network(layers: Layers, x: Any) -> Any:
        with layers.scope("InceptionResnetV1"):
            x = apply_table(_STEM + "Conv2d_4b_3x3 256 /2 valid", x, SlimMaker(layers))
            x = tf.reduce_mean(_inception_resnet(layers, x, counts=counts, tables=FACENET), [1, 2])
            with layers.scope("Bottleneck"):
                x = layers.norm(x @ layers.variable("weights", x.shape[-1], size))
        return tf.nn.l2_normalize(x, 1, 1e-10)

    return network
