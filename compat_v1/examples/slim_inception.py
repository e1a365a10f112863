"""Inception v1 to v4 as in TF-Slim (Szegedy et al. 2014 to 2016), with the names of its layers.

keras.applications has v3 alone, with numbers for names.

``slim_inception.rules`` ports their checkpoints. Norms have no gamma and an epsilon of 1e-3. The last pool is over the
whole map, which is what TF-Slim does at the native size of 224x224 pixels (v4: 299x299).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from compat_v1.examples.layer_table import apply_table
from compat_v1.examples.layers import Layers, avg_pool, finish, max_pool
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
LAYERS = Layers(epsilon=1e-3, gamma=False, momentum=0.9997)

V1 = """
Conv2d_1a_7x7 64 /2
max 3 /2
Conv2d_2b_1x1 64
Conv2d_2c_3x3 192
max 3 /2
Mixed_3b: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 128 | Conv2d_0a_1x1 16, Conv2d_0b_3x3 32 | max 3, Conv2d_0b_1x1 32
Mixed_3c: Conv2d_0a_1x1 128 | Conv2d_0a_1x1 128, Conv2d_0b_3x3 192 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 96 | max 3, Conv2d_0b_1x1 64
max 3 /2
Mixed_4b: Conv2d_0a_1x1 192 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 208 | Conv2d_0a_1x1 16, Conv2d_0b_3x3 48 | max 3, Conv2d_0b_1x1 64
Mixed_4c: Conv2d_0a_1x1 160 | Conv2d_0a_1x1 112, Conv2d_0b_3x3 224 | Conv2d_0a_1x1 24, Conv2d_0b_3x3 64 | max 3, Conv2d_0b_1x1 64
Mixed_4d: Conv2d_0a_1x1 128 | Conv2d_0a_1x1 128, Conv2d_0b_3x3 256 | Conv2d_0a_1x1 24, Conv2d_0b_3x3 64 | max 3, Conv2d_0b_1x1 64
Mixed_4e: Conv2d_0a_1x1 112 | Conv2d_0a_1x1 144, Conv2d_0b_3x3 288 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 64 | max 3, Conv2d_0b_1x1 64
Mixed_4f: Conv2d_0a_1x1 256 | Conv2d_0a_1x1 160, Conv2d_0b_3x3 320 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 128 | max 3, Conv2d_0b_1x1 128
max 2 /2
Mixed_5b: Conv2d_0a_1x1 256 | Conv2d_0a_1x1 160, Conv2d_0b_3x3 320 | Conv2d_0a_1x1 32, Conv2d_0a_3x3 128 | max 3, Conv2d_0b_1x1 128
Mixed_5c: Conv2d_0a_1x1 384 | Conv2d_0a_1x1 192, Conv2d_0b_3x3 384 | Conv2d_0a_1x1 48, Conv2d_0b_3x3 128 | max 3, Conv2d_0b_1x1 128
"""

V2 = """
max 3 /2
Conv2d_2b_1x1 64
Conv2d_2c_3x3 192
max 3 /2
Mixed_3b: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 32
Mixed_3c: Conv2d_0a_1x1 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 64
Mixed_4a: Conv2d_0a_1x1 128, Conv2d_1a_3x3 160 /2 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_1a_3x3 96 /2 | max 3 /2
Mixed_4b: Conv2d_0a_1x1 224 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 128, Conv2d_0c_3x3 128 | avg 3, Conv2d_0b_1x1 128
Mixed_4c: Conv2d_0a_1x1 192 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 128 | Conv2d_0a_1x1 96, Conv2d_0b_3x3 128, Conv2d_0c_3x3 128 | avg 3, Conv2d_0b_1x1 128
Mixed_4d: Conv2d_0a_1x1 160 | Conv2d_0a_1x1 128, Conv2d_0b_3x3 160 | Conv2d_0a_1x1 128, Conv2d_0b_3x3 160, Conv2d_0c_3x3 160 | avg 3, Conv2d_0b_1x1 96
Mixed_4e: Conv2d_0a_1x1 96 | Conv2d_0a_1x1 128, Conv2d_0b_3x3 192 | Conv2d_0a_1x1 160, Conv2d_0b_3x3 192, Conv2d_0c_3x3 192 | avg 3, Conv2d_0b_1x1 96
Mixed_5a: Conv2d_0a_1x1 128, Conv2d_1a_3x3 192 /2 | Conv2d_0a_1x1 192, Conv2d_0b_3x3 256, Conv2d_1a_3x3 256 /2 | max 3 /2
Mixed_5b: Conv2d_0a_1x1 352 | Conv2d_0a_1x1 192, Conv2d_0b_3x3 320 | Conv2d_0a_1x1 160, Conv2d_0b_3x3 224, Conv2d_0c_3x3 224 | avg 3, Conv2d_0b_1x1 128
Mixed_5c: Conv2d_0a_1x1 352 | Conv2d_0a_1x1 192, Conv2d_0b_3x3 320 | Conv2d_0a_1x1 192, Conv2d_0b_3x3 224, Conv2d_0c_3x3 224 | max 3, Conv2d_0b_1x1 128
"""

_PLAIN = "Conv2d_0a_1x1 64 | Conv2d_0a_1x1 48, Conv2d_0b_5x5 64 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 "
_SEVEN = (
    "Conv2d_0a_1x1 192 | Conv2d_0a_1x1 {0}, Conv2d_0b_1x7 {0}, Conv2d_0c_7x1 192 | Conv2d_0a_1x1 {0}, Conv2d_0b_7x1 {0}, "
    "Conv2d_0c_1x7 {0}, Conv2d_0d_7x1 {0}, Conv2d_0e_1x7 192 | avg 3, Conv2d_0b_1x1 192"
)
_WIDE = (
    "Conv2d_0a_1x1 320 | Conv2d_0a_1x1 384, Conv2d_0b_1x3 384 & Conv2d_{}_3x1 384 | Conv2d_0a_1x1 448, Conv2d_0b_3x3 384, "
    "Conv2d_0c_1x3 384 & Conv2d_0d_3x1 384 | avg 3, Conv2d_0b_1x1 192"
)
# two scopes of Mixed_5c and two of Mixed_6a are called other than what they are
V3 = f"""
Conv2d_1a_3x3 32 /2 valid
Conv2d_2a_3x3 32 valid
Conv2d_2b_3x3 64
max 3 /2 valid
Conv2d_3b_1x1 80 valid
Conv2d_4a_3x3 192 valid
max 3 /2 valid
Mixed_5b: {_PLAIN} 32
Mixed_5c: {_PLAIN.replace("0a_1x1 48, Conv2d_0b_5x5", "0b_1x1 48, Conv_1_0c_5x5")} 64
Mixed_5d: {_PLAIN} 64
Mixed_6a: Conv2d_1a_1x1 384 3x3 /2 valid | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_1a_1x1 96 3x3 /2 valid | max 3 /2 valid
Mixed_6b: {_SEVEN.format(128)}
Mixed_6c: {_SEVEN.format(160)}
Mixed_6d: {_SEVEN.format(160)}
Mixed_6e: {_SEVEN.format(192)}
Mixed_7a: Conv2d_0a_1x1 192, Conv2d_1a_3x3 320 /2 valid | Conv2d_0a_1x1 192, Conv2d_0b_1x7 192, Conv2d_0c_7x1 192, Conv2d_1a_3x3 192 /2 valid | max 3 /2 valid
Mixed_7b: {_WIDE.format("0b")}
Mixed_7c: {_WIDE.format("0c")}
"""

_A = "Conv2d_0a_1x1 96 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96 | Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 96"
_B = (
    "Conv2d_0a_1x1 384 | Conv2d_0a_1x1 192, Conv2d_0b_1x7 224, Conv2d_0c_7x1 256 | Conv2d_0a_1x1 192, Conv2d_0b_7x1 192, "
    "Conv2d_0c_1x7 224, Conv2d_0d_7x1 224, Conv2d_0e_1x7 256 | avg 3, Conv2d_0b_1x1 128"
)
_C = (
    "Conv2d_0a_1x1 256 | Conv2d_0a_1x1 384, Conv2d_0b_1x3 256 & Conv2d_0c_3x1 256 | Conv2d_0a_1x1 384, Conv2d_0b_3x1 448, "
    "Conv2d_0c_1x3 512, Conv2d_0d_1x3 256 & Conv2d_0e_3x1 256 | avg 3, Conv2d_0b_1x1 256"
)
V4 = "\n".join(
    [
        """
