"""Heads with an output for each pixel: a U-Net-like decoder, and atrous spatial pyramid pooling (DeepLab).

They are ``network/{TRUNK, head}``, as other heads are. They normalise by groups of channels of each example, so they keep no
statistics, and a step in parts is exactly the step in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.models.keras.center_head import CENTER_DECODER, build_maps, choose_stages
from engine.models.keras.convolving import convolve
from engine.models.keras.heads import CENTERS, Head, HeadError
from engine.models.keras.stages import Stage, find_stages

DECODER = (128, 64, 32, 16, 16)  # filters of unet from the coarsest stage on, by default
PYRAMID = 128  # filters of aspp, by default
RATES = (3, 6, 9)  # of aspp, in places of the trunk's last map: half of DeepLab's, whose maps have half the stride


def add_dense_head(
    backbone: Any, head: Head, outputs: int, *, image: tuple[int, int], spec: str
) -> tuple[Any, tuple[str, ...]]:
    """Builds the Keras model of a trunk and a new head with ``outputs`` logits for each pixel or cell; and notes on it.

    ``unet`` follows Ronneberger et al. (arXiv:1505.04597): from the coarsest stage of the trunk on, a map is enlarged to the
    next stage and joined with it, then convolved. ``aspp`` follows Chen et al. (arXiv:1706.05587): the last map is convolved at
    several dilations and pooled, and the logits are enlarged to the image. ``centers`` has the decoder of ``unet`` down to its
    stride (engine.models.keras.center_head). ``image`` is its (height, width).

    Raises HeadError if the trunk has no such stages, or the head has other filters than it can have.
    """
    import keras

    stages = find_stages(backbone, image, spec)
    if head.pool == CENTERS:
        stages = choose_stages(stages, head, image)
    used = stages[-1:] if head.pool == "aspp" else stages
    trunk = keras.Model(backbone.inputs[0], [stage.tensor for stage in used], name=backbone.name)
    pixels = keras.Input((*image, backbone.input_shape[-1]), name="image")
    maps = trunk(pixels)
    maps = list(maps) if isinstance(maps, (list, tuple)) else [maps]
    inputs = [
        keras.Input(each.shape[1:], name=f"stride_{stage.stride}") for each, stage in zip(maps, used, strict=True)
    ]
    top = _build_pyramid(inputs[0], head) if head.pool == "aspp" else _build_decoder(inputs, used, head)
    for number, rate in enumerate(part for part in head.parts if isinstance(part, float)):
        top = keras.layers.SpatialDropout2D(rate, name=f"dropout_{number}")(top)
    if head.pool == CENTERS:
        top = build_maps(top, outputs)
    else:
        # not as small as the last layer of other heads: it reads a few channels of new layers, which learn through it
        top = keras.layers.Conv2D(outputs, 1, kernel_initializer="glorot_uniform", name="logits")(top)
        top = keras.layers.Resizing(*image, interpolation="bilinear", name="enlarge")(top)
    network = keras.Model(pixels, keras.Model(inputs, top, name="head")(maps), name="network")
    said = ", ".join(f"{stage.layer} (1/{stage.stride})" for stage in used)
    each = f"cell of {head.stride} pixels" if head.pool == CENTERS else "pixel"
    return network, (f"a new head {head.pool} with {outputs} outputs for each {each}, on {said} of {backbone.name}",)


def _filters(head: Head, default: Sequence[int], count: int) -> list[int]:
    """The filters that a head names, ``count`` of them, or the default."""
    named = [part for part in head.parts if isinstance(part, int)]
    if named and len(named) != count:
        raise HeadError(
            f"head={head.pool}: {len(named)} numbers of filters ({', '.join(map(str, named))}); expected {count}"
            + ("" if head.pool == "aspp" else ", one for each stage of the trunk, from the coarsest on")
        )
    return named or list(default[:count])


def _build_decoder(inputs: Sequence[Any], stages: Sequence[Stage], head: Head) -> Any:
    """The map at the finest stage, from the maps at all of them."""
    import keras

    filters = _filters(head, CENTER_DECODER if head.pool == CENTERS else DECODER, len(stages))
    *skips, x = inputs
    x = convolve(x, filters[0], 1, f"reduce_{stages[-1].stride}")
    for number, (skip, stage) in enumerate(reversed(list(zip(skips, stages[:-1], strict=True)))):
        x = keras.layers.Resizing(*skip.shape[1:3], interpolation="nearest", name=f"enlarge_{stage.stride}")(x)
        x = keras.layers.Concatenate(name=f"join_{stage.stride}")([x, skip])
        x = convolve(x, filters[number + 1], 3, f"up_{stage.stride}")
    return x


def _build_pyramid(x: Any, head: Head) -> Any:
    """The map at the last stage, convolved at several dilations, with its mean over all places."""
    import keras

    (filters,) = _filters(head, (PYRAMID,), 1)
    branches = [convolve(x, filters, 1, "point")]
    branches += [convolve(x, filters, 3, f"rate_{rate}", dilation=rate) for rate in RATES]
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    mean = keras.layers.Conv2D(filters, 1, activation="relu", kernel_initializer="he_normal", name="whole")(mean)
    branches.append(keras.layers.Resizing(*x.shape[1:3], interpolation="nearest", name="spread")(mean))
    return convolve(keras.layers.Concatenate(name="join")(branches), filters, 1, "project")
