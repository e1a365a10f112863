"""The ResNets of Big Transfer (BiT, Kolesnikov et al. 2019): v2 with group norms and standardised kernels.

``bit_resnet.rules`` ports the released files (.npz), whose names are those of TensorFlow 1. keras.applications has no
such network. A kernel is used less its mean and divided by its standard deviation, for each filter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from compat_v1.examples.layers import finish
from compat_v1.examples.slim_resnet import UNITS
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
_NATIVE: ImageShape = (224, 224, 3)
_EPSILON = 1e-10


def r50x1(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R50x1: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs] (21,843 of ImageNet-21k, or 1,000)."""
    return build(UNITS[50], 1, image_shape, outputs)


def r50x3(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R50x3; the rest as ``r50x1``."""
    return build(UNITS[50], 3, image_shape, outputs)


def r101x1(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R101x1; the rest as ``r50x1``."""
    return build(UNITS[101], 1, image_shape, outputs)


def r101x3(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R101x3; the rest as ``r50x1``."""
    return build(UNITS[101], 3, image_shape, outputs)


def r152x2(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R152x2; the rest as ``r50x1``."""
    return build(UNITS[152], 2, image_shape, outputs)


def r152x4(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """BiT R152x4; the rest as ``r50x1``."""
    return build(UNITS[152], 4, image_shape, outputs)


def build(units: Sequence[int], factor: float, image_shape: ImageShape, outputs: int) -> Any:
    """Builds the network with these numbers of units in its blocks; ``factor`` multiplies its width."""
    layers = import_keras().layers
    images = import_keras().Input(image_shape, name="images")
    width = int(64 * factor)
    x = _conv(images, "root", width, 7, 2)
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for block, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            strides = 2 if unit == 1 and block > 1 else 1
            x = _unit(x, f"block{block}_unit{unit:02d}", width << (block - 1), strides)
    return finish(images, _norm(x, "group_norm"), outputs, name="bit_resnet")


def _unit(x: Any, name: str, filters: int, strides: int) -> Any:
    layers = import_keras().layers
    shortcut = x
    x = _norm(x, f"{name}_a_group_norm")
    if strides > 1 or shortcut.shape[-1] != 4 * filters:
        shortcut = _conv(x, f"{name}_a_proj", 4 * filters, 1, strides)
    x = _conv(x, f"{name}_a", filters, 1)
    x = _conv(_norm(x, f"{name}_b_group_norm"), f"{name}_b", filters, 3, strides)
    x = _conv(_norm(x, f"{name}_c_group_norm"), f"{name}_c", 4 * filters, 1)
    return layers.Add()([shortcut, x])


def _norm(x: Any, name: str) -> Any:
    layers = import_keras().layers
    return layers.Activation("relu")(layers.GroupNormalization(32, epsilon=1e-5, name=name)(x))


def _conv(x: Any, name: str, filters: int, kernel: int, strides: int = 1) -> Any:
    """A convolution with a standardised kernel; the padding does not depend on the size of the image."""
    if kernel > 1:
        x = import_keras().layers.ZeroPadding2D(kernel // 2)(x)
    return _standardized()(filters, kernel, strides, use_bias=False, name=f"{name}_standardized_conv2d")(x)


@functools.cache
def _standardized() -> Any:
    keras = import_keras()
    base: Any = keras.layers.Conv2D

    @keras.saving.register_keras_serializable("compat_v1.examples")
    class StandardizedConv2D(base):
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            mean, variance = keras.ops.moments(kernel, [0, 1, 2], keepdims=True)
            return super().convolution_op(inputs, (kernel - mean) / keras.ops.sqrt(variance + _EPSILON))

    return StandardizedConv2D
