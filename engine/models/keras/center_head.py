"""``--head=centers``: finds objects on a trunk of Keras, as maps of their centres (arXiv:1904.07850).

On the map of a decoder (engine.models.keras.dense_heads), three small branches compute the outputs that
``engine.training.centers`` describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.data.part import GEOMETRY
from engine.models.keras.convolving import convolve
from engine.models.keras.heads import CENTERS, Head, HeadError
from engine.models.keras.stages import Stage
from engine.text import join_words

CENTER_DECODER = (128, 64, 64, 64)  # filters from the coarsest stage on, by default
FIRST_CHANCE = -2.19  # the logit of a centre at the beginning: a chance of 0.1, as in the paper


def choose_stages(stages: Sequence[Stage], head: Head, image: tuple[int, int]) -> list[Stage]:
    """The stages of a trunk from the stride of the head on, the finest first.

    Raises HeadError if there is none of this stride, or the sides of the image are no multiples of it: then the last cell would
    reach over the edge, and boxes, which are shares of the sides, would not lie where cells do.
    """
    strides = [stage.stride for stage in stages]
    if head.stride not in strides:
        raise HeadError(f"head={CENTERS},stride={head.stride}: the trunk has maps of the strides {join_words(strides)}")
    if any(side % head.stride for side in image):
        close = "x".join(str(max(1, round(side / head.stride)) * head.stride) for side in image)
        raise HeadError(
            f"head={CENTERS}: images of {image[0]}x{image[1]}: expected sides that are multiples of the stride {head.stride}, "
            f"such as --image_size={close}"
        )
    return [stage for stage in stages if stage.stride >= head.stride]


def build_maps(features: Any, outputs: int) -> Any:
    """The maps of ``outputs`` - 4 classes, of sizes and of offsets, from features."""
    import keras

    if outputs <= GEOMETRY:
        raise HeadError(f"head={CENTERS}: {outputs} outputs; it needs the loss centers, and boxes as labels")
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    maps = []
    for name, count, first in (("heat", outputs - GEOMETRY, FIRST_CHANCE), ("size", 2, 0.0), ("offset", 2, 0.0)):
        bias = keras.initializers.Constant(first)
        layer = keras.layers.Conv2D(count, 1, kernel_initializer=small, bias_initializer=bias, name=f"{name}_logits")
        maps.append(layer(convolve(features, features.shape[-1], 3, name)))
    return keras.layers.Concatenate(name="maps")(maps)
