"""A small convolutional network with BatchNorm, which demonstrates the treatment of statistics.

Its variables are stages/N/conv/kernel, stages/N/norm/{gamma,beta,moving_mean,moving_variance} and head/{kernel,bias}.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.models import layers

WIDTHS = (16, 32, 64, 64)


class Stage(tf.Module):
    """Convolution, BatchNorm and ReLU; a ``stride`` of 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rng: np.random.Generator, dtype: Any) -> None:
        super().__init__()
        self.conv = layers.Conv(inputs, outputs, 3, stride=stride, bias=False, rng=rng, dtype=dtype)
        self.norm = layers.BatchNorm(outputs, dtype=dtype)

    def __call__(self, x: Any, *, training: bool) -> Any:
        return tf.nn.relu(self.norm(self.conv(x), training=training))


class CNN(tf.Module):
    """A CNN from normalised images [B, height, width, channels], of any size, to logits [B, classes].

    With a mapping of tasks to numbers of classes it returns logits by task, from heads ``head/TASK``.
    Variables have ``dtype``; the forward pass is computed in ``compute`` (None: ``dtype``). Logits have at least 32 bits.
    """

    def __init__(
        self,
        channels: int,
        classes: int | Mapping[str, int],
        *,
        seed: int = 0,
        dtype: Any = tf.float32,
        compute: Any = None,
    ) -> None:
        super().__init__()
        self.compute = compute or dtype
        self.tasks = tuple(classes) if isinstance(classes, Mapping) else ()
        rng = np.random.default_rng(seed)
        self.stages = [
            Stage(inputs, outputs, 1 if index == 0 else 2, rng=rng, dtype=dtype)
            for index, (inputs, outputs) in enumerate(itertools.pairwise((channels, *WIDTHS)))
        ]
        self.head = layers.make_heads(WIDTHS[-1], classes, rng=rng, dtype=dtype)

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        x = tf.cast(images, self.compute)
        for stage in self.stages:
            x = stage(x, training=training)
        return layers.apply_heads(self.head, tf.reduce_mean(x, axis=[1, 2]), self.tasks)