Conv2d_1a_3x3 32 /2 valid
Conv2d_2a_3x3 32 valid
Conv2d_2b_3x3 64
Mixed_3a: max 3 /2 valid | Conv2d_0a_3x3 96 /2 valid
Mixed_4a: Conv2d_0a_1x1 64, Conv2d_1a_3x3 96 valid | Conv2d_0a_1x1 64, Conv2d_0b_1x7 64, Conv2d_0c_7x1 64, Conv2d_1a_3x3 96 valid
Mixed_5a: Conv2d_1a_3x3 192 /2 valid | max 3 /2 valid""",
        *(f"Mixed_5{letter}: {_A}" for letter in "bcde"),
        "Mixed_6a: Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 192, Conv2d_0b_3x3 224, Conv2d_1a_3x3 256 /2 valid | max 3 /2 valid",
        *(f"Mixed_6{letter}: {_B}" for letter in "bcdefgh"),
        "Mixed_7a: Conv2d_0a_1x1 192, Conv2d_1a_3x3 192 /2 valid | "
        "Conv2d_0a_1x1 256, Conv2d_0b_1x7 256, Conv2d_0c_7x1 320, Conv2d_1a_3x3 320 /2 valid | max 3 /2 valid",
        *(f"Mixed_7{letter}: {_C}" for letter in "bcd"),
    ]
)


class KerasMaker:
    """Makes the layers of a table in Keras, with scopes joined by ``_`` as names."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def conv(self, x: Any, scope: str, filters: int, kernel: tuple[int, int], strides: int, padding: str) -> Any:
        return self.layers.conv(x, scope.replace("/", "_"), filters, kernel, strides, padding=padding)

    def pool(self, x: Any, kind: str, size: int, strides: int, padding: str) -> Any:
        return (max_pool if kind == "max" else avg_pool)(x, size, strides, padding)

    def join(self, branches: Sequence[Any]) -> Any:
        return self.layers.join(branches)


