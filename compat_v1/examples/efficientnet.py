"""EfficientNet B0 to B7 (Tan and Le 2019) with the names of the official release for TPUs.

``efficientnet.rules`` ports its checkpoints. The networks are those of keras.applications without the layers that scale
images; Keras names blocks by stage (``block2a``), the release by number, and the numbers of a stage depend on the size.
"""

from __future__ import annotations

import math
from typing import Any

from compat_v1.examples.layers import Layers, finish
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
_LAYERS = Layers(epsilon=1e-3, momentum=0.99, activation=None)
# kernel, number of blocks, filters, expansion, stride of the first block
STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)
SCALES = (
    (1.0, 1.0),
    (1.0, 1.1),
    (1.1, 1.2),
    (1.2, 1.4),
    (1.4, 1.8),
    (1.6, 2.2),
    (1.8, 2.6),
    (2.0, 3.1),
)  # width, depth


def b0(image_shape: ImageShape = (224, 224, 3), outputs: int = 1000) -> Any:
    """EfficientNet B0: images [B, H, W, 3], normalised by ImageNet's mean and standard deviation -> logits [B, outputs]."""
    return build(*SCALES[0], image_shape, outputs)


def b1(image_shape: ImageShape = (240, 240, 3), outputs: int = 1000) -> Any:
    """EfficientNet B1; the rest as ``b0``."""
    return build(*SCALES[1], image_shape, outputs)


def b2(image_shape: ImageShape = (260, 260, 3), outputs: int = 1000) -> Any:
    """EfficientNet B2; the rest as ``b0``."""
    return build(*SCALES[2], image_shape, outputs)


def b3(image_shape: ImageShape = (300, 300, 3), outputs: int = 1000) -> Any:
    """EfficientNet B3; the rest as ``b0``."""
    return build(*SCALES[3], image_shape, outputs)


def b4(image_shape: ImageShape = (380, 380, 3), outputs: int = 1000) -> Any:
    """EfficientNet B4; the rest as ``b0``."""
    return build(*SCALES[4], image_shape, outputs)


def b5(image_shape: ImageShape = (456, 456, 3), outputs: int = 1000) -> Any:
    """EfficientNet B5; the rest as ``b0``."""
    return build(*SCALES[5], image_shape, outputs)


def b6(image_shape: ImageShape = (528, 528, 3), outputs: int = 1000) -> Any:
    """EfficientNet B6; the rest as ``b0``."""
    return build(*SCALES[6], image_shape, outputs)


def b7(image_shape: ImageShape = (600, 600, 3), outputs: int = 1000) -> Any:
    """EfficientNet B7; the rest as ``b0``."""
    return build(*SCALES[7], image_shape, outputs)


def build(width: float, depth: float, image_shape: ImageShape, outputs: int) -> Any:
    """Builds the network whose stages are scaled by ``width`` and ``depth``."""
    images = import_keras().Input(image_shape, name="images")
    x = _conv(images, "stem", round_filters(32, width), 3, 2, norm=0)
    number = 0
    for kernel, count, filters, expansion, first in STAGES:
        for place in range(math.ceil(count * depth)):
            x = _block(
                x, f"blocks_{number}", round_filters(filters, width), kernel, 1 if place else first, expansion=expansion
            )
            number += 1
    x = _conv(x, "head", round_filters(1280, width), 1, norm=0)
    return finish(images, x, outputs, name="efficientnet", dropout=0.2)


def round_filters(filters: int, width: float) -> int:
    """The nearest multiple of 8 to a scaled number of filters that is not below 0.9 of it."""
    scaled = filters * width
    near = max(8, int(scaled + 4) // 8 * 8)
    return near + 8 if near < 0.9 * scaled else near


def _block(x: Any, name: str, filters: int, kernel: int, strides: int, *, expansion: int) -> Any:
    """An inverted residual with squeeze and excitation; the release counts convolutions and norms within a block."""
    layers = import_keras().layers
    inputs, made = x, 0
    if expansion > 1:
        x = _conv(x, name, expansion * x.shape[-1], 1, norm=0)
        made = 1
    x = layers.DepthwiseConv2D(kernel, strides, "same", use_bias=False, name=f"{name}_depthwise_conv2d")(x)
    x = _LAYERS.norm(x, f"{name}_tpu_batch_normalization{_suffix(made)}", activation="swish")
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(max(1, inputs.shape[-1] // 4), 1, activation="swish", name=f"{name}_se_conv2d")(y)
    y = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_se_conv2d_1")(y)
    x = layers.Multiply()([x, y])
    x = _conv(x, name, filters, 1, number=made, norm=made + 1, activation=None)
    return layers.Add()([inputs, x]) if strides == 1 and inputs.shape[-1] == filters else x


def _conv(
    x: Any,
    name: str,
    filters: int,
    kernel: int,
    strides: int = 1,
    *,
    number: int = 0,
    norm: int,
    activation: Any = "swish",
) -> Any:
    conv = import_keras().layers.Conv2D(
        filters, kernel, strides, "same", use_bias=False, name=f"{name}_conv2d{_suffix(number)}"
    )
    return _LAYERS.norm(conv(x), f"{name}_tpu_batch_normalization{_suffix(norm)}", activation=activation)


def _suffix(number: int) -> str:
    return f"_{number}" if number else ""
