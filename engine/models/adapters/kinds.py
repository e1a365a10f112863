"""What each kind of adapter computes, and the values that it starts from. Layers of the engine and of Keras share this.

The output of a layer becomes ``(y + lora(x) + adapter(x)) * scale + shift``, each part only if it is attached:

- ``lora`` (arXiv:2106.09685): alpha / rank times x, down, up, where ``down`` takes the place of the layer's kernel with
  ``rank`` outputs (in a convolution, with its kernel size and stride), and ``up`` is a matrix (a 1x1 convolution);
- ``adapter``, a bottleneck in parallel (arXiv:2110.04366, arXiv:2205.13535): the same with a bias and a ReLU between;
- ``ssf`` (arXiv:2210.08823): scale and shift of each output.

``up`` and ``shift`` start from 0 and ``scale`` from 1, so that an adapted model begins as the base to the bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

KINDS = ("lora", "adapter", "ssf")


class AdapterVariables(tf.Module):
    """The variables of one adapter of a layer of the engine; ``factor`` is alpha / rank of ``lora``."""

    def __init__(self, kind: str, values: Mapping[str, np.ndarray], *, dtype: Any, factor: float) -> None:
        super().__init__()
        self.adapter_kind = kind
        self.factor = factor
        for name, value in values.items():
            setattr(self, name, tf.Variable(tf.cast(value, dtype), name=name))


def adapt(layer: Any, x: Any, y: Any) -> Any:
    """The output of a layer with what is attached to it.

    Args:
        layer: has the attributes ``lora``, ``adapter`` and ``ssf``, each with the variables of one or None, and
            ``project(x, kernel)``, its own operation with another kernel.
        x, y: its input, and its output before an activation.
    """
    if layer.lora is not None:
        y = y + low_rank(layer.lora, layer, x)
    if layer.adapter is not None:
        y = y + bottleneck(layer.adapter, layer, x)
    return y if layer.ssf is None else scale_and_shift(layer.ssf, y)


def low_rank(held: Any, layer: Any, x: Any) -> Any:
    """alpha / rank times x, down, up."""
    hidden = layer.project(x, tf.cast(held.down, x.dtype))
    return multiply(hidden * tf.constant(held.factor, x.dtype), tf.cast(held.up, x.dtype))


def bottleneck(held: Any, layer: Any, x: Any) -> Any:
    """ReLU(x down + down_bias) up + up_bias."""
    hidden = tf.nn.relu(layer.project(x, tf.cast(held.down, x.dtype)) + tf.cast(held.down_bias, x.dtype))
    return multiply(hidden, tf.cast(held.up, x.dtype)) + tf.cast(held.up_bias, x.dtype)


def scale_and_shift(held: Any, y: Any) -> Any:
    """y scale + shift; a layer has only those that can be merged into it."""
    scale, shift = getattr(held, "scale", None), getattr(held, "shift", None)
    if scale is not None:
        y = y * tf.cast(scale, y.dtype)
    return y if shift is None else y + tf.cast(shift, y.dtype)


def multiply(x: Any, kernel: Any) -> Any:
    """[..., n] times a kernel [n, ...outputs], as one matrix product."""
    y = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(kernel, [kernel.shape[0], -1]))
    if x.shape[1:-1].is_fully_defined():
        return tf.reshape(y, [-1, *x.shape[1:-1], *kernel.shape[1:]])
    return tf.reshape(y, tf.concat([tf.shape(x)[:-1], list(kernel.shape[1:])], axis=0))


def first_values(
    kind: str,
    *,
    path: str,
    seed: int,
    size: int,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    scales: bool = True,
    shifts: bool = True,
) -> dict[str, np.ndarray]:
    """The first values of an adapter's variables, by name, as float32.

    Args:
        path: the path of the layer; with the ``seed`` it decides ``down``, whatever else is attached.
        size: the rank, or the width of the bottleneck.
        inputs, outputs: the shape of the kernel without its outputs, and of the outputs.
        scales, shifts: whether ``ssf`` has these.
    """
    if kind == "ssf":
        found = {"scale": np.ones(outputs, np.float32)} if scales else {}
        return found | ({"shift": np.zeros(outputs, np.float32)} if shifts else {})
    words = hashlib.sha256(f"{kind}\0{path}".encode()).digest()[:8]
    rng = np.random.default_rng([seed, *words])
    limit = 1.0 / math.sqrt(math.prod(inputs))  # as the authors of LoRA draw it: Kaiming uniform with a = sqrt(5)
    down = ((rng.random((*inputs, size), np.float32) * 2 - 1) * limit).astype(np.float32)
    found = {"down": down}
    if kind == "adapter":
        found["down_bias"] = np.zeros(size, np.float32)
    found["up"] = np.zeros((size, *outputs), np.float32)
    if kind == "adapter":
        found["up_bias"] = np.zeros(outputs, np.float32)
    return found