def v1(image_shape: ImageShape = (224, 224, 3), outputs: int = 1000) -> Any:
    """Inception v1 (GoogLeNet) with norms: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]."""
    return build(V1, image_shape, outputs, name="inception_v1")


def v2(image_shape: ImageShape = (224, 224, 3), outputs: int = 1000) -> Any:
    """Inception v2: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]. Its first layer has a bias and no norm."""
    return build(V2, image_shape, outputs, name="inception_v2", first="bias")


def v2_detector(image_shape: ImageShape = (224, 224, 3), outputs: int = 1000) -> Any:
    """Inception v2 as in object detectors, where all layers have norms, and norms have a gamma."""
    layers = dataclasses.replace(LAYERS, gamma=True)
    return build(V2, image_shape, outputs, name="inception_v2", first="norm", layers=layers)


def v3(image_shape: ImageShape = (299, 299, 3), outputs: int = 1000) -> Any:
    """Inception v3: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]."""
    return build(V3, image_shape, outputs, name="inception_v3")


def v4(image_shape: ImageShape = (299, 299, 3), outputs: int = 1000) -> Any:
    """Inception v4: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]."""
    return build(V4, image_shape, outputs, name="inception_v4")


def build(
    table: str,
    image_shape: ImageShape,
    outputs: int,
    *,
    name: str,
    first: str = "",
    layers: Layers = LAYERS,
    scale: Callable[[int], int] = lambda filters: filters,
) -> Any:
    """Builds the network of a table.

    v2 has a separable convolution before it: ``first`` says whether that has a "bias" or a "norm".
    """
    keras = import_keras()
    x = images = keras.Input(image_shape, name="images")
    if first:
        filters = scale(64)
        multiplier = min(filters // 3, 8)
        x = keras.layers.SeparableConv2D(
            filters, 7, 2, "same", depth_multiplier=multiplier, use_bias=first == "bias", name="Conv2d_1a_7x7"
        )(x)
        x = layers.norm(x, "Conv2d_1a_7x7_bn") if first == "norm" else x
        x = keras.layers.Activation("relu")(x)
    x = apply_table(table, x, KerasMaker(layers), scale=scale)
    return finish(images, x, outputs, name=name, dropout=0.2)
