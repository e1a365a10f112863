"""Inception-ResNet v1 of FaceNet (Schroff et al. 2015), and v2 of TF-Slim (Szegedy et al. 2016).

``facenet.rules`` ports the checkpoints of github.com/davidsandberg/facenet, in which faces become vectors (512 numbers;
older ones have 128); ``slim_inception_resnet_v2.rules`` those of TF-Slim. keras.applications has v2 alone, with numbers for
names. Norms have no gamma and an epsilon of 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compat_v1.examples.layer_table import apply_table
from compat_v1.examples.layers import Layers, finish
from compat_v1.examples.slim_inception import KerasMaker
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
_LAYERS = Layers(epsilon=1e-3, gamma=False, momentum=0.995)
_MAKER = KerasMaker(_LAYERS)
_STEM = """
Conv2d_1a_3x3 32 /2 valid
Conv2d_2a_3x3 32 valid
Conv2d_2b_3x3 64
max 3 /2 valid
Conv2d_3b_1x1 80 valid
Conv2d_4a_3x3 192 valid
"""


@dataclass(frozen=True)
class Trunk:
    """Tables of layers: the stem, the branches of the three kinds of blocks, and what reduces the map between them."""

    stem: str
    blocks: tuple[str, str, str]
    reductions: tuple[str, str]


FACENET = Trunk(
    _STEM + "Conv2d_4b_3x3 256 /2 valid",
    (
        "Conv2d_1x1 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32, Conv2d_0c_3x3 32",
        "Conv2d_1x1 128 | Conv2d_0a_1x1 128, Conv2d_0b_1x7 128, Conv2d_0c_7x1 128",
        "Conv2d_1x1 192 | Conv2d_0a_1x1 192, Conv2d_0b_1x3 192, Conv2d_0c_3x1 192",
    ),
    (
        "Mixed_6a: Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 192, Conv2d_0b_3x3 192, Conv2d_1a_3x3 256 /2 valid | max 3 /2 valid",
        "Mixed_7a: Conv2d_0a_1x1 256, Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_1a_3x3 256 /2 valid | "
        "Conv2d_0a_1x1 256, Conv2d_0b_3x3 256, Conv2d_1a_3x3 256 /2 valid | max 3 /2 valid",
    ),
)
V2 = Trunk(
    _STEM
    + "max 3 /2 valid\nMixed_5b: Conv2d_1x1 96 | Conv2d_0a_1x1 48, Conv2d_0b_5x5 64 | "
    + "Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96 | avg 3, Conv2d_0b_1x1 64",
    (
        "Conv2d_1x1 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 32 | Conv2d_0a_1x1 32, Conv2d_0b_3x3 48, Conv2d_0c_3x3 64",
        "Conv2d_1x1 192 | Conv2d_0a_1x1 128, Conv2d_0b_1x7 160, Conv2d_0c_7x1 192",
        "Conv2d_1x1 192 | Conv2d_0a_1x1 192, Conv2d_0b_1x3 224, Conv2d_0c_3x1 256",
    ),
    (
        "Mixed_6a: Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_0b_3x3 256, Conv2d_1a_3x3 384 /2 valid | max 3 /2 valid",
        "Mixed_7a: Conv2d_0a_1x1 256, Conv2d_1a_3x3 384 /2 valid | Conv2d_0a_1x1 256, Conv2d_1a_3x3 288 /2 valid | "
        "Conv2d_0a_1x1 256, Conv2d_0b_3x3 288, Conv2d_1a_3x3 320 /2 valid | max 3 /2 valid",
    ),
)


def facenet(image_shape: ImageShape = (160, 160, 3), outputs: int = 512) -> Any:
    """FaceNet's network: whitened faces [B, H, W, 3] (each of mean 0 and variance 1) -> vectors [B, outputs] of length 1."""
    return build_facenet((5, 10, 5), image_shape, outputs)


def v2(image_shape: ImageShape = (299, 299, 3), outputs: int = 1000) -> Any:
    """Inception-ResNet v2: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]."""
    images = import_keras().Input(image_shape, name="images")
    x = _LAYERS.conv(_trunk(images, V2, (10, 20, 9)), "Conv2d_7b_1x1", 1536, 1)
    return finish(images, x, outputs, name="inception_resnet_v2", dropout=0.2)


def build_facenet(counts: Sequence[int], image_shape: ImageShape, outputs: int) -> Any:
    """Builds FaceNet's network with these numbers of blocks of the three kinds."""
    keras = import_keras()
    layers = keras.layers
    images = keras.Input(image_shape, name="images")
    x = layers.GlobalAveragePooling2D(name="pool")(_trunk(images, FACENET, counts))
    x = layers.Dense(outputs, use_bias=False, name="Bottleneck")(layers.Dropout(0.2, name="dropout")(x))
    x = _LAYERS.norm(x, "Bottleneck_bn")
    return keras.Model(images, layers.UnitNormalization(name="vectors")(x), name="facenet")


def _trunk(x: Any, trunk: Trunk, counts: Sequence[int]) -> Any:
    """Everything up to the last block, which is not scaled and has no ReLU."""
    x = apply_table(trunk.stem, x, _MAKER)
    for place, (kind, scale) in enumerate(
        (("Repeat_block35", 0.17), ("Repeat_1_block17", 0.1), ("Repeat_2_block8", 0.2))
    ):
        for number in range(1, counts[place] + 1):
            x = _residual(x, f"{kind}_{number}", trunk.blocks[place], scale)
            x = import_keras().layers.Activation("relu")(x)
        x = apply_table(trunk.reductions[place], x, _MAKER) if place < 2 else x
    return _residual(x, "Block8", trunk.blocks[2], 1.0)


def _residual(x: Any, name: str, branches: str, scale: float) -> Any:
    """``x`` and a scaled convolution of the branches' outputs."""
    layers = import_keras().layers
    y = apply_table(f"{name}: {branches}", x, _MAKER)
    y = _LAYERS.conv(y, f"{name}_Conv2d_1x1", x.shape[-1], 1, norm=False, activation=None)
    return layers.Add()([x, layers.Rescaling(scale)(y)])
