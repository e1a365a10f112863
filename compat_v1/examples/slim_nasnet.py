"""NASNet-A (mobile) as in TF-Slim (Zoph et al. 2017).

It is not the network of keras.applications, which pads the strided pools of its reduction cells with zeros that they
count, while TF-Slim's ignore the border. ``slim_nasnet.rules`` ports its checkpoints.
"""

from __future__ import annotations

from typing import Any

from compat_v1.examples.layers import Layers, avg_pool, finish, max_pool
from engine.models.keras.safe_loading import import_keras

ImageShape = tuple[int | None, int | None, int]
_LAYERS = Layers(epsilon=1e-3, momentum=0.9997)
_STEM_FILTERS = 32
# (operation, number of the state that it reads) for each half of the five combinations; state 0 is the input of the cell
# after its first convolution, state 1 that of the cell before, and each combination adds one
_NORMAL = (
    (("separable_5x5", 0), ("separable_3x3", 1)),
    (("separable_5x5", 1), ("separable_3x3", 1)),
    (("avg", 0), ("none", 1)),
    (("avg", 1), ("avg", 1)),
    (("separable_3x3", 0), ("none", 0)),
)
_REDUCTION = (
    (("separable_5x5", 0), ("separable_7x7", 1)),
    (("max", 0), ("separable_7x7", 1)),
    (("avg", 0), ("separable_5x5", 1)),
    (("none", 3), ("avg", 2)),
    (("separable_3x3", 2), ("max", 0)),
)


def mobile(image_shape: ImageShape = (224, 224, 3), outputs: int = 1000) -> Any:
    """NASNet-A mobile: images [B, H, W, 3] in -1 to 1 -> logits [B, outputs]."""
    return build(image_shape, outputs)


def build(image_shape: ImageShape, outputs: int, *, filters: int = 44, cells: int = 12) -> Any:
    """Builds the network with this number of filters in its first cells and of normal cells, a multiple of 3."""
    layers = import_keras().layers
    if None in image_shape:
        raise ValueError(f"image_shape={image_shape}: expected numbers, which decide where cells match their inputs")
    images = import_keras().Input(image_shape, name="images")
    x = _LAYERS.conv(images, "conv0", _STEM_FILTERS, 3, 2, padding="valid", bias=False, norm=False, activation=None)
    x = _LAYERS.norm(x, "conv0_bn")
    before, x = x, _cell(x, None, "cell_stem_0", filters // 4, _REDUCTION)
    before, x = x, _cell(x, before, "cell_stem_1", filters // 2, _REDUCTION)
    for number in range(cells):
        if number in (cells // 3, 2 * cells // 3):
            filters *= 2
            name = f"reduction_cell_{int(number > cells // 3)}"
            before, x = x, _cell(x, before, name, filters, _REDUCTION)
        before, x = x, _cell(x, before, f"cell_{number}", filters, _NORMAL)
    return finish(images, layers.Activation("relu")(x), outputs, name="nasnet", dropout=0.5)


def _cell(x: Any, before: Any, name: str, filters: int, combinations: Any) -> Any:
    layers = import_keras().layers
    reduces = combinations is _REDUCTION
    previous = x if before is None else _fit(before, x, name, filters)
    states = [_conv(x, f"{name}_1x1", filters, f"{name}_beginning_bn"), previous]
    for number, halves in enumerate(combinations):
        found = []
        for side, (operation, state) in zip(("left", "right"), halves, strict=True):
            strides = 2 if reduces and state < 2 else 1
            found.append(_apply(states[state], f"{name}_comb_iter_{number}_{side}", operation, filters, strides))
        states.append(layers.Add()(found))
    return layers.Concatenate()(states[3:] if reduces else states[1:])


def _apply(x: Any, name: str, operation: str, filters: int, strides: int) -> Any:
    layers = import_keras().layers
    if operation == "none":
        return x
    if operation in ("max", "avg"):
        return (max_pool if operation == "max" else avg_pool)(x, 3, strides)
    size = int(operation[-1])
    for number in (1, 2):
        y = layers.Activation("relu")(x)
        conv = layers.SeparableConv2D(
            filters, size, strides if number == 1 else 1, "same", use_bias=False, name=f"{name}_{operation}_{number}"
        )
        x = _LAYERS.norm(conv(y), f"{name}_bn_sep_{size}x{size}_{number}")
    return x


def _fit(before: Any, x: Any, name: str, filters: int) -> Any:
    """The output of the cell before, in the size and with the filters of this one."""
    layers = import_keras().layers
    if before.shape[2] != x.shape[2]:
        y = layers.Activation("relu")(before)
        shifted = layers.Cropping2D(((1, 0), (1, 0)))(layers.ZeroPadding2D(((0, 1), (0, 1)))(y))
        halves = [
            layers.Conv2D(filters // 2, 1, use_bias=False, name=f"{name}_{path}_conv")(avg_pool(part, 1, 2, "valid"))
            for path, part in (("path1", y), ("path2", shifted))
        ]
        return _LAYERS.norm(layers.Concatenate()(halves), f"{name}_final_path_bn")
    if before.shape[-1] != filters:
        return _conv(before, f"{name}_prev_1x1", filters, f"{name}_prev_bn")
    return before


def _conv(x: Any, name: str, filters: int, norm: str) -> Any:
    layers = import_keras().layers
    y = layers.Conv2D(filters, 1, use_bias=False, name=name)(layers.Activation("relu")(x))
    return _LAYERS.norm(y, norm)
