"""Tiny networks and batches for two tasks with missing labels, texts, boxes and masks: kind(dtype) -> network, loss, batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import two_tasks

from engine.data.part import IGNORED
from engine.models.bert import Bert, Config

SIZE, CLASSES, LENGTH = 8, 3, 6


class Maps(tf.Module):
    """A frozen convolution, and outputs for each place of ``stride`` pixels."""

    def __init__(self, outputs: int, stride: int, dtype: Any) -> None:
        super().__init__()
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> tf.Variable:
            return tf.Variable(0.3 * rng.standard_normal(shape), dtype=dtype)

        self.stride = stride
        self.stem, self.head = {"kernel": draw(3, 3, 3, 6)}, {"kernel": draw(1, 1, 6, outputs), "bias": draw(outputs)}

    def __call__(self, images: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(images, self.stem["kernel"], self.stride, "SAME"))
        return tf.nn.conv2d(x, self.head["kernel"], 1, "SAME") + self.head["bias"]


def images(rng: np.random.Generator, size: int, dtype: Any) -> dict[str, Any]:
    return {
        "image": rng.standard_normal((size, SIZE, SIZE, 3)).astype(dtype.as_numpy_dtype),
        "weight": (rng.random(size) * (np.arange(size) % 3 != 1)).astype(dtype.as_numpy_dtype),
        "seeds": rng.integers(0, 1 << 30, (size, 2), np.int32),
    }


def masks(dtype: Any) -> tuple[Any, str, Callable[[int, int], dict[str, Any]]]:
    def batch(size: int, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([size, number])
        labels = rng.integers(0, CLASSES, (size, SIZE, SIZE)).astype(np.uint8)
        labels[::2, :3] = IGNORED
        return images(rng, size, dtype) | {"label": labels}

    return Maps(CLASSES, 1, dtype), "softmax+dice", batch


def boxes(dtype: Any) -> tuple[Any, str, Callable[[int, int], dict[str, Any]]]:
    def batch(size: int, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([size, number])
        labels = np.full([size, 2, 5], -1.0, np.float32)
        for example in range(1, size):  # the first has none
            low = rng.uniform(0, 0.5, (2, 2))
            found = np.concatenate([rng.integers(0, CLASSES, (2, 1)), low, low + rng.uniform(0.2, 0.5, (2, 2))], 1)
            labels[example, : 1 + example % 2] = found[: 1 + example % 2]
        return images(rng, size, dtype) | {"label": labels}

    return Maps(CLASSES + 4, 2, dtype), "centers", batch


def texts(dtype: Any) -> tuple[Any, str, Callable[[int, int], dict[str, Any]]]:
    def batch(size: int, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([size, number])
        tokens = rng.integers(1, 20, (size, LENGTH)).astype(np.int32)
        tokens[np.arange(LENGTH) >= rng.integers(2, LENGTH + 1, size)[:, None]] = 0
        rest = {name: value for name, value in images(rng, size, dtype).items() if name != "image"}
        return rest | {"tokens": tokens, "label": rng.integers(0, CLASSES, size)}

    config = Config(vocabulary=20, width=8, depth=1, heads=2, hidden=12, positions=LENGTH, classes=CLASSES, dropout=0.2)
    return Bert(config, dtype=dtype), "softmax", batch


def two_labels(dtype: Any) -> tuple[Any, str, Callable[[int, int], dict[str, Any]]]:
    def batch(size: int, number: int) -> dict[str, Any]:
        return two_tasks.make_batch(size, seed=number, dtype=dtype.as_numpy_dtype)

    return two_tasks.TwoOutputs(dtype), two_tasks.LOSS, batch


KINDS = (two_labels, texts, boxes, masks)
