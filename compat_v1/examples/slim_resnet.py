"""ResNet v1 and v2 with 50, 101 and 152 layers as in TF-Slim (He et al. 2015 and 2016).

These are other networks than those of keras.applications. A block strides in its last unit, and v1 there in the 3x3
convolution, while Keras' ResNet50 strides in the first unit's 1x1. Strided convolutions pad by a fixed amount and the
first pool as SAME does, while Keras pads both with zeros; and Keras' v1 has biases before its norms.

``slim_resnet_v1.rules`` and ``slim_resnet_v2.rules`` port their checkpoints, and the backbones of object detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compat_v1.examples.layers import Layers, finish, max_pool
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_NATIVE: ImageShape = (224, 224, 3)
_LAYERS = Layers(epsilon=1e-5)


def v1_50(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v1 50: images [B, H, W, 3] in 0 to 255, less 123.68, 116.78 and 103.94 (red, green, blue) -> logits."""
    return build_v1(UNITS[50], image_shape, outputs)


def v1_101(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v1 101; the rest as ``v1_50``."""
    return build_v1(UNITS[101], image_shape, outputs)


def v1_152(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v1 152; the rest as ``v1_50``."""
    return build_v1(UNITS[152], image_shape, outputs)


def v2_50(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v2 50: images [B, H, W, 3] in -1 to 1 -> logits. TF-Slim trained it on 299x299 pixels."""
    return build_v2(UNITS[50], image_shape, outputs)


def v2_101(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v2 101; the rest as ``v2_50``."""
    return build_v2(UNITS[101], image_shape, outputs)


def v2_152(image_shape: ImageShape = _NATIVE, outputs: int = 1000) -> Any:
    """ResNet v2 152; the rest as ``v2_50``."""
    return build_v2(UNITS[152], image_shape, outputs)


def build_v1(units: Sequence[int], image_shape: ImageShape, outputs: int, *, width: int = 64) -> Any:
    """Builds a v1 with these numbers of units in its blocks; ``width`` is the number of filters of the first layer."""
    layers = import_keras().layers
    images = import_keras().Input(image_shape, name="images")
    x = max_pool(_LAYERS.conv(images, "conv1", width, 7, 2, padding="fixed"), 3, 2)
    for name, filters, strides in _units(units, width):
        shortcut = _subsample(x, strides)
        if x.shape[-1] != 4 * filters:
            shortcut = _LAYERS.conv(x, f"{name}_shortcut", 4 * filters, 1, strides, activation=None)
        y = _LAYERS.conv(x, f"{name}_conv1", filters, 1)
        y = _LAYERS.conv(y, f"{name}_conv2", filters, 3, strides, padding="fixed")
        y = _LAYERS.conv(y, f"{name}_conv3", 4 * filters, 1, activation=None)
        x = layers.Activation("relu")(layers.Add()([shortcut, y]))
    return finish(images, x, outputs, name="resnet_v1")


def build_v2(units: Sequence[int], image_shape: ImageShape, outputs: int, *, width: int = 64) -> Any:
    """Builds a v2, where norms come before convolutions; arguments as of ``build_v1``."""
    layers = import_keras().layers
    images = import_keras().Input(image_shape, name="images")
    x = max_pool(_LAYERS.conv(images, "conv1", width, 7, 2, padding="fixed", norm=False, activation=None), 3, 2)
    for name, filters, strides in _units(units, width):
        ready = _LAYERS.norm(x, f"{name}_preact", activation="relu")
        shortcut = _subsample(x, strides)
        if x.shape[-1] != 4 * filters:
            shortcut = _LAYERS.conv(ready, f"{name}_shortcut", 4 * filters, 1, strides, norm=False, activation=None)
        y = _LAYERS.conv(ready, f"{name}_conv1", filters, 1)
        y = _LAYERS.conv(y, f"{name}_conv2", filters, 3, strides, padding="fixed")
        y = _LAYERS.conv(y, f"{name}_conv3", 4 * filters, 1, norm=False, activation=None)
        x = layers.Add()([shortcut, y])
    x = _LAYERS.norm(x, "postnorm", activation="relu")
    return finish(images, x, outputs, name="resnet_v2")


def _units(units: Sequence[int], width: int) -> list[tuple[str, int, int]]:
    """Returns the name, the number of filters and the stride of each unit; all but the last block stride at their end."""
    return [
        (f"block{block}_unit_{unit}", width << (block - 1), 2 if unit == count and block < len(units) else 1)
        for block, count in enumerate(units, 1)
        for unit in range(1, count + 1)
    ]


def _subsample(x: Any, strides: int) -> Any:
    return x if strides == 1 else max_pool(x, 1, strides)
