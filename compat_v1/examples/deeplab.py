"""The backbones of DeepLab v3 and v3+ (Chen et al. 2017, 2018): MobileNet v2 and Xception 65, with dilated layers.

``deeplab_mobilenet_v2.rules`` and ``deeplab_xception.rules`` port them from its checkpoints. A backbone ends in a map of
features; up to ``output_stride`` its layers stride, beyond it they are dilated instead, with the same weights.
"""

from __future__ import annotations

from typing import Any

from compat_v1.examples.layers import Layers
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
_ANY: ImageShape = (None, None, 3)
_MOBILE = Layers(epsilon=1e-3, activation="relu6")
_XCEPTION = Layers(epsilon=1e-3, momentum=0.9997)
# expansion, filters, number of blocks, stride of the first
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(image_shape: ImageShape = _ANY, *, output_stride: int = 16) -> Any:
    """MobileNet v2: images [B, H, W, 3] in -1 to 1 -> features [B, H / output_stride, W / output_stride, 320]."""
    layers = import_keras().layers
    images = import_keras().Input(image_shape, name="images")
    x = _MOBILE.conv(images, "Conv", 32, 3, 2)
    number, reached, dilation = 0, 2, 1
    for expansion, filters, count, first in _STAGES:
        for place in range(count):
            wanted = 1 if place else first
            dilated = reached == output_stride
            strides = 1 if dilated else wanted
            reached *= strides
            name = f"expanded_conv_{number}" if number else "expanded_conv"
            y = _MOBILE.conv(x, f"{name}_expand", expansion * x.shape[-1], 1) if expansion > 1 else x
            y = _MOBILE.depthwise(y, f"{name}_depthwise", 3, strides, dilation=dilation if dilated else 1)
            y = _MOBILE.conv(y, f"{name}_project", filters, 1, activation=None)
            x = layers.Add()([x, y]) if wanted == 1 and x.shape[-1] == filters else y
            dilation *= wanted if dilated else 1
            number += 1
    return import_keras().Model(images, x, name="deeplab_mobilenet_v2")


def xception_65(image_shape: ImageShape = _ANY, *, output_stride: int = 16) -> Any:
    """Xception 65: images [B, H, W, 3] in -1 to 1 -> features [B, H / output_stride, W / output_stride, 2048]."""
    return build_xception(16, image_shape, output_stride)


def build_xception(middle: int, image_shape: ImageShape, output_stride: int, *, width: int = 8) -> Any:
    """Builds an Xception with this number of units in its middle flow; ``width`` is the number of filters over 91."""
    images = import_keras().Input(image_shape, name="images")
    x = _XCEPTION.conv(images, "entry_flow_conv1_1", 32, 3, 2, padding="fixed")
    x = _XCEPTION.conv(x, "entry_flow_conv1_2", 64, 3, padding="fixed")
    blocks: list[tuple[str, tuple[int, int, int], str, int]] = [
        *((f"entry_flow_block{n}_unit_1", (f, f, f), "conv", 2) for n, f in ((1, 128), (2, 256), (3, 91 * width))),
        *((f"middle_flow_block1_unit_{n}", (91 * width,) * 3, "sum", 1) for n in range(1, middle + 1)),
        ("exit_flow_block1_unit_1", (91 * width, 1024, 1024), "conv", 2),
        ("exit_flow_block2_unit_1", (1536, 1536, 2048), "none", 1),
    ]
    reached, dilation = 2, 1
    for name, filters, shortcut, wanted in blocks:
        dilated = reached == output_stride
        strides = 1 if dilated else wanted
        x = _module(x, name, filters, shortcut, strides, dilation=dilation if dilated else 1)
        dilation *= wanted if dilated else 1
        reached *= strides
    return import_keras().Model(images, x, name="deeplab_xception")


def _module(x: Any, name: str, filters: tuple[int, int, int], shortcut: str, strides: int, *, dilation: int) -> Any:
    """Three separable convolutions; a ReLU comes before each, or in the last block after both of its parts."""
    layers = import_keras().layers
    inside = "relu" if shortcut == "none" else None
    y = x
    for number, size in enumerate(filters, 1):
        y = y if inside else layers.Activation("relu")(y)
        part = f"{name}_separable_conv{number}"
        step = strides if number == 3 else 1
        y = _XCEPTION.depthwise(y, f"{part}_depthwise", 3, step, padding="fixed", activation=inside, dilation=dilation)
        y = _XCEPTION.conv(y, f"{part}_pointwise", size, 1, activation=inside)
    if shortcut == "none":
        return y
    if shortcut == "conv":
        x = _XCEPTION.conv(x, f"{name}_shortcut", filters[-1], 1, strides, activation=None)
    return layers.Add()([x, y])
