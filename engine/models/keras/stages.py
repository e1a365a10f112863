"""Finds the stages of a convolutional trunk: for each stride, the feature map that a decoder takes over."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from engine.models.keras.heads import HeadError, find_maker

STRIDES = (2, 4, 8, 16, 32)
# Where blocks are inverted residuals (MobileNetV2, EfficientNet), their narrow outputs: the wide maps inside, which come later,
# hold no more and take up to six times the memory.
_NARROW = re.compile(
    r"expanded_conv_project_BN|block_\d+_(project_BN|add)|out_relu|block\d+[a-z]_(project_bn|add)|top_activation"
)


@dataclass(frozen=True)
class Stage:
    """A feature map of a trunk.

    Attributes:
        stride: the pixels of the image for each of its rows and columns, rounded at the edges.
        layer: the name of the layer that computes it.
        tensor: the Keras tensor, [B, height, width, channels].
    """

    stride: int
    layer: str
    tensor: Any


def find_stages(trunk: Any, size: tuple[int, int], spec: str) -> list[Stage]:
    """The stages of a Keras model with one input and a feature map as output, from the smallest stride to the largest.

    A stage is the last tensor of its stride through which everything passes that is computed later; in MobileNetV2 and
    EfficientNet, the last output of a block: ``expanded_conv_project_BN``, ``block_2_add``, ``block_5_add``, ``block_12_add`` and
    ``out_relu``. In ResNet50 these are ``conv1_relu`` and ``conv2_block3_out`` to ``conv5_block3_out``.

    Args:
        trunk, spec: the model, and its name for messages.
        size: (height, width) of the images; the trunk may leave them open.

    Raises:
        HeadError: the trunk has no map of a smaller stride than its last, or one whose size is not that of a stride.
    """
    tensors = [tensor for tensor in _list_necks(trunk) if len(tensor.shape) == 4]
    tensors = [tensor for tensor in tensors if type(find_maker(tensor)[0]).__name__ != "ZeroPadding2D"]
    narrow = [tensor for tensor in tensors if _NARROW.fullmatch(find_maker(tensor)[0].name)]
    tensors = narrow if len(narrow) > 1 else tensors
    found: dict[int, Stage] = {}
    smallest = 1
    for tensor, shape in zip(tensors, _measure(trunk, tensors, size), strict=True):
        stride = next((s for s in (1, *STRIDES) if _is_size(shape, size, s)), None)
        if stride is None or stride < smallest:
            what = "is not that of a stride of 2, 4, 8, 16 or 32" if stride is None else "grows again"
            raise HeadError(
                f"model={spec!r}: a decoder needs feature maps of 1/2, 1/4 ... of the images' size, but the size of "
                f"{find_maker(tensor)[0].name!r}, {shape[0]}x{shape[1]} for images of {size[0]}x{size[1]}, {what}; expected a trunk "
                "such as keras:MobileNetV2, keras:ResNet50 or keras:EfficientNetB0"
            )
        smallest = stride
        found[stride] = Stage(stride, find_maker(tensor)[0].name, tensor)
    found.pop(1, None)
    if len(found) < 2:
        raise HeadError(
            f"model={spec!r}: a decoder needs feature maps of several sizes, but {trunk.name} has "
            f"{'one' if found else 'none'} through which all that follows passes; a model within a model must be saved on its own"
        )
    return [found[stride] for stride in STRIDES if stride in found]


def _is_size(shape: tuple[int, int], size: tuple[int, int], stride: int) -> bool:
    """Whether a map has the size of a stride for images of this size, rounded down or up (as pooling and padding do)."""
    return all(side // stride <= own <= math.ceil(side / stride) for own, side in zip(shape, size, strict=True))


def _measure(trunk: Any, tensors: list[Any], size: tuple[int, int]) -> list[tuple[int, int]]:
    """The (height, width) of tensors of a model for images of this size."""
    import keras

    inputs = trunk.inputs[0]
    shown = keras.KerasTensor((1, *size, inputs.shape[-1]), dtype=inputs.dtype)
    made = keras.Model(inputs, tensors).compute_output_spec(shown)
    return [(each.shape[1], each.shape[2]) for each in made]


def _list_necks(trunk: Any) -> list[Any]:
    """The tensors of a graph of layers through which everything passes that is computed later, in order."""
    order, parents = _sort(trunk.outputs[0])
    readers: dict[int, int] = {}
    for own in parents.values():
        for tensor in own:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    found, waiting = [], set()
    for tensor in order:
        for parent in parents[id(tensor)]:
            readers[id(parent)] -= 1
            if not readers[id(parent)]:
                waiting.discard(id(parent))
        waiting.add(id(tensor))
        if waiting == {id(tensor)}:
            found.append(tensor)
    return found


def _sort(output: Any) -> tuple[list[Any], dict[int, list[Any]]]:
    """The tensors that an output depends on, each after those that it is computed from, and these by its ``id``."""
    order: list[Any] = []
    parents: dict[int, list[Any]] = {}
    pending = [(output, False)]
    while pending:
        tensor, ready = pending.pop()
        if ready:
            order.append(tensor)
        elif id(tensor) not in parents:
            own = {id(each): each for each in find_maker(tensor)[1]}
            parents[id(tensor)] = list(own.values())
            pending.append((tensor, True))
            pending += [(each, False) for each in own.values()]
    return order, parents
